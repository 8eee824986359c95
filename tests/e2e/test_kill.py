"""Whatever ends a run, nothing runs on, nothing is half there, and the same command finishes the job."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
from running import STEPS, log_of, processes_of, run, start, wait_for

from vqa_grpo.storage import embedded, publish
from vqa_grpo.storage.store import _client, open_store

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(embedded.binary() is None, reason="no SeaweedFS on this platform"),
]


def reach(process: Any, runs: Path, step: str) -> None:
    """Wait until the run that `process` is has begun a step."""
    before = log_of(runs).count(f" {step} started")
    wait_for(lambda: log_of(runs).count(f" {step} started") > before or process.poll() is not None, 240, step)
    assert process.poll() is None, process.communicate()


def test_a_run_killed_in_each_step_and_started_again_finishes_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for step in STEPS:
        process = start(runs)
        reach(process, runs, step)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not processes_of(runs), 20, f"the end of every process after a kill in {step}")
    code, summary, seen = run(runs)
    assert code == 0, seen
    versions = mlflow.MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}").search_model_versions("")
    assert [(version.name, str(version.version)) for version in versions] == [("vqa-grpo", "1")]
    _check_storage(runs, summary)


def _check_storage(runs: Path, summary: dict[str, Any]) -> None:
    """Every READY leads to a whole folder, and the model is the one that was registered."""
    before = dict(os.environ)
    try:
        with embedded.serve(runs / "s3") as environment:
            os.environ.update(environment)
            _client.cache_clear()
            root = f"s3://{embedded.BUCKET}"
            ready = [entry.name for entry in open_store(root).entries() if entry.name.endswith("/READY")]
            beside = [name for name in ready if "/model-last/" in name or "/predictions/" in name]
            # No checkpoints are left, but validate, convert, base model; train, model, evaluate, decide, register.
            assert len(ready) - len(beside) == 8
            for name in ready:
                publish.fetch(f"{root}/{name.removesuffix('/READY')}", runs / "check")
            assert publish.get(f"{root}/{summary['run_id']}/model").digest == summary["model"]["digest"]
    finally:
        os.environ.clear()
        os.environ.update(before)
        _client.cache_clear()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    runs = tmp_path / "runs"
    process = start(runs)
    reach(process, runs, "prepare")
    process.send_signal(number)
    _, seen = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from here" in seen.lower()
    assert "Traceback" not in seen
    assert processes_of(runs) == []
