"""Nothing outlives a run: kill whatever still carries the run's token once the run's process is gone.

A run starts `python -m vqa_grpo.cli.leash TOKEN` and holds the other end of its standard input. When the run ends,
in whatever way (also by SIGKILL, which no process can handle itself), that end closes, and every process that
inherited the token in its environment is killed: steps, trainers, the embedded S3, whatever session they are in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TOKEN = "VQA_GRPO_TOKEN"  # noqa: S105 - the name of a variable


@contextmanager
def leash(token: str) -> Iterator[None]:
    """Processes started inside with TOKEN=`token` in their environment are gone when this ends."""
    environment = {key: value for key, value in os.environ.items() if key != TOKEN}
    command = [sys.executable, "-m", "vqa_grpo.cli.leash", token]
    # A session of its own, so that a Ctrl-C in the terminal does not reach it.
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    try:
        yield
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait()


def kill_all(token: str) -> int:
    """Kill every process with the token in its environment; returns how many there were."""
    import psutil

    killed = 0
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(TOKEN) == token:
                process.kill()
                killed += 1
        except psutil.Error:
            continue  # gone already, or not ours to look at
    return killed


def main() -> None:
    token = sys.argv[1]
    sys.stdin.buffer.read()  # returns when the run's process is gone
    while kill_all(token):  # a process may have forked while we looked
        pass


if __name__ == "__main__":
    main()
