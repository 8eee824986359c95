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


def main() -> None:
    from vqa_grpo.jobs.processes import kill_marked

    sys.stdin.buffer.read()  # returns when the run's process is gone
    kill_marked(TOKEN, sys.argv[1])


if __name__ == "__main__":
    main()
