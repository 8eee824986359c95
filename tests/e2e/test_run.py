"""The main job from one command to a registered model, on real parts: easy-VQA, TRL, MLflow, SeaweedFS."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from running import CANARIES, STEPS, log_of, processes_of, run

from vqa_grpo.contract.verdict import prediction_schema
from vqa_grpo.evaluation.ask import FILE
from vqa_grpo.storage import embedded, publish
from vqa_grpo.storage.store import _client, open_store


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    if embedded.binary() is None:
        pytest.skip("no SeaweedFS on this platform")
    runs = tmp_path_factory.mktemp("e2e") / "runs"
    code, summary, seen = run(runs)
    assert code == 0, seen + log_of(runs)[-4000:]
    return runs, summary, seen


@pytest.fixture(scope="module")
def storage(finished: tuple[Path, dict[str, Any], str]) -> Iterator[None]:
    """The run's own S3, started again over its files; tests that run the pipeline again stand before its first use."""
    before = dict(os.environ)
    with embedded.serve(finished[0] / "s3") as environment:
        os.environ.update(environment)
        _client.cache_clear()
        yield
    os.environ.clear()
    os.environ.update(before)
    _client.cache_clear()


def test_the_summary_for_programs_is_the_file_under_latest(finished: Any) -> None:
    runs, summary, _ = finished
    assert json.loads((runs / "latest" / "summary.json").read_text()) == summary
    assert summary["status"] == "SUCCEEDED"
    for side in ("base", "tuned"):
        assert set(summary[side]) == {"n", "format_rate", "accuracy", "accuracy_ci", "accuracy_given_format", "by_type"}
    assert summary["gate"]["decision"] == "promote"
    assert set(summary["dataset"]["splits"]) == {"train", "validation", "test"}
    assert summary["seconds"]["train"] > 0


def test_a_second_run_reuses_everything_and_registers_nothing(finished: Any) -> None:
    import mlflow

    runs, summary, _ = finished
    code, again, seen = run(runs)
    assert code == 0
    assert again == summary
    for step in STEPS[:-1]:
        assert f"= {step}" in seen
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    assert len(client.search_model_versions("name = 'vqa-grpo'")) == 1


def test_its_numbers_follow_from_the_parquet_predictions(finished: Any, storage: None, tmp_path: Path) -> None:
    _, summary, _ = finished
    for side in ("base", "tuned"):
        folder = publish.fetch(f"s3://{embedded.BUCKET}/{summary['run_id']}/predictions/{side}", tmp_path)
        rows = pq.read_table(folder / FILE)
        assert rows.schema.equals(prediction_schema())
        rows = rows.to_pylist()
        assert summary[side]["n"] == len(rows) == 40
        assert summary[side]["accuracy"] == pytest.approx(sum(row["correct"] for row in rows) / len(rows))
        assert summary[side]["format_rate"] == pytest.approx(sum(row["outcome"] == "valid" for row in rows) / len(rows))


def test_mlflow_has_the_same_numbers_and_exactly_one_version_that_points_at_the_published_model(
    finished: Any, storage: None
) -> None:
    import mlflow

    runs, summary, _ = finished
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'vqa-grpo'")
    assert version.tags["digest"] == summary["model"]["digest"]
    assert version.source == summary["model"]["uri"]
    assert client.get_model_version_by_alias("vqa-grpo", "champion").version == version.version
    metrics = client.get_run(version.run_id).data.metrics
    assert metrics["tuned/accuracy"] == pytest.approx(summary["tuned"]["accuracy"])
    assert metrics["base/format_rate"] == pytest.approx(summary["base"]["format_rate"])
    names = {entry.name for entry in open_store(version.source).entries()}
    assert {"config.json", "model.safetensors", "prompt.txt", "training.json", "manifest.json"} <= names
    assert publish.get(version.source.rpartition("/")[0]).digest == version.tags["digest"]


def test_the_registered_model_loads_and_answers(finished: Any, storage: None, tmp_path: Path) -> None:
    from vqa_grpo.models.load import load_model, load_processor

    _, summary, _ = finished
    folder = publish.fetch(summary["model"]["uri"].rpartition("/")[0], tmp_path)
    model, processor = load_model(str(folder)), load_processor(str(folder))
    assert sum(parameter.numel() for parameter in model.parameters()) > 1_000_000
    assert processor.tokenizer.padding_side == "left"


def test_a_person_sees_every_step_and_none_of_kubeflows_json(finished: Any) -> None:
    runs, _, seen = finished
    for step in STEPS:
        assert f"✓ {step}" in seen
    for words in ("executor_input", '"parameterValues"', "KFP Executor"):
        assert words not in seen
        assert words not in log_of(runs)


def test_the_report_is_one_file_that_loads_nothing(finished: Any) -> None:
    runs, summary, _ = finished
    text = (runs / "latest" / "report.html").read_text()
    assert summary["run_id"] in text
    loaded = []

    class Loads(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            loaded.extend(value for name, value in attributes if name in ("src", "href") and value)

    Loads().feed(text)
    assert all(value.startswith(("data:", "#")) for value in loaded)
    assert "<script" not in text


def test_nothing_is_left_running(finished: Any) -> None:
    assert processes_of(finished[0]) == []


def test_no_secret_is_in_what_a_person_saw_or_in_any_file_or_object_of_the_run(finished: Any, storage: None) -> None:
    """Reports, logs, Kubeflow's own folders, MLflow's database, published models: everything that is kept or shown."""
    runs, _, seen = finished
    keys = runs / "s3" / "keys"
    secrets = [word.encode() for word in (*keys.read_text().split(), *CANARIES.values())]
    store = open_store(f"s3://{embedded.BUCKET}")
    everything = {"seen": seen.encode()}
    everything |= {entry.name: store.read(entry.name) or b"" for entry in store.entries()}
    own = (path for path in runs.rglob("*") if path.is_file() and not path.is_relative_to(runs / "s3"))
    everything |= {str(path): path.read_bytes() for path in own}
    assert {"pipeline.log", "summary.json", "report.html", "mlflow.db"} <= {Path(name).name for name in everything}
    assert [name for name, content in everything.items() if any(secret in content for secret in secrets)] == []
