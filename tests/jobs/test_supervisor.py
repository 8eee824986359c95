"""PID 1 of a training pod, with real processes: small modules that fail, hang, flood or will not die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from vqa_grpo.contract.failure import FailureReason
from vqa_grpo.contract.vitals import Beat, Failure
from vqa_grpo.jobs import output, supervisor, verdict
from vqa_grpo.jobs.supervisor import Work, supervise

SOURCE = Path(supervisor.__file__).parents[2]


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    said: dict[str, Any]  # the termination message
    status: dict[str, Any]
    seconds: float


class Bench:
    """Runs a module of the given code under the supervisor, as a program or in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.message, self.logs = folder / "termination-log", folder / "logs"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "VQA_GRPO_"))}
        self.environment = clean | {"PYTHONPATH": f"{folder}{os.pathsep}{SOURCE}", "FOLDER": str(folder)}

    def module(self, code: str) -> None:
        (self.folder / "the_work.py").write_text(textwrap.dedent(code), encoding="utf-8")

    def start(self, code: str, *options: str, stdout: int = subprocess.PIPE, **environment: str) -> subprocess.Popen:
        self.module(code)
        own = ["--termination_log", str(self.message), "--log_dir", str(self.logs), *options]
        status = () if "--status_uri" in options else ("--status_uri", str(self.folder / "status"))
        return subprocess.Popen(
            [sys.executable, "-m", "vqa_grpo.jobs.supervisor", *own, *status, "--", "-m", "the_work"],
            env=self.environment | environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, *options: str, **environment: str) -> Ended:
        return self.wait(self.start(code, *options, **environment))

    def wait(self, process: subprocess.Popen) -> Ended:
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
        said = self.message.read_text(encoding="utf-8") if self.message.exists() else "{}"
        status = self.folder / "status" / "node-0.json"
        found = json.loads(status.read_text(encoding="utf-8")) if status.exists() else {}
        return Ended(process.returncode, out, err, json.loads(said), found, time.monotonic() - began)

    def supervise(self, code: str, **fields: Any) -> Failure | None:
        self.module(code)
        return supervise(Work("the_work", environment=self.environment, log_dir=self.logs, **fields)).failure

    def wait_for(self, name: str) -> str:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if (self.folder / name).exists() and (text := (self.folder / name).read_text(encoding="utf-8")):
                return text
            time.sleep(0.02)
        raise AssertionError(f"{name} did not come")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.delenv("PET_NNODES", raising=False)
    return Bench(tmp_path)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


# --- reasons ----------------------------------------------------------------------------------------------------------

ERRORS = "from vqa_grpo.contract.failure import ConfigurationError, DataError, FailureReason, JobError, RetryError\n"


@pytest.mark.parametrize(
    ("code", "reason", "text"),
    [
        ("raise ConfigurationError('beta is -1: make it 0 or more')", "configuration", "beta is -1: make it 0 or more"),
        ("raise DataError('row 7 has no image')", "data", "row 7 has no image"),
        ("raise RetryError('the store does not answer')", "retry", "the store does not answer"),
        ("raise JobError('judge stopped', FailureReason.CANCELLED)", "cancelled", "judge stopped"),
        ("raise MemoryError", "out_of_memory", "MemoryError"),
        ("{}['rank']", "internal", "KeyError: 'rank'"),
        ("import nowhere_to_be_found", "configuration", "No module named 'nowhere_to_be_found'"),
        ("print('error: lr is 7'); import sys; sys.exit(78)", "configuration", "lr is 7"),
        ("import os; os._exit(65)", "data", "exit code 65"),
        ("import sys; sys.exit(3)", "internal", "exit code 3"),
        ("import os; os.kill(os.getpid(), 11)", "internal", "killed by SIGSEGV"),
    ],
)
def test_each_reason_arrives_as_exit_code_message_and_status(bench: Bench, code: str, reason: str, text: str) -> None:
    ended = bench.run(ERRORS + code)
    assert ended.code == FailureReason(reason).exit_code == ended.said["exit_code"] == ended.status["exit_code"]
    assert (ended.said["reason"], ended.said["rank"], ended.said["node"]) == (reason, 0, 0)
    assert text in ended.said["sentence"]
    assert (ended.status["state"], ended.status["failure"]["sentence"]) == ("failed", ended.said["sentence"])
    assert f"error: {ended.said['sentence']}" in ended.err
    assert verdict.read_message(bench.message.read_text()).reason == reason  # type: ignore[union-attr]


def test_success_leaves_no_message_and_a_status_that_says_so(bench: Bench) -> None:
    ended = bench.run("print('fine')")
    assert (ended.code, ended.out, ended.err, ended.said) == (0, "fine\n", "", {})
    assert (ended.status["state"], ended.status["exit_code"]) == ("succeeded", 0)


def test_a_module_that_is_not_there_is_a_configuration_error(bench: Bench) -> None:
    bench.module("")
    failure = supervise(Work("the_wrok", environment=bench.environment)).failure
    assert failure is not None
    assert (failure.reason, "the_wrok" in failure.sentence) == (FailureReason.CONFIGURATION, True)


@pytest.mark.parametrize(
    ("kills", "reason", "text"),
    [
        ((0, 1), FailureReason.OUT_OF_MEMORY, "raise job.memory"),
        ((None, None), FailureReason.OUT_OF_MEMORY, "probably"),
        ((4, 4), FailureReason.RETRY, "not for want of memory"),
    ],
)
def test_a_killed_worker_was_out_of_memory_unless_the_kernel_says_otherwise(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kills: tuple, reason: FailureReason, text: str
) -> None:
    counts = iter(kills)
    monkeypatch.setattr(verdict, "oom_kills", lambda: next(counts))
    failure = bench.supervise("import os; os.kill(os.getpid(), 9)")
    assert failure is not None
    assert (failure.reason, text in failure.sentence) == (reason, True)


def test_the_kernels_count_is_read_from_either_version_of_control_groups(tmp_path: Path) -> None:
    ours = tmp_path / "cgroup"
    (tmp_path / "pod").mkdir()
    (tmp_path / "pod" / "memory.events").write_text("oom 3\noom_kill 2\noom_group_kill 0\n")
    ours.write_text("0::/pod\n")
    assert verdict.oom_kills(tmp_path, ours) == 2
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.oom_control").write_text("under_oom 0\noom_kill 5\n")
    ours.write_text("4:memory:/from/outside\n0::/\n")
    assert verdict.oom_kills(tmp_path, ours) == 5
    assert verdict.oom_kills(tmp_path, tmp_path / "none") is None


def test_a_store_that_fails_is_said_aloud_and_changes_nothing(bench: Bench) -> None:
    (bench.folder / "file").write_text("")
    ended = bench.run(ERRORS + "raise DataError('bad row')", "--status_uri", str(bench.folder / "file" / "status"))
    assert (ended.code, ended.said["sentence"]) == (65, "bad row")
    assert "warning: no status in" in ended.err


def test_a_termination_message_is_one_line_and_never_too_long() -> None:
    failure = Failure(FailureReason.INTERNAL, "ü" * 5000, 3)
    text = verdict.message(failure, ["„line“ " * 100] * 60, node=1)
    assert len(text.encode()) <= 4096
    assert "\n" not in text
    assert json.loads(verdict.message(Failure(FailureReason.DATA, "x"), ["a", "b"]))["lines"] == ["a", "b"]


def test_a_message_that_is_not_ours_is_left_to_others() -> None:
    assert [verdict.read_message(text) for text in ("", "Traceback …", "[1]", '{"reason": "moody"}', "3")] == [None] * 5


def test_the_supervisor_needs_neither_torch_nor_the_trainer() -> None:
    code = "import sys, vqa_grpo.jobs.supervisor; print([m for m in sys.modules if m.split('.')[0] == 'torch' "
    code += "or m.startswith('vqa_grpo.training')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("wrong", [[], ["-m", "the_work"], ["--", "the_work"], ["--bog", "1", "--", "-m", "the_work"]])
def test_a_wrong_command_line_is_a_configuration_error(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        supervisor.main(wrong)
    assert end.value.code == 78


# --- several ranks ----------------------------------------------------------------------------------------------------


LAST_STRAWS = {
    "raises and hangs on its way out": "atexit.register(time.sleep, 60); raise DataError('row 7 has no image')",
    "is killed": "os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("straw", LAST_STRAWS)
def test_one_rank_that_fails_ends_the_others_even_deaf_ones_and_is_the_verdict(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, straw: str
) -> None:
    monkeypatch.setattr(supervisor, "PEERS_SECONDS", 1.0)
    monkeypatch.setattr(verdict, "oom_kills", lambda: None)
    failure = bench.supervise(
        f"""
        {ERRORS.strip()}
        import atexit, os, pathlib, signal, time
        from vqa_grpo.contract import vitals
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        mine = pathlib.Path(os.environ["FOLDER"]) / f"pid-{{os.environ['RANK']}}"
        mine.write_text(str(os.getpid()))
        vitals.beat(12, "step begins", None)
        if os.environ["RANK"] == "0":
            time.sleep(20)
            mine.with_name("nobody-stopped-me").touch()
        while not mine.with_name("pid-0").exists():
            time.sleep(0.05)
        {LAST_STRAWS[straw]}
        """,
        processes=2,
    )
    assert failure is not None
    if straw == "is killed":
        assert failure.reason is FailureReason.OUT_OF_MEMORY
    else:
        assert (failure.reason, failure.sentence) == (FailureReason.DATA, "row 7 has no image")
    assert (failure.rank, failure.step) == (1, 12)
    assert failure.time > 0
    assert not alive(int(bench.wait_for("pid-0")))
    assert not (bench.folder / "nobody-stopped-me").exists()


def test_a_killed_rank_is_the_cause_and_not_the_peer_that_lost_its_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "oom_kills", lambda: None)
    failure = bench.supervise(
        """
        import os, pathlib, signal, time
        mine = pathlib.Path(os.environ["FOLDER"]) / f"pid-{os.environ['RANK']}"
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        mine.write_text(str(os.getpid()))
        while not mine.with_name("pid-1").exists():
            time.sleep(0.05)
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), 9)
        time.sleep(0.3)
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [10.0.0.1]:61212")
        """,
        processes=2,
    )
    assert failure is not None
    assert (failure.reason, failure.rank) == (FailureReason.OUT_OF_MEMORY, 1)
    assert "SIGKILL" in failure.sentence


HANG = """
    import os, time
    from vqa_grpo.contract import vitals
    rank = int(os.environ["RANK"])
    for step in range(4):
        vitals.beat(step, "step begins", 1.0)
        if step == 3 and rank == 1:
            vitals.still("reward judge")
            time.sleep(60)
        time.sleep(0.2)
    vitals.still("reward judge")
    vitals.still("reward judge done")
    time.sleep(60)  # in a collective, as it were
"""


def test_a_rank_that_hangs_is_found_by_its_heartbeat_and_named(bench: Bench) -> None:
    failure = bench.supervise(HANG, processes=2, hang_margin_seconds=0.5)
    assert failure is not None
    assert (failure.reason, failure.rank, failure.step) == (FailureReason.RETRY, 1, 3)
    assert "rank 1 did not arrive (rank 1 was at step 3: reward judge" in failure.sentence
    assert "--ddp_timeout" in failure.sentence
    assert "the_work.py" in (bench.logs / "rank-1.log").read_text()  # where it stood


@pytest.mark.parametrize("patience", [None, 60.0])
def test_a_rank_that_takes_its_time_is_left_alone(patience: float | None) -> None:
    beats = [Beat(rank, 5, 100.0, 1, "saving", patience) for rank in (0, 1)]
    assert verdict.hang(beats, now=155.0, margin=1.0) == ""
    assert verdict.hang([], now=1e9, margin=1.0) == ""


def test_a_peers_timeout_names_the_rank_that_did_not_come() -> None:
    waited = Failure(FailureReason.RETRY, "RuntimeError: Timed out waiting 1000ms for recv", 0, "h", 50.0, 3, peer=True)
    evidence = verdict.Evidence(
        launcher_code=1,
        launcher_lines=[],
        failures=[waited],
        beats=[Beat(0, 9, 40.0, 3, "reward done", 1.0), Beat(1, 8, 39.0, 3, "reward judge", 1.0)],
        codes={0: 75, 1: -15},
        ended=frozenset(),
        out_of_memory=False,
        lines={},
    )
    found = verdict.cause(evidence)
    assert (found.rank, found.peer, found.reason) == (1, False, FailureReason.RETRY)
    assert "rank 1 did not arrive (rank 1 was at step 3: reward judge)" in found.sentence


def test_a_reason_in_words_counts_more_than_a_peer_that_was_aborted_for_it() -> None:
    evidence = verdict.Evidence(
        launcher_code=1,
        launcher_lines=[],
        failures=[Failure(FailureReason.DATA, "row 7 has no image", 1, "h", 50.0)],
        beats=[],
        codes={0: -signal.SIGABRT, 1: 65},
        ended=frozenset(),
        out_of_memory=False,
        lines={},
    )
    assert verdict.cause(evidence).rank == 1


@pytest.mark.parametrize(("node", "text"), [(0, "1/2 clients joined"), (1, "trying to connect to (127.0.0.1")])
def test_processes_that_never_find_each_other_are_worth_a_retry(bench: Bench, node: int, text: str) -> None:
    operator = {
        "PET_NNODES": "2",
        "PET_NODE_RANK": str(node),
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": free_port(),  # nobody comes there
        "PET_RDZV_CONF": "timeout=1,read_timeout=1",
    }
    ended = bench.run("print('never')", **operator)
    assert (ended.code, ended.said["reason"], ended.said["node"]) == (75, "retry", node)
    assert "find each other" in ended.said["sentence"]
    assert text in ended.said["sentence"]


EFFECTIVE = """
import sys
from torch.distributed.run import config_from_args, parse_args
config, *_ = config_from_args(parse_args(sys.argv[1:]))
print(config.rdzv_backend, config.rdzv_configs["timeout"])
"""


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_node_waits_for_the_others_as_long_as_a_job_may_wait_for_nodes(
    monkeypatch: pytest.MonkeyPatch, nodes: str
) -> None:
    for name, value in {"NNODES": nodes, "NODE_RANK": "0", "MASTER_ADDR": "m", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    work = Work("the_work")
    python, _, torchrun, *words = supervisor.command(work)
    assert torchrun == "torch.distributed.run"
    environment = supervisor._environment(work)
    done = subprocess.run([python, "-c", EFFECTIVE, *words], env=environment, capture_output=True, text=True)
    backend, timeout = done.stdout.split()
    assert backend == "static", done.stderr
    assert int(timeout) >= 30 * 24 * 3600


def test_processes_of_one_machine_keep_torchruns_own_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PET_RDZV_CONF", raising=False)
    assert "PET_RDZV_CONF" not in supervisor._environment(Work("the_work", processes=2))


def test_two_nodes_tell_the_cause_from_the_peer_and_the_cause_ends_first(bench: Bench) -> None:
    operator = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1"}
    operator["PET_MASTER_PORT"] = free_port()
    code = f"""
        {ERRORS.strip()}
        import os, pathlib, time
        folder = pathlib.Path(os.environ["FOLDER"])
        if os.environ["RANK"] == "1":
            (folder / "fallen").touch()
            time.sleep(2)
            raise DataError("row 7 has no image")
        while not (folder / "fallen").exists():
            time.sleep(0.05)
        raise RuntimeError("[/a/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1. This is typically caused by")
    """
    logs = [bench.folder / f"message-{node}" for node in (0, 1)]
    # The operator sets RANK to the node's own; torchrun sets it anew for each worker.
    nodes = [
        bench.start(code, "--termination_log", str(logs[node]), **operator, PET_NODE_RANK=str(node), RANK=str(node))
        for node in (0, 1)
    ]
    assert bench.wait(nodes[1]).code == 65
    assert nodes[0].poll() is None
    assert bench.wait(nodes[0]).code == 75
    peer, cause = (verdict.read_message(log.read_text()) for log in logs)
    assert peer is not None
    assert cause is not None
    assert (peer.peer, peer.sentence.rpartition(": ")[2]) == (True, "Connection closed by peer [127.0.0.1]:1.")
    assert (cause.peer, cause.rank, cause.sentence) == (False, 1, "row 7 has no image")


# --- signals ----------------------------------------------------------------------------------------------------------

LISTENS = """
    import os, pathlib, signal, sys, time
    folder = pathlib.Path(os.environ["FOLDER"])
    def stop(number, frame):
        with (folder / "farewell").open("a") as file:
            file.write(signal.Signals(number).name + "\\n")
        time.sleep(0.5)
        with (folder / "farewell").open("a") as file:
            file.write("done\\n")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    (folder / f"ready-{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_the_work_may_end_in_peace(bench: Bench, number: signal.Signals) -> None:
    process = bench.start(LISTENS)
    bench.wait_for("ready-0")
    process.send_signal(number)
    ended = bench.wait(process)
    assert (ended.code, ended.said["reason"]) == (143, "cancelled")
    assert number.name in ended.said["sentence"]
    assert (bench.folder / "farewell").read_text() == f"{number.name}\ndone\n"


def test_what_a_worker_says_of_its_checkpoint_when_stopped_is_kept(bench: Bench) -> None:
    process = bench.start(
        "from vqa_grpo.contract.failure import RetryError\n"
        + textwrap.dedent(LISTENS).replace("sys.exit(0)", "raise RetryError('stopped at step 3, checkpoint whole')")
    )
    bench.wait_for("ready-0")
    process.terminate()
    ended = bench.wait(process)
    assert (ended.code, ended.said["sentence"]) == (75, "stopped at step 3, checkpoint whole")


def test_an_error_that_the_signal_brings_about_does_not_hide_it(bench: Bench) -> None:
    process = bench.start(textwrap.dedent(LISTENS).replace("sys.exit(0)", "raise KeyError('a worker was killed')"))
    bench.wait_for("ready-0")
    process.terminate()
    ended = bench.wait(process)
    assert (ended.code, ended.said["sentence"]) == (143, "stopped by SIGTERM")


def test_under_torchrun_each_rank_gets_the_signal_once(bench: Bench) -> None:
    process = bench.start(LISTENS, "--processes", "2")
    bench.wait_for("ready-0")
    bench.wait_for("ready-1")
    process.terminate()
    assert bench.wait(process).code == 143
    assert sorted((bench.folder / "farewell").read_text().split()) == ["SIGTERM", "SIGTERM", "done", "done"]


def test_deaf_workers_are_killed_when_the_grace_is_over(bench: Bench) -> None:
    deaf = LISTENS.replace("(signal.SIGTERM, stop)", "(signal.SIGTERM, signal.SIG_IGN)")
    process = bench.start(deaf, "--processes", "2", "--grace_seconds", "1")
    pids = [int(bench.wait_for(f"ready-{rank}")) for rank in (0, 1)]
    process.terminate()
    ended = bench.wait(process)
    assert (ended.code, ended.said["reason"]) == (143, "cancelled")
    assert not any(map(alive, pids))
    assert 1 <= ended.seconds < 20


def test_a_second_signal_ends_it_at_once(bench: Bench) -> None:
    process = bench.start(LISTENS.replace("time.sleep(0.5)", "time.sleep(50)"), "--grace_seconds", "50")
    pid = int(bench.wait_for("ready-0"))
    process.terminate()
    bench.wait_for("farewell")
    process.terminate()
    assert bench.wait(process).code == 143
    assert not alive(pid)


# --- processes --------------------------------------------------------------------------------------------------------


def test_nothing_is_left_behind_not_even_in_a_session_of_its_own(bench: Bench) -> None:
    ended = bench.run(
        """
        import os, pathlib, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        (pathlib.Path(os.environ["FOLDER"]) / "child").write_text(str(child.pid))
        """
    )
    assert ended.code == 0
    assert not alive(int(bench.wait_for("child")))


@pytest.mark.skipif(sys.platform != "linux", reason="orphans go to the supervisor on Linux only")
def test_orphans_are_reaped_while_the_work_goes_on(bench: Bench) -> None:
    process = bench.start(
        """
        import os, pathlib, time
        folder = pathlib.Path(os.environ["FOLDER"])
        if os.fork() == 0:
            if os.fork() == 0:
                time.sleep(0.3)  # its parent is gone by then
            os._exit(0)
        os.wait()
        (folder / "ready").write_text("yes")
        while not (folder / "enough").exists():
            time.sleep(0.05)
        """
    )
    bench.wait_for("ready")
    time.sleep(1)
    states = [child.status() for child in psutil.Process(process.pid).children()]
    (bench.folder / "enough").write_text("yes")
    assert bench.wait(process).code == 0
    assert len(states) == 1
    assert psutil.STATUS_ZOMBIE not in states


# --- output -----------------------------------------------------------------------------------------------------------

TWO_VOICES = """
    import os, sys, warnings
    rank = os.environ["RANK"]
    for number in range(3):
        print(f"{rank}: line {number}", file=sys.stderr if number % 2 else sys.stdout)
    print(f"{rank}: warning: odd")
    try:
        1 / 0
    except ZeroDivisionError:
        import traceback
        traceback.print_exc()
    print(f"{rank}: all is well")
"""


@pytest.mark.parametrize("others", output.OTHERS)
def test_ranks_are_kept_apart_in_files_and_merged_readably(bench: Bench, others: str) -> None:
    ended = bench.run(TWO_VOICES, "--processes", "2", "--other_ranks", others)
    logs = [(bench.logs / f"rank-{rank}.log").read_text() for rank in (0, 1)]
    for rank, log in enumerate(logs):
        assert log.startswith("".join(f"{rank}: line {number}\n" for number in range(3)))
        assert log.endswith(f"ZeroDivisionError: division by zero\n{rank}: all is well\n")
    shown = ended.out.splitlines(keepends=True)
    assert "".join(line for line in shown if not line.startswith("[rank 1]")) == logs[0]
    second = "".join(line.removeprefix("[rank 1] ") for line in shown if line.startswith("[rank 1]"))
    if others == "problems":
        assert second.startswith("1: warning: odd\nTraceback (most recent call last):\n")
        assert second.endswith("    1 / 0\n    ~~^~~\nZeroDivisionError: division by zero\n")
    else:
        assert second == (logs[1] if others == "all" else "")


FLOOD = """
    import os, pathlib, sys
    for number in range(200_000):
        sys.stdout.write(f"line {number} of a flood that nobody could ever want to read\\n")
    sys.stdout.write("x" * 300_000 + "\\n")
    (pathlib.Path(os.environ["FOLDER"]) / "through").write_text("yes")
    raise ValueError("after the flood")
"""


def test_a_flood_is_cut_and_counted_and_the_file_is_bounded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "FILE_BYTES", 1 << 20)
    failure = bench.supervise(FLOOD)
    assert failure is not None
    assert failure.sentence == "ValueError: after the flood"
    out = capsys.readouterr().out
    assert out.startswith("line 0 of a flood")
    assert "lines left out here" in out
    assert len(out) < 2 << 20
    sizes = {path.name: path.stat().st_size for path in bench.logs.glob("rank-0*")}
    assert set(sizes) == {"rank-0.log", "rank-0.log.1"}
    assert max(sizes.values()) <= 1 << 20
    assert "after the flood" in (bench.logs / "rank-0.log").read_text()


def test_a_stdout_that_nobody_reads_does_not_hold_up_the_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        def write(self, text: str) -> None:
            bench.wait_for("through")

        def flush(self) -> None: ...

    monkeypatch.setattr(output, "_QUEUE", 10)
    monkeypatch.setattr(sys, "stdout", Stuck())
    failure = bench.supervise(FLOOD)
    assert failure is not None
    assert failure.sentence == "ValueError: after the flood"


@pytest.mark.parametrize("blocked", ["logs", "logs/rank-0.log"])
def test_logs_that_cannot_be_written_are_said_and_cost_nothing_else(
    bench: Bench, blocked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where the folder should be, and a folder where a file should."""
    if blocked == "logs":
        bench.logs.write_text("")
    else:
        (bench.folder / blocked).mkdir(parents=True)
    failure = bench.supervise("print('at work'); raise ValueError('its own reason')")
    assert failure is not None
    assert failure.sentence == "ValueError: its own reason"
    said = capsys.readouterr()
    assert said.out.startswith("at work\n")
    assert f"warning: {bench.logs / 'rank-0.log'} ends here: " in said.err


def test_a_line_without_an_end_is_shown_in_pieces(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.supervise("print('x' * 200_000, end='')") is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert {len(line) for line in lines} <= {4096, len(lines[-1])}


def test_a_worker_that_ends_at_once_is_heard(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        assert bench.supervise(f"import os; os.write(1, b'last words {number}'); os._exit(0)") is None
        assert capsys.readouterr().out == f"last words {number}\n"
