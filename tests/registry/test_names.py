"""Names that people choose, written to a real MLflow and found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqa_grpo import registry
from vqa_grpo.contract.failure import ConfigurationError


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def record(tracking_uri: str, run_id: str, metrics: dict[str, float]) -> str:
    return registry.record_run(tracking_uri, "names", run_id, metrics, params={}, tags={})


def test_a_run_id_with_an_apostrophe_is_written_once_and_found_again(tracking_uri):
    first = record(tracking_uri, "o'brien's run", {"n": 1.0})
    assert record(tracking_uri, "o'brien's run", {"n": 1.0}) == first
    assert record(tracking_uri, "obriens run", {"n": 1.0}) != first


def test_question_types_of_any_name_become_metrics(tracking_uri):
    """They come from the data set's column `source`; the run has been trained and evaluated by then."""
    import mlflow

    types = ["what's it?", "", "..", "größe (cm)", "a/b", 'say "yes"', "x" * 400]
    run = record(tracking_uri, "types", {f"tuned/by_type/{kind}/n": 1.0 for kind in types})
    names = set(mlflow.MlflowClient(tracking_uri=tracking_uri).get_run(run).data.metrics)
    assert len(names) >= len(types) - 1  # two may become one
    assert all(name.startswith("tuned/by_type/") for name in names)


def test_a_model_name_with_an_apostrophe_is_registered_once_and_listed(tracking_uri, tmp_path):
    def register() -> registry.Registered:
        return registry.register(tracking_uri, "o'brien's model", "champion", str(tmp_path), "a digest", "", {})

    assert register() == register()
    (version,) = registry.models(tracking_uri, "o'brien's model")
    assert version["aliases"] == ["champion"]
    assert Path(version["uri"]) == tmp_path


def test_a_name_with_both_kinds_of_quotes_is_refused_in_words(tracking_uri):
    with pytest.raises(ConfigurationError, match="cannot search for"):
        record(tracking_uri, "o'brien's \"run\"", {})
