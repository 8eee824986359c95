"""Jobs on this machine, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from vqa_grpo.contract.failure import ConfigurationError, FailureReason, JobError
from vqa_grpo.jobs import launch, local
from vqa_grpo.jobs.spec import JobSpec

Write = Callable[..., JobSpec]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A job that runs the given code."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    for name in ("OMP_NUM_THREADS", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(name, raising=False)

    def write(code: str, **fields: Any) -> JobSpec:
        (tmp_path / "the_job.py").write_text(textwrap.dedent(code), encoding="utf-8")
        return JobSpec(**({"name": "x", "run_id": "r", "module": "the_job"} | fields))

    return write


def wait_for(path: Path, seconds: float = 20) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if path.exists() and (text := path.read_text(encoding="utf-8")):
            return text
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_job_gets_its_arguments_and_environment_and_its_output_comes_through(job: Write, capsys: Any) -> None:
    code = """
        import os, sys
        print(sys.argv[1:], os.environ["LEVEL"], os.environ.get("OMP_NUM_THREADS"))
        print("beside", file=sys.stderr)
    """
    launch(job(code, arguments=("--a", "b c"), environment={"LEVEL": "info"}), "local")
    assert capsys.readouterr().out == "['--a', 'b c'] info None\nbeside\n"


def test_output_comes_while_the_job_runs(job: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"

    class Out:
        def write(self, text: str) -> None:
            seen.write_text(text, encoding="utf-8")

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stdout", Out())
    code = f"""
        import pathlib, sys, time
        print("first")
        for _ in range(500):
            if pathlib.Path({str(seen)!r}).exists():
                sys.exit(0)
            time.sleep(0.02)
        sys.exit("nobody saw it")
    """
    local.run(job(code))


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        (
            "import sys; print('error: data.limit is wrong', file=sys.stderr); sys.exit(78)",
            "configuration",
            "data.limit is wrong",
        ),
        ("import sys; sys.exit(65)", "data", "exit code 65"),
        ("raise RuntimeError('boom')", "internal", "RuntimeError: boom"),
        ("import os; os.abort()", "internal", "killed by SIGABRT"),
    ],
)
def test_a_failed_job_says_why_in_one_line(job: Write, code: str, reason: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        local.run(job(code))
    assert (error.value.reason, str(error.value)) == (reason, message)


def test_torchrun_keeps_the_reason_of_its_worker(job: Write, capsys: Any) -> None:
    code = """
        import os, sys, time
        print("rank", os.environ["RANK"], "threads", os.environ["OMP_NUM_THREADS"])
        if os.environ["RANK"] == "1":
            time.sleep(0.5)
            print("error: learning_rate is wrong", file=sys.stderr)
            sys.exit(78)
        time.sleep(60)
    """
    with pytest.raises(JobError, match=r"^learning_rate is wrong$") as error:
        local.run(job(code, processes_per_node=2))
    assert error.value.reason is FailureReason.CONFIGURATION
    assert capsys.readouterr().out == "rank 0 threads 1\n[rank 1] error: learning_rate is wrong\n"


def test_a_killed_job_leaves_no_process_not_even_one_in_a_session_of_its_own(job: Write, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"""
        import os, pathlib, signal, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        pathlib.Path({str(pid)!r}).write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(JobError):
        local.run(job(code))
    assert not alive(int(pid.read_text(encoding="utf-8")))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_job_may_end_in_peace(job: Write, tmp_path: Path, number: signal.Signals) -> None:
    ready, farewell = tmp_path / "ready", tmp_path / "farewell"
    code = f"""
        import pathlib, signal, sys, time
        def stop(number, frame):
            time.sleep(0.3)
            pathlib.Path({str(farewell)!r}).write_text(signal.Signals(number).name)
            sys.exit(0)
        signal.signal({int(number)}, stop)
        pathlib.Path({str(ready)!r}).write_text("yes")
        time.sleep(60)
    """

    def send() -> None:
        wait_for(ready)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(JobError, match=number.name) as error:
        local.run(job(code))
    thread.join()
    assert error.value.reason is FailureReason.CANCELLED
    assert farewell.read_text(encoding="utf-8") == number.name
    assert signal.getsignal(number) is before


STUBBORN = """
    import os, pathlib, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path({pid!r}).write_text(str(os.getpid()))
    time.sleep(60)
"""


def test_a_job_that_ignores_the_signal_is_killed_after_its_grace(job: Write, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = """
        import sys
        from vqa_grpo.jobs import local
        from vqa_grpo.jobs.spec import JobSpec
        try:
            local.run(JobSpec(name="x", run_id="r", module="the_job"), grace_seconds=0.3)
        except Exception as error:
            sys.exit(error.reason.exit_code)
    """
    job(STUBBORN.format(pid=str(pid)))
    launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    child = int(wait_for(pid))
    launcher.terminate()
    assert launcher.wait(10) == 143
    assert not alive(child)


def test_a_job_that_takes_too_long_is_stopped(job: Write, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(JobError, match="timeout_seconds"):
        local.run(job(STUBBORN.format(pid=str(pid)), timeout_seconds=1), grace_seconds=0.2)
    assert not pid.exists() or not alive(int(pid.read_text(encoding="utf-8")))


def test_several_nodes_are_refused_with_the_fix(job: Write) -> None:
    with pytest.raises(ConfigurationError, match="pytorchjob"):
        local.run(job("", num_nodes=2))
