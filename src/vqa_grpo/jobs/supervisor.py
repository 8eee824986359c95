"""PID 1 of a training pod: `python -m vqa_grpo.jobs.supervisor [options] -- -m vqa_grpo.training …`.

Starts torchrun (or one plain process), because torchrun alone turns every worker's exit code into 1, waits half a
minute for the peers of a failed worker, and mixes all output. Here the worker's reason becomes the exit code
(`contract.failure`), Kubernetes' termination message and a status object in storage; every rank's output has a file
of its own; shutdown is bounded; and no process is left behind. Imports nothing of torch.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import psutil

from vqa_grpo.contract import vitals
from vqa_grpo.contract.failure import FailureReason
from vqa_grpo.contract.vitals import Failure
from vqa_grpo.jobs import verdict
from vqa_grpo.jobs.output import OTHERS, Output
from vqa_grpo.jobs.processes import kill_marked
from vqa_grpo.jobs.worker import LINE

GRACE_SECONDS = 45.0
PEERS_SECONDS = 5.0  # what the others get to end by themselves once one rank has failed
HANG_MARGIN_SECONDS = 20.0  # the backend's own timeout comes first, for it knows the collective
# How long a node waits for the others, which a quota or an autoscaler may bring hours later: longer than any job, whose
# own limits, timeout_seconds and queue_timeout_seconds, decide. torchrun's default is 15 minutes.
RENDEZVOUS_SECONDS = 30 * 24 * 3600
_TERMINATION_LOG = "/dev/termination-log"
_STATUS_SECONDS = 10.0
_TICK_SECONDS = 0.1
_LAUNCHER_SECONDS = 5.0  # for torchrun's report, once its workers are gone
_STACKS_SECONDS = 0.5
_MARK = "VQA_GRPO_JOB"
_TOO_SHORT = ": raise job.timeout_seconds if it was at work"
_FAREWELLS = (FailureReason.CANCELLED, FailureReason.RETRY)
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


@dataclass(frozen=True)
class Work:
    """What to run: `python -m module arguments…`, in how many processes.

    `processes`        on this machine, by itself; None leaves it to PET_* variables, or is one plain process
    `environment`      on top of ours
    `log_dir`          gets `rank-N.log` and `launcher.log`; None keeps no files
    `others`           what reaches stdout of every rank but the first: problems, all or none
    `grace_seconds`    from SIGTERM to SIGKILL
    `timeout_seconds`  for the whole; None for no limit
    """

    module: str
    arguments: Sequence[str] = ()
    processes: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    log_dir: Path | None = None
    others: str = "problems"
    grace_seconds: float = GRACE_SECONDS
    timeout_seconds: float | None = None
    hang_margin_seconds: float = HANG_MARGIN_SECONDS


@dataclass(frozen=True)
class Ending:
    """How it ended: `failure` is None when all went well. `lines` are the last of the rank at fault."""

    failure: Failure | None
    lines: tuple[str, ...]
    beats: tuple[vitals.Beat, ...]
    seconds: float


def supervise(work: Work, adopt_orphans: bool = False) -> Ending:
    """Run to the end, whatever that is; no process of the work outlives this call.

    SIGTERM and SIGINT are passed on once; a second one ends everything. `adopt_orphans` is for a process of its own,
    which then reaps whatever its descendants leave.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vqa-grpo-") as scratch, _signals() as received:
        run = _Run(work, Path(scratch), received, adopt_orphans)
        return run.ending(run.watch(), time.monotonic() - began)


class _Run:
    def __init__(self, work: Work, scratch: Path, received: list[int], adopt_orphans: bool) -> None:
        self._work, self._received, self._adopt = work, received, adopt_orphans
        self._vitals = scratch / "vitals"
        self._vitals.mkdir()
        self._mark = uuid.uuid4().hex
        self._ended: set[int] = set()  # ranks that we killed
        self._failed_at = 0.0  # when we saw that something was wrong
        self._oom_kills = verdict.oom_kills()
        self._output = Output(scratch / "line", work.log_dir or scratch / "logs", work.others)
        self._process = subprocess.Popen(
            command(work),
            env=_environment(work) | {_MARK: self._mark, vitals.FOLDER: str(self._vitals), LINE: str(scratch / "line")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C at the terminal then reaches the work through us only, and once
        )
        assert self._process.stdout is not None
        self._output.start(self._process.stdout)

    # --- while it runs -------------------------------------------------------------------------------------------

    def watch(self) -> Failure | None:
        """Wait for the end; the failure that was ours to call (a signal, a timeout, a hang), or None."""
        try:
            return self._watch()
        finally:
            if self._process.poll() is None:
                self._process.kill()
            kill_marked(_MARK, self._mark)
            self._process.wait()
            self._output.finish()
            if self._adopt:
                _reap_orphans()

    def _watch(self) -> Failure | None:
        called: Failure | None = None
        late = time.monotonic() + (self._work.timeout_seconds or float("inf"))
        kill_at = give_up = float("inf")
        while not self._exited():
            now = time.monotonic()
            if now > kill_at:
                self._kill_workers()
                kill_at, give_up = float("inf"), now + _LAUNCHER_SECONDS
            if now > give_up or len(self._received) > 1:
                break
            if called is None and (called := self._calls(late)):
                kill_at = now
                if called.reason is FailureReason.CANCELLED:
                    kill_at += self._work.grace_seconds
                    self._process.send_signal(self._received[0] if self._received else signal.SIGTERM)
            elif kill_at == give_up and self._has_failed():
                kill_at = now + PEERS_SECONDS
                self._failed_at = time.time()
        # A signal to the whole group (a Ctrl-C, a terminated container) may have ended it before we looked.
        return called or self._calls(float("inf"), ended=True)

    def _exited(self) -> bool:
        if self._adopt:
            _reap_orphans(self._process.pid)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_TICK_SECONDS)
            return True
        return False

    def _calls(self, late: float, ended: bool = False) -> Failure | None:
        """A reason of ours to stop."""
        if self._received:
            return self._failure(FailureReason.CANCELLED, f"stopped by {signal.Signals(self._received[0]).name}")
        if time.monotonic() > late:
            return self._failure(FailureReason.CANCELLED, f"stopped after {self._work.timeout_seconds} s{_TOO_SHORT}")
        beats = [] if ended else vitals.beats(self._vitals)
        if text := verdict.hang(beats, time.time(), self._work.hang_margin_seconds):
            self._show_stacks()
            behind = min(beats, key=lambda beat: (beat.count, beat.time))
            return self._failure(FailureReason.RETRY, text, behind.rank, behind.step)
        return None

    def _failure(self, reason: FailureReason, text: str, rank: int = 0, step: int | None = None) -> Failure:
        return Failure(reason, text, rank, os.uname().nodename, time.time(), step)

    def _has_failed(self) -> bool:
        """Whether a rank left its reason, or torchrun found one dead and set about ending the others."""
        if any(self._vitals.glob("failure-*.json")):
            return True
        return any("closing signal" in line for line in list(self._output.launcher))

    def _show_stacks(self) -> None:
        """Have every worker print where it stands, for whoever reads the logs."""
        for rank, pid in self._output.pids.items():
            if not _is_gone(pid):
                print(f"[rank {rank}] is asked where it stands; see its log", file=sys.stderr, flush=True)
                with suppress(OSError):
                    os.kill(pid, signal.SIGUSR1)
        time.sleep(_STACKS_SECONDS)

    def _kill_workers(self) -> None:
        """Not torchrun itself: it is to report how the others ended."""
        for rank, pid in self._output.pids.items():
            if not _is_gone(pid):
                self._ended.add(rank)
                with suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)  # each worker leads a session
        if not self._output.pids:
            self._process.kill()

    # --- afterwards ----------------------------------------------------------------------------------------------

    def ending(self, called: Failure | None, seconds: float) -> Ending:
        beats = tuple(vitals.beats(self._vitals))
        if self._process.returncode == 0 and called is None:
            return Ending(None, (), beats, seconds)
        failures = vitals.failures(self._vitals)
        found = called or verdict.cause(self._evidence(failures, beats))
        if called and called.reason is FailureReason.CANCELLED:
            # A rank's reason counts where it came before the signal, or is a farewell that says how to go on.
            own = [f for f in failures if not f.peer and (f.time < called.time or f.reason in _FAREWELLS)]
            found = own[0] if own else called
        if not found.time:  # it died without a word
            found = replace(found, host=os.uname().nodename, time=self._failed_at or time.time())
        lines = self._output.tails.get(found.rank) or self._output.launcher
        return Ending(found, tuple(lines)[-60:], beats, seconds)

    def _evidence(self, failures: list[Failure], beats: Sequence[vitals.Beat]) -> verdict.Evidence:
        code = self._process.returncode
        torchrun = "torch.distributed.run" in command(self._work)
        codes = verdict.exit_codes(self._output.launcher) if torchrun else {0: code} if self._output.pids else {}
        before, after = self._oom_kills, verdict.oom_kills()
        return verdict.Evidence(
            launcher_code=code,
            launcher_lines=list(self._output.launcher),
            failures=failures,
            beats=beats,
            codes=codes,
            ended=frozenset(self._ended),
            out_of_memory=None if before is None or after is None else after > before,
            lines={rank: list(tail) for rank, tail in self._output.tails.items()},
        )


def command(work: Work) -> list[str]:
    worker = ["-m", "vqa_grpo.jobs.worker", work.module, *work.arguments]
    if _is_node(work):
        # No rendezvous flags: the operator sets PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and the rest.
        return [sys.executable, "-m", "torch.distributed.run", *worker]
    if (work.processes or 1) == 1:
        return [sys.executable, "-u", *worker]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(work.processes)]
    return [sys.executable, *torchrun, *worker]


def _is_node(work: Work) -> bool:
    """Whether this is one node of an operator's job."""
    return work.processes is None and "PET_NNODES" in os.environ


def _environment(work: Work) -> dict[str, str]:
    environment = {**os.environ, **work.environment}
    environment.setdefault("PYTHONUNBUFFERED", "1")
    if _is_node(work):
        environment.setdefault("PET_RDZV_CONF", f"timeout={RENDEZVOUS_SECONDS}")
    if "torch.distributed.run" in command(work):
        # One thread for each core in every process would be too many; torchrun does the same, with a long warning.
        environment.setdefault("OMP_NUM_THREADS", "1")
        # A worker that ignores SIGTERM is ours to kill; torchrun's default would be sooner than a long grace.
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(int(work.grace_seconds) + 60)
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


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _reap_orphans(child: int = 0) -> None:
    """Bury the dead that were handed to us; our own child is left to `subprocess`."""
    with suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid != child:
            os.waitpid(found.si_pid, os.WNOHANG)


# --- the program ------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a program: exit code, termination message and status object say how it ended."""
    options, work = _parse(sys.argv[1:] if argv is None else argv)
    with suppress(AttributeError, OSError):  # Linux alone; PID 1 gets the orphans anyway
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    ending = supervise(work, adopt_orphans=True)
    node = int(os.environ.get("PET_NODE_RANK") or 0)
    code = _announce(ending, node, options.termination_log)
    if options.status_uri:
        _put_status(options.status_uri, node, _status(ending, node))
    if ending.failure and ending.failure.peer and os.environ.get("PET_NNODES", "1") != "1":
        # The operator removes what still runs once a pod has failed: the one with the cause must come first.
        time.sleep(PEERS_SECONDS)
    return code


def _announce(ending: Ending, node: int, termination_log: str) -> int:
    failure = ending.failure
    if failure is None:
        return 0
    text = verdict.message(failure, ending.lines, node=node)
    if termination_log:
        try:
            Path(termination_log).write_text(text, encoding="utf-8")
        except OSError as error:
            print(f"warning: no termination message: {termination_log}: {error.strerror}", file=sys.stderr)
    where = f"rank {failure.rank}" + ("" if failure.step is None else f", step {failure.step}")
    print(f"error: {failure.sentence} ({where}; {failure.reason})", file=sys.stderr, flush=True)
    return failure.reason.exit_code


def _status(ending: Ending, node: int) -> dict[str, Any]:
    return {
        "kind": "status",
        "state": "failed" if ending.failure else "succeeded",
        "node": node,
        "host": os.uname().nodename,
        "seconds": round(ending.seconds, 1),
        "failure": asdict(ending.failure) if ending.failure else None,
        "exit_code": ending.failure.reason.exit_code if ending.failure else 0,
        "lines": list(ending.lines),
        "ranks": [asdict(beat) for beat in ending.beats],
    }


def _put_status(uri: str, node: int, status: Mapping[str, Any]) -> None:
    """Write `<uri>/node-N.json`. A store that fails or does not answer is said aloud and changes nothing."""
    problem = ["no answer"]

    def put() -> None:
        try:
            from vqa_grpo.storage.store import open_store

            open_store(uri).write(f"node-{node}.json", json.dumps(status, indent=1).encode())
            problem.clear()
        except Exception as error:
            problem[:] = [" ".join(str(error).split())]

    thread = threading.Thread(target=put, daemon=True)  # the pod's grace is no time to wait for a store
    thread.start()
    thread.join(_STATUS_SECONDS)
    if problem:
        print(f"warning: no status in {uri}: {problem[0]}", file=sys.stderr, flush=True)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Work]:
    parser = _Parser(prog="vqa_grpo.jobs.supervisor", description=__doc__.split("\n\n")[1] if __doc__ else "")
    parser.add_argument("--processes", type=int, help="on this machine; without it PET_* variables say how many")
    parser.add_argument("--log_dir", type=Path, default=os.environ.get("VQA_GRPO_LOGS") or None)
    parser.add_argument("--other_ranks", choices=OTHERS, default="problems", help="what to show beside rank 0")
    parser.add_argument("--grace_seconds", type=float, default=GRACE_SECONDS, help="from SIGTERM to SIGKILL")
    parser.add_argument("--status_uri", default="", help="gets node-N.json: s3://bucket/prefix, or a folder")
    default = os.environ.get("TERMINATION_LOG") or (_TERMINATION_LOG if os.path.exists(_TERMINATION_LOG) else "")
    parser.add_argument("--termination_log", default=default)
    parser.add_argument("-m", dest="module", required=True, help=argparse.SUPPRESS)
    own, separator, rest = list(argv), "", []
    if "--" in argv:
        at = own.index("--")
        own, separator, rest = own[:at], "--", own[at + 1 :]
    if separator and rest[:1] == ["-m"] and len(rest) > 1:
        options = parser.parse_args([*own, "-m", rest[1]])
        work = Work(
            module=options.module,
            arguments=tuple(rest[2:]),
            processes=options.processes,
            log_dir=Path(options.log_dir) if options.log_dir else None,
            others=options.other_ranks,
            grace_seconds=options.grace_seconds,
        )
        return options, work
    if "-h" in own or "--help" in own:
        parser.parse_args(own)
    parser.error("after the options write -- -m MODULE and its arguments")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(FailureReason.CONFIGURATION.exit_code)


if __name__ == "__main__":
    sys.exit(main())
