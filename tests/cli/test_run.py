"""`vqa-grpo run` from outside: a whole run, a failed one, and the ways in which a run is refused."""

from __future__ import annotations

import fcntl
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RUN_ID = "o'brien's run"


def run(environment: dict[str, str], source: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from vqa_grpo.cli import main; main()", "run", *map(str, arguments)]
    command += ["--run-id", RUN_ID, "--set", f"data.source={json.dumps(str(source))}"]
    own = ("VQA_GRPO_WORK", "VQA_GRPO_CACHE", "VQA_GRPO_PROGRESS")  # `run` sets these itself
    environment = {key: value for key, value in environment.items() if key not in own}
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def whole(stand_in: Callable[..., dict[str, str]], source: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run to the end, and the folder it ran in."""
    work = tmp_path_factory.mktemp("whole")
    done = run(stand_in(work), source, "--runs", work / "runs", "--storage", work / "out", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return done, work


def test_programs_get_one_line_of_json_and_people_the_rest(whole):
    done, work = whole
    (line,) = done.stdout.splitlines()
    summary = json.loads(line)
    assert summary == json.loads((work / "runs" / "latest" / "summary.json").read_text())
    assert (summary["run_id"], summary["status"], summary["gate"]["decision"]) == (RUN_ID, "SUCCEEDED", "promote")
    assert (summary["tuned"]["accuracy"], summary["base"]["accuracy"]) == (1.0, 0.0)
    assert "gate: promote" in done.stderr
    assert "registered: vqa-grpo version 1, which this run made @champion" in done.stderr


def test_each_step_is_one_line_in_order(whole):
    done, _ = whole
    steps = re.findall(r"^✓ (\w+) +done", done.stderr, re.MULTILINE)
    # The stand-in for the base model announces nothing.
    assert set(steps[:2]) == {"convert", "validate"}  # neither waits for the other
    assert steps[2:] == ["train", "evaluate", "decide", "register", "finish"]


def test_a_run_leaves_report_log_and_results_and_no_scratch(whole):
    _, work = whole
    folder = work / "runs" / RUN_ID
    assert (work / "runs" / "latest").resolve() == folder
    assert "<html" in (folder / "report.html").read_text()
    log = (folder / "pipeline.log").read_text()
    assert "finish-run" in log
    assert "parameterValues" not in log
    assert not list((work / "runs").rglob("tmp-*"))


@pytest.mark.full
def test_the_same_run_again_reuses_every_step(whole, stand_in, source):
    _, work = whole
    again = run(stand_in(work), source, "--runs", work / "runs", "--storage", work / "out")
    assert again.returncode == 0, again.stderr
    reused = re.findall(r"^= (\w+) +unchanged, reused", again.stdout, re.MULTILINE)
    assert set(reused[:2]) == {"convert", "validate"}  # neither waits for the other
    assert reused[2:] == ["train", "evaluate", "decide", "register"]


def test_a_run_that_fails_says_which_step_and_why_in_one_line_with_the_reason_s_exit_code(stand_in, source, tmp_path):
    environment = stand_in(tmp_path, blame="train")
    done = run(environment, source, "--runs", tmp_path / "runs", "--storage", tmp_path / "out")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: train: the job's process was killed: give it more memory; log: ")
    assert done.returncode == 137
    assert "Traceback" not in done.stdout + done.stderr
    assert Path(line.split("; log: ")[1]).is_file()
    assert json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())["status"] == "FAILED"


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused_run(refused: Callable[..., str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run that must be refused before its pipeline begins."""
    import os
    import signal

    from vqa_grpo.cli import run as module

    def pipeline(*_: Any) -> None:
        raise AssertionError("the pipeline was started")

    monkeypatch.setattr(module, "_pipeline", pipeline)
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)

    def call(code: int, *arguments: object) -> str:
        settings = ("--set", f"data.source={json.dumps(str(source))}")
        return refused(code, "run", *settings, *arguments)

    yield call
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(before)


def test_a_second_run_in_the_same_folder_is_refused(refused_run, tmp_path):
    (tmp_path / "runs").mkdir()
    with (tmp_path / "runs" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = refused_run(78, "--runs", tmp_path / "runs", "--storage", tmp_path / "out")
    assert "another run is using" in said
    assert "--runs" in said
    assert not (tmp_path / "out").exists()


def test_a_port_in_use_is_named(refused_run, tmp_path):
    with socket.socket() as taken:
        port = bind_to_any(taken)
        taken.listen()
        said = refused_run(78, "--runs", tmp_path / "runs", "--s3-port", port)
    assert f"port {port} " in said
    assert "is in use" in said


def bind_to_any(taken: socket.socket) -> int:
    """A port that has a gRPC twin, 10,000 above it; the system's own choice often has none."""
    for port in range(23_000, 32_000):
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    raise AssertionError("9,000 ports are taken")


@pytest.mark.parametrize("where", ["--runs", "--storage"])
def test_a_folder_that_cannot_be_written_is_named(refused_run, tmp_path, where):
    (tmp_path / "file").write_text("x")
    places = {"--runs": tmp_path / "runs", "--storage": tmp_path / "out"} | {where: tmp_path / "file" / "below"}
    said = refused_run(78, *(word for pair in places.items() for word in pair))
    assert str(tmp_path / "file") in said


def test_a_wrong_setting_is_refused_before_anything_is_started_or_written(refused_run, tmp_path):
    """Also before the embedded S3, which takes its seconds."""
    assert "did you mean" in refused_run(78, "--runs", tmp_path / "runs", "--set", "train.max_step=1")
    assert "is not built in" in refused_run(78, "--runs", tmp_path / "runs", "--set", "data.source=builtin:x")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["work", "cache", "s3", "latest", "../up", "a/b"])
def test_a_run_is_not_named_like_what_lies_beside_it(refused_run, tmp_path, name):
    """`work` is emptied when a run begins."""
    refused_run(78, "--runs", tmp_path / "runs", "--storage", tmp_path / "out", "--run-id", name)
    assert not (tmp_path / "runs").exists()


def test_storage_that_nothing_understands_is_refused(refused_run, tmp_path):
    assert "only s3://" in refused_run(78, "--runs", tmp_path / "runs", "--storage", "gs://bucket")


def test_quick_and_another_configuration_are_not_both_taken(refused_run, tmp_path):
    """One of the two would be left out without a word."""
    said = refused_run(78, "--runs", tmp_path / "runs", "--quick", "--config", "my.yaml")
    assert "leave out --config my.yaml" in said
    assert not (tmp_path / "runs").exists()


# --- storage --------------------------------------------------------------------------------------------------------


def test_storage_of_no_runs_is_refused_and_makes_none(refused, tmp_path):
    assert "has no embedded S3" in refused(78, "storage", "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_storage_is_not_served_twice_at_once(stand_in, tmp_path):
    """Two servers over the same files would damage them."""
    (tmp_path / "runs" / "s3").mkdir(parents=True)
    with (tmp_path / "runs" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-c", "from vqa_grpo.cli import main; main()", "storage", "--runs"]
        done = subprocess.run(
            [*command, str(tmp_path / "runs")], env=stand_in(tmp_path), capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 78
    assert "another run is using" in done.stderr
