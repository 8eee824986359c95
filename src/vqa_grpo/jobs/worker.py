"""One worker process: `python -m vqa_grpo.jobs.worker MODULE ARGUMENTS…`, started by `jobs.supervisor`.

Hands its output to the supervisor, each rank over a line of its own, then becomes `python -m MODULE` in the same
process; however that ends, the reason is left behind (`contract.vitals`).
"""

from __future__ import annotations

import faulthandler
import json
import os
import runpy
import signal
import socket
import sys

from vqa_grpo.contract import vitals

LINE = "VQA_GRPO_OUTPUT"  # the supervisor's Unix socket


def main() -> None:
    if path := os.environ.pop(LINE, ""):  # this process's alone: what it starts inherits the open line
        _connect(path)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # where every thread stands, for a supervisor that sees no progress
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            vitals.fail(end)
            raise
    except BaseException as error:
        vitals.fail(error)
        raise


def _connect(path: str) -> None:
    """Put stdout and stderr on a socket that says first who we are."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendall(json.dumps({"rank": vitals.rank(), "pid": os.getpid()}).encode() + b"\n")
        os.dup2(line.fileno(), 1)
        os.dup2(line.fileno(), 2)


if __name__ == "__main__":
    main()
