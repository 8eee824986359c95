"""MLflow: a run is recorded once, a model registered once, and an alias finds its way back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo import registry
from vqa_grpo.contract.failure import ConfigurationError, RetryError
from vqa_grpo.contract.layout import MLFLOW_RUN_TAG
from vqa_grpo.registry.mlflow_registry import DIGEST_TAG, metric_name
from vqa_grpo.report.metrics import clean_metrics

SOURCE = "s3://bucket/run/train/attempt-1"


def record(tracking: str, experiment: str, run_id: str = "run-1", **metrics: float) -> str:
    return registry.record_run(tracking, experiment, run_id, metrics, {"config": "{}"}, {"decision": "promote"})


def register(tracking: str, name: str, digest: str, alias: str = "champion", **more: Any) -> registry.Registered:
    arguments: dict[str, Any] = {"source": SOURCE, "mlflow_run_id": "", "tags": {"run_id": "run-1"}} | more
    return registry.register(tracking, name, alias, digest=digest, **arguments)


def aliases(tracking: str, name: str) -> dict[str, list[str]]:
    return {version["version"]: version["aliases"] for version in registry.models(tracking, name)}


# --- runs -------------------------------------------------------------------------------------------------------


def test_a_run_holds_its_metrics_params_and_tags(tracking: str, name: str) -> None:
    run = mlflow.MlflowClient(tracking).get_run(record(tracking, name, accuracy=0.5))
    assert run.data.metrics == {"accuracy": 0.5}
    assert run.data.params == {"config": "{}"}
    assert run.data.tags["decision"] == "promote"
    assert run.data.tags[MLFLOW_RUN_TAG] == "run-1"
    assert run.info.status == "FINISHED"


def test_the_same_run_is_recorded_once(tracking: str, name: str) -> None:
    first = record(tracking, name, accuracy=0.5)
    assert record(tracking, name, accuracy=0.9) == first
    assert mlflow.MlflowClient(tracking).get_run(first).data.metrics == {"accuracy": 0.5}
    assert record(tracking, name, "run-2") != first
    assert record(tracking, f"{name}-other") != first


def test_a_run_that_was_killed_half_way_is_completed(tracking: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_metric", die)
        with pytest.raises(KeyboardInterrupt):
            record(tracking, name, accuracy=0.5)
    again = record(tracking, name, accuracy=0.5)
    run = mlflow.MlflowClient(tracking).get_run(again)
    assert (run.data.metrics, run.info.status) == ({"accuracy": 0.5}, "FINISHED")
    assert record(tracking, name, accuracy=0.9) == again


def test_a_run_is_opened_once_and_is_the_one_that_is_recorded(tracking: str, name: str) -> None:
    """Trainings become its children long before there is anything to record."""
    opened = registry.open_run(tracking, name, "run-1")
    assert registry.open_run(tracking, name, "run-1") == opened
    assert mlflow.MlflowClient(tracking).get_run(opened).info.status == "RUNNING"
    assert record(tracking, name, accuracy=0.5) == opened
    assert registry.open_run(tracking, name, "run-1") == opened
    assert mlflow.MlflowClient(tracking).get_run(opened).info.status == "FINISHED"
    assert registry.open_run(tracking, name, "run-2") != opened


def test_what_a_failed_run_left_open_is_closed_with_its_trainings_and_opens_again(tracking: str, name: str) -> None:
    client = mlflow.MlflowClient(tracking)
    opened = registry.open_run(tracking, name, "run-1")
    experiment = client.get_run(opened).info.experiment_id
    hung, done = (client.create_run(experiment, tags={"mlflow.parentRunId": opened}).info.run_id for _ in range(2))
    client.set_terminated(done, "FINISHED")
    strangers = registry.open_run(tracking, name, "run-2")

    def statuses() -> list[str]:
        return [client.get_run(run).info.status for run in (opened, hung, done, strangers)]

    registry.end_run(tracking, opened, "FAILED")
    assert statuses() == ["FAILED", "FAILED", "FINISHED", "RUNNING"]
    registry.end_run(tracking, opened, "KILLED")
    assert statuses() == ["FAILED", "FAILED", "FINISHED", "RUNNING"]
    assert registry.open_run(tracking, name, "run-1") == opened
    assert statuses()[0] == "RUNNING"
    assert record(tracking, name, accuracy=0.5) == opened
    registry.end_run(tracking, opened, "FAILED")
    assert statuses()[0] == "FINISHED"


def test_no_number_that_is_not_finite_reaches_a_tracker(tracking: str, name: str) -> None:
    scores = {"base": {"accuracy": 0.5, "f1": math.nan}, "gain": math.inf, "blind": None, "by_type": {"a (b)": 1}}
    kept, dropped = clean_metrics(scores)
    run = mlflow.MlflowClient(tracking).get_run(record(tracking, name, **kept))
    assert run.data.metrics == {"base/accuracy": 0.5, "by_type/a _b_": 1.0}
    assert set(dropped) == {"base/f1", "gain", "blind"}


@pytest.mark.parametrize(
    "key", ["ChartQA (human)", "what?", "a//b", "/a/", "../a", "x" * 300, "100 %", "ü", "a\nb", "...", "", "a, b"]
)
def test_a_question_type_of_any_name_can_be_recorded(tracking: str, name: str, key: str) -> None:
    run = record(tracking, name, **{f"by_type/{key}/accuracy": 0.5, key: 0.25})
    assert 0.5 in mlflow.MlflowClient(tracking).get_run(run).data.metrics.values()


@given(st.text(max_size=300))
def test_a_metric_name_is_made_fit_once_and_for_all(text: str) -> None:
    fit = metric_name(text)
    assert 0 < len(fit) <= 250
    assert metric_name(fit) == fit


def test_a_name_that_is_fit_already_stays_as_it_is() -> None:
    assert metric_name("comparison/by_type/what color/gain_95.low") == "comparison/by_type/what color/gain_95.low"


# --- models -----------------------------------------------------------------------------------------------------


def test_a_model_that_is_registered_twice_has_one_version(tracking: str, name: str) -> None:
    first = register(tracking, name, "digest-1")
    assert register(tracking, name, "digest-1") == first
    assert first == registry.Registered(name, "1", "champion", "digest-1", SOURCE)
    assert aliases(tracking, name) == {"1": ["champion"]}


def test_a_new_digest_is_a_new_version_and_the_alias_moves(tracking: str, name: str) -> None:
    register(tracking, name, "digest-1")
    assert register(tracking, name, "digest-2").version == "2"
    assert aliases(tracking, name) == {"2": ["champion"], "1": []}
    newest, oldest = registry.models(tracking, name)
    assert (newest["digest"], oldest["digest"]) == ("digest-2", "digest-1")
    assert newest["tags"]["run_id"] == "run-1"


def test_the_same_digest_under_another_name_is_another_model(tracking: str, name: str) -> None:
    register(tracking, name, "digest-1")
    assert register(tracking, f"{name}-other", "digest-1").version == "1"


def test_a_version_names_its_run(tracking: str, name: str) -> None:
    run = record(tracking, name)
    version = register(tracking, name, "digest-1", mlflow_run_id=run).version
    assert mlflow.MlflowClient(tracking).get_model_version(name, version).run_id == run


def test_a_step_that_was_killed_before_the_alias_finishes_when_it_is_repeated(
    tracking: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", die)
        with pytest.raises(KeyboardInterrupt):
            register(tracking, name, "digest-1")
    assert aliases(tracking, name) == {"1": []}
    register(tracking, name, "digest-1")
    assert aliases(tracking, name) == {"1": ["champion"]}


def test_rollback_returns_to_the_version_before(tracking: str, name: str) -> None:
    register(tracking, name, "digest-1")
    register(tracking, name, "digest-2")
    back = registry.rollback(tracking, name, "champion")
    assert (back.version, back.digest, back.uri) == ("1", "digest-1", SOURCE)
    assert aliases(tracking, name) == {"2": [], "1": ["champion"]}


def test_promote_moves_the_alias_and_rollback_undoes_it(tracking: str, name: str) -> None:
    for digest in ("digest-1", "digest-2", "digest-3"):
        register(tracking, name, digest)
    assert registry.promote(tracking, name, "champion", "1").digest == "digest-1"
    assert registry.rollback(tracking, name, "champion").version == "3"


def test_registering_the_champion_again_does_not_lose_the_way_back(tracking: str, name: str) -> None:
    register(tracking, name, "digest-1")
    register(tracking, name, "digest-2")
    register(tracking, name, "digest-2")
    assert registry.rollback(tracking, name, "champion").version == "1"


def test_each_alias_has_its_own_way_back(tracking: str, name: str) -> None:
    register(tracking, name, "digest-1")
    register(tracking, name, "digest-2")
    register(tracking, name, "digest-3", alias="challenger")
    registry.promote(tracking, name, "challenger", "2")
    assert registry.rollback(tracking, name, "champion").version == "1"
    assert registry.rollback(tracking, name, "challenger").version == "3"


def test_nothing_to_roll_back_to_is_said(tracking: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match="has no alias champion: nothing to roll back"):
        registry.rollback(tracking, name, "champion")
    register(tracking, name, "digest-1")
    with pytest.raises(ConfigurationError, match="is version 1 and was never another one"):
        registry.rollback(tracking, name, "champion")


def test_a_model_that_is_not_there_has_no_versions(tracking: str, name: str) -> None:
    assert registry.models(tracking, name) == []


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["it's", 'a "quoted" one', "100 %", "`tick`", "a = 'b", "ümläut", "x; drop", "-- c"])
def test_strange_names_are_found_again(tracking: str, name: str, mark: str) -> None:
    strange = f"{name} {mark}"
    assert record(tracking, strange, strange) == record(tracking, strange, strange)
    first = register(tracking, strange, f"digest {mark}")
    assert register(tracking, strange, f"digest {mark}") == first
    assert [version["tags"][DIGEST_TAG] for version in registry.models(tracking, strange)] == [f"digest {mark}"]


@pytest.mark.parametrize("mark", ["both ' and \"", "back\\slash", "end\\"])
def test_a_name_that_no_filter_can_hold_is_refused_before_anything_is_made(tracking: str, name: str, mark: str) -> None:
    with pytest.raises(ConfigurationError, match="MLflow cannot search for"):
        register(tracking, name + mark, "digest")
    with pytest.raises(ConfigurationError, match="MLflow cannot search for"):
        record(tracking, name, mark)
    names = {model.name for model in mlflow.MlflowClient(tracking).search_registered_models()}
    assert name + mark not in names


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "version"), [("{name}", "9"), ("{name}", "first"), ("{name}-not-there", "1")])
def test_promoting_what_is_not_there_is_one_clear_line(tracking: str, name: str, model: str, version: str) -> None:
    register(tracking, name, "digest-1")
    with pytest.raises(ConfigurationError) as caught:
        registry.promote(tracking, model.format(name=name), "champion", version)
    assert str(caught.value).startswith(f"MLflow at {tracking}: ")
    assert "\n" not in str(caught.value)
    assert aliases(tracking, name) == {"1": ["champion"]}


def test_an_alias_or_name_that_mlflow_refuses_is_one_clear_line(tracking: str, name: str) -> None:
    for model, alias in ((name, "v1"), (f"{name}/x", "champion")):
        with pytest.raises(ConfigurationError, match=f"^MLflow at {tracking}: "):
            register(tracking, model, "digest-1", alias=alias)


def test_a_server_that_does_not_answer_is_worth_a_retry(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RetryError) as caught:
        registry.models("http://127.0.0.1:9", name)
    assert str(caught.value).startswith("MLflow at http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


def test_a_tracking_uri_of_an_unknown_kind_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigurationError, match="MLflow at nonsense://x"):
        registry.models("nonsense://x", name)


def test_without_an_mlflow_nothing_is_written_into_the_current_folder(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own default is a file there: in a pod it would be gone with the model's version in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigurationError, match="no MLflow is configured"):
        registry.models("", name)
    assert list(tmp_path.iterdir()) == []


def test_what_is_registered_is_an_mlflow_model_under_its_alias(
    tracking: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow downloads the published folder itself: nothing was uploaded to it."""
    from mlflow.models import Model

    from vqa_grpo.training import model_folder

    settings = {"vqa": {"reward_funcs": ["format"], "reward_combination": "additive"}, "grpo": {}, "model": {}}
    facts = dict.fromkeys(("model", "dataset", "dataset_digest", "rows", "steps", "prompt_digest"), "x")
    model_folder.write(tmp_path, {**facts, "versions": {}, "arguments": settings})
    register(tracking, name, "d1", source=str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    found = Model.load(f"models:/{name}@champion")
    assert found.flavors["python_function"]["loader_module"].endswith(".models.pyfunc")
    assert found.get_input_schema().input_names() == ["image", "question", "options"]
