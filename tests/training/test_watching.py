"""Who watches a training sees its metrics in MLflow and TensorBoard, and what the model says with its pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import warm
from warm import Rank

from vqa_grpo import registry
from vqa_grpo.contract.layout import RUN_VARIABLE

STEPS = 8


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def options(place: Path, output: Path, *more: str) -> list[str]:
    return [
        *warm.options(place / "model", place / "data", output, *more),
        "--save_steps",
        "2",
        "--max_steps",
        str(STEPS),
    ]


def children(tracking: str, parent_run: str) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(tracking)
    experiment = client.get_experiment_by_name("watching")
    return client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent_run}'")


def test_a_training_is_a_child_run_that_only_a_real_resume_continues(
    parent: warm.Parent, place: Path, tracking: str, tmp_path: Path
) -> None:
    import mlflow

    opened = registry.open_run(tracking, "watching", "night-1")
    where = {"MLFLOW_TRACKING_URI": tracking, "MLFLOW_EXPERIMENT_NAME": "watching", RUN_VARIABLE: "night-1"}

    def go(output: str, *more: str, ranks: int = 1, **how: Any) -> list[int]:
        argv = options(place, tmp_path / output, "--report_to", "mlflow", "--resume_from_checkpoint", "true", *more)
        return parent.run([Rank(argv, where)] * ranks, tmp_path / "log", **how)

    codes = go("first", journal=tmp_path / "journal", term=(0, 1))
    assert codes == [75], (tmp_path / "log").read_text()[-3000:]
    (interrupted,) = children(tracking, opened)
    assert interrupted.info.status == "KILLED"
    assert go("first") == [0], (tmp_path / "log").read_text()[-3000:]
    (resumed,) = children(tracking, opened)
    assert resumed.info.run_id == interrupted.info.run_id
    assert resumed.info.status == "FINISHED"
    assert resumed.data.params["max_steps"] == str(STEPS)
    history = mlflow.MlflowClient(tracking).get_metric_history(resumed.info.run_id, "rewards/ids/mean")
    assert [metric.step for metric in history] == list(range(1, STEPS + 1))

    # A start from another run's checkpoint is a run of its own, and two ranks are still one run.
    assert go("second", "--resume_from", str(tmp_path / "first" / "checkpoint-6")) == [0]
    assert len(children(tracking, opened)) == 2
    assert go("third", ranks=2) == [0, 0], (tmp_path / "log").read_text()[-3000:]
    assert len(children(tracking, opened)) == 3


def test_sigterm_in_the_last_step_takes_nothing_from_a_run_that_finishes(
    parent: warm.Parent, place: Path, tracking: str, tmp_path: Path
) -> None:
    opened = registry.open_run(tracking, "watching", "night-2")
    where = {"MLFLOW_TRACKING_URI": tracking, "MLFLOW_EXPERIMENT_NAME": "watching", RUN_VARIABLE: "night-2"}
    argv = options(place, tmp_path / "run", "--report_to", "mlflow")
    codes = parent.run([Rank(argv, where)], tmp_path / "log", journal=tmp_path / "journal", term=(0, STEPS - 1))
    assert codes == [0], (tmp_path / "log").read_text()[-3000:]
    assert [run.info.status for run in children(tracking, opened)] == ["FINISHED"]


def test_an_mlflow_that_is_away_is_said_once_and_stops_nothing(
    parent: warm.Parent, place: Path, tmp_path: Path
) -> None:
    where = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    argv = options(place, tmp_path / "run", "--report_to", "mlflow", "tensorboard", "--save_strategy", "no")
    assert parent.run([Rank(argv, where)], tmp_path / "log") == [0], (tmp_path / "log").read_text()[-3000:]
    assert (tmp_path / "log").read_text().count("MLflow does not take") == 1
    assert list((tmp_path / "run" / "runs").rglob("events.out.tfevents.*"))


def test_no_picture_is_gathered_over_the_ranks_and_the_first_one_samples_its_own(
    parent: warm.Parent, place: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    where = {"GATHERED": str(tmp_path / "gathered")}
    more = ["--reward_funcs", "gathered:reward", "--save_strategy", "no", "--sample_completions_every", "5"]
    stale = tmp_path / "run" / "completions" / "step-000099.html"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier run")
    argv = options(place, tmp_path / "run", *more)
    assert parent.run([Rank(argv, where)] * 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()[-3000:]
    notes = [json.loads(line) for line in (tmp_path / "gathered").read_text().splitlines()]
    assert {note["rank"] for note in notes} == {"0", "1"}
    prompts = [note for note in notes if "'role': 'user'" in note["text"]]
    assert prompts
    assert not [note for note in notes if note["picture"]]
    assert max(note["bytes"] for note in prompts) < 4000  # the text of four prompts

    samples = tmp_path / "run" / "completions"
    assert sorted(path.stem for path in samples.glob("*.html")) == ["step-000000", "step-000005"]
    table = pq.read_table(samples / "step-000005.parquet")
    assert table.num_rows == 4  # of the eight of both ranks
    assert set(table.column("step").to_pylist()) == {5}
    assert all(value is not None for value in table.column("reward/reward").to_pylist())
    assert all(image["bytes"] for image in table.column("image").to_pylist())
    assert (samples / "step-000005.html").read_text().count("data:image/png;base64,") == 4
