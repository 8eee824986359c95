"""A job on this machine: one process, or torchrun over several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TextIO

from vqa_grpo.contract.failure import ConfigurationError, FailureReason, JobError
from vqa_grpo.jobs import outcome
from vqa_grpo.jobs.processes import kill_marked
from vqa_grpo.jobs.spec import JobSpec

GRACE_SECONDS = 45.0  # torchrun itself allows its workers 30
_TAIL = 60  # lines kept for the verdict; torchrun's report is about 20
_POLL_SECONDS = 0.1
_MARK = "VQA_GRPO_JOB"


def run(spec: JobSpec, grace_seconds: float = GRACE_SECONDS) -> None:
    """Run the job and wait for it; its output goes to ours, line by line.

    SIGTERM and SIGINT are passed on, and the job has `grace_seconds` to end; a second signal ends it at once. No
    process of the job outlives this call. Raises JobError when the job fails, is stopped, or takes too long.
    """
    if spec.num_nodes > 1:
        raise ConfigurationError(
            f"job.num_nodes is {spec.num_nodes}, but this machine is one node: set it to 1, or job.launcher=pytorchjob"
        )
    mark = uuid.uuid4().hex
    tail: deque[str] = deque(maxlen=_TAIL)
    with _signals() as received:
        process = subprocess.Popen(
            command(spec),
            env=_environment(spec) | {_MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal then reaches the job through us only, and once
        )
        readers = [_copy(process.stdout, "stdout", tail), _copy(process.stderr, "stderr", tail)]
        try:
            ended = _wait(process, received, spec.timeout_seconds, grace_seconds)
        finally:
            _kill_all(process, mark)
            for reader in readers:
                reader.join(timeout=5)  # whoever might still hold the pipe is no process of ours
    _judge(process.returncode, ended, spec, tail)


def command(spec: JobSpec) -> list[str]:
    module = ["-m", spec.module, *spec.arguments]
    if spec.processes_per_node == 1:
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(spec.processes_per_node)]
    return [sys.executable, *torchrun, *module]


def _environment(spec: JobSpec) -> dict[str, str]:
    environment = {**os.environ, **spec.environment}
    environment.setdefault("PYTHONUNBUFFERED", "1")  # a pipe would hold the lines back
    if spec.processes_per_node > 1:
        # One thread for each core in every process would be too many; torchrun does the same, with a long warning.
        environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT instead of dying from them. Only the main thread may ask for that."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    wanted = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda got, _frame: received.append(got)) for number in wanted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen[bytes], received: list[int], timeout: float, grace: float) -> str:
    """Wait for the process; why it was stopped, or empty when it ended by itself."""
    deadline, stopped = time.monotonic() + timeout, ""
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
            return stopped or (f"stopped by {signal.Signals(received[0]).name}" if received else "")
        if stopped:
            if time.monotonic() > deadline or len(received) > 1:
                process.kill()
            continue
        late = time.monotonic() > deadline
        if received or late:
            number = received[0] if received else signal.SIGTERM
            stopped = f"stopped by {signal.Signals(number).name}" if received else "timeout"
            deadline = time.monotonic() + grace
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def _kill_all(process: subprocess.Popen[bytes], mark: str) -> None:
    """End whatever of the job is left.

    torchrun gives each worker a session of its own, so neither the process group nor, once torchrun is dead, the
    family tree finds them: the mark in their environment does.
    """
    if process.poll() is None:
        process.kill()
    kill_marked(_MARK, mark)
    process.wait()


def _copy(source: IO[bytes] | None, name: str, tail: deque[str]) -> threading.Thread:
    """Pass a stream on to our stdout or stderr and keep its last lines."""
    assert source is not None

    def copy() -> None:
        for raw in source:
            line = raw.decode(errors="replace")
            tail.extend(line.splitlines())
            target: TextIO = getattr(sys, name)
            with suppress(OSError, ValueError):  # ours may be closed; the job must not hang on a full pipe for that
                target.write(line)
                target.flush()

    thread = threading.Thread(target=copy, name=f"job-{name}", daemon=True)
    thread.start()
    return thread


def _judge(exit_code: int, stopped: str, spec: JobSpec, tail: deque[str]) -> None:
    if stopped == "timeout":
        text = f"job {spec.name} stopped after {spec.timeout_seconds} s: raise job.timeout_seconds if it was at work"
        raise JobError(text, FailureReason.CANCELLED)
    if stopped:
        raise JobError(f"job {spec.name} {stopped}", FailureReason.CANCELLED)
    if exit_code:
        lines = list(tail)
        raise JobError(outcome.sentence(exit_code, lines), outcome.reason_behind(exit_code, lines))
