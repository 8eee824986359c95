"""Runs and model versions in MLflow.

A version is registered by reference: its source is the published model folder, nothing is uploaded again. It is
keyed on the folder's digest, so that a retried step finds its own version instead of making a second one. An
alias promotes; the version that it pointed to before is kept in a tag of its own, so that `rollback` knows the way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError, RetryError
from vqa_grpo.contract.layout import MLFLOW_RUN_TAG

DIGEST_TAG = "digest"
PREVIOUS_TAG = "vqa_grpo.previous_version"  # followed by a dot and the alias: each goes its own way


@dataclass(frozen=True)
class Registered:
    name: str
    version: str
    alias: str
    digest: str
    uri: str


def is_configured(tracking_uri: str) -> bool:
    """Whether anybody said where MLflow is. Its own default, a file in the current folder, dies with a pod."""
    return bool(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))


@contextmanager
def _client(tracking_uri: str) -> Iterator[Any]:
    """An MLflow client; what MLflow raises comes out as one line that names the server."""
    # MLflow's own seven retries keep a person waiting for four minutes; a step of a pipeline is retried as a whole.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    if not is_configured(tracking_uri):
        raise ConfigurationError("no MLflow is configured: set registry.tracking_uri or MLFLOW_TRACKING_URI")
    import mlflow
    from mlflow.exceptions import MlflowException

    where = tracking_uri or mlflow.get_tracking_uri()
    try:
        yield mlflow.MlflowClient(tracking_uri=tracking_uri or None)
    except MlflowException as error:
        kind = ConfigurationError if error.error_code in _NOT_WORTH_A_RETRY else RetryError
        raise kind(f"MLflow at {where}: {' '.join(str(error).split())[:300]}") from error
    except OSError as error:  # requests' connection errors are OSErrors
        raise RetryError(f"MLflow at {where} does not answer: {error}") from error


_NOT_WORTH_A_RETRY = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED")


def record_run(
    tracking_uri: str,
    experiment: str,
    run_id: str,
    metrics: dict[str, float],
    params: dict[str, str],
    tags: dict[str, str],
) -> str:
    """Write a run's metrics, params and tags, once; whoever opened the run before. Returns MLflow's own run id."""
    with _client(tracking_uri) as client:
        run = _opened(client, tracking_uri, experiment, run_id)
        if run.info.status == "FINISHED":
            return run.info.run_id
        for key, value in tags.items():
            client.set_tag(run.info.run_id, key, value)
        for key, value in params.items():
            client.log_param(run.info.run_id, key, value[:6000])
        for key, number in metrics.items():
            client.log_metric(run.info.run_id, metric_name(key), number)
        # Marked finished last: a run that was killed half-way stays RUNNING and is completed.
        client.set_terminated(run.info.run_id, "FINISHED")
        return run.info.run_id


def open_run(tracking_uri: str, experiment: str, run_id: str) -> str:
    """The MLflow run that stands for the pipeline's run, made where there is none yet: trainings are its children.

    One that failed and is tried again is open again; one that was recorded stays as it is.
    """
    with _client(tracking_uri) as client:
        run = _opened(client, tracking_uri, experiment, run_id)
        if run.info.status in ("FAILED", "KILLED"):
            client.update_run(run.info.run_id, "RUNNING")
        return run.info.run_id


def end_run(tracking_uri: str, mlflow_run_id: str, status: str) -> None:
    """Close a run of `open_run` and the trainings below it, as FINISHED, FAILED or KILLED. What is closed stays so."""
    with _client(tracking_uri) as client:
        run = client.get_run(mlflow_run_id)
        below = f"tags.`mlflow.parentRunId` = {_literal(mlflow_run_id)}"
        for one in (*client.search_runs([run.info.experiment_id], below), run):
            if one.info.status == "RUNNING":
                client.set_terminated(one.info.run_id, status)


def _opened(client: Any, tracking_uri: str, experiment: str, run_id: str) -> Any:
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, _artifacts(tracking_uri))
    known = client.search_runs([experiment_id], f"tags.`{MLFLOW_RUN_TAG}` = {_literal(run_id)}", max_results=1)
    return known[0] if known else client.create_run(experiment_id, run_name=run_id, tags={MLFLOW_RUN_TAG: run_id})


def _artifacts(tracking_uri: str) -> str | None:
    """Beside a sqlite file, where MLflow's default would be the current folder; a server has a place of its own."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///")).absolute().with_name("mlartifacts").as_uri()


def register(
    tracking_uri: str, name: str, alias: str, source: str, digest: str, mlflow_run_id: str, tags: dict[str, str]
) -> Registered:
    """Register the published folder `source` as a version of `name` and point `alias` at it.

    Returns the version that already carries `digest` where there is one.
    """
    with _client(tracking_uri) as client:
        same = f"name = {_literal(name)} and tags.`{DIGEST_TAG}` = {_literal(digest)}"
        _ensure_model(client, name)
        known = client.search_model_versions(same, max_results=1)
        if known:
            version = known[0]
        else:
            all_tags = {DIGEST_TAG: digest, **tags}
            version = client.create_model_version(name, source=source, run_id=mlflow_run_id or None, tags=all_tags)
        _point(client, name, alias, str(version.version))
        return Registered(name, str(version.version), alias, digest, version.source)


def models(tracking_uri: str, name: str) -> list[dict[str, Any]]:
    """The versions of a model, newest first, with their aliases, digests and sources; empty for no such model."""
    with _client(tracking_uri) as client:
        aliases = _aliases(client, name)
        versions = sorted(client.search_model_versions(f"name = {_literal(name)}"), key=lambda v: -int(v.version))
        return [
            {
                "version": str(v.version),
                "aliases": sorted(alias for alias, number in aliases.items() if str(number) == str(v.version)),
                "digest": v.tags.get(DIGEST_TAG, ""),
                "uri": v.source,
                "tags": dict(v.tags),
            }
            for v in versions
        ]


def promote(tracking_uri: str, name: str, alias: str, version: str) -> Registered:
    with _client(tracking_uri) as client:
        found = client.get_model_version(name, version)
        _point(client, name, alias, version)
        return Registered(name, version, alias, found.tags.get(DIGEST_TAG, ""), found.source)


def rollback(tracking_uri: str, name: str, alias: str) -> Registered:
    """Point the alias back at the version it left last. Raises ConfigurationError where there is none."""
    with _client(tracking_uri) as client:
        current = _aliases(client, name).get(alias)
        if current is None:
            raise ConfigurationError(f"model {name} has no alias {alias}: nothing to roll back")
        previous = client.get_model_version(name, str(current)).tags.get(f"{PREVIOUS_TAG}.{alias}")
        if not previous:
            raise ConfigurationError(f"{name}@{alias} is version {current} and was never another one")
        target = client.get_model_version(name, previous)
        client.set_registered_model_alias(name, alias, previous)
        return Registered(name, previous, alias, target.tags.get(DIGEST_TAG, ""), target.source)


def metric_name(name: str) -> str:
    """A metric's name as MLflow takes it: a question type may hold any character.

    >>> metric_name("by_type/ChartQA (human)//accuracy")
    'by_type/ChartQA _human_/accuracy'
    """
    parts = (re.sub(r"[^\w\-. :]", "_", part) for part in name[:250].split("/"))
    return "/".join(part for part in parts if part.strip(".")).lstrip(".") or "_"


def _literal(text: str) -> str:
    """A text inside an MLflow filter. Filters know two kinds of quotes and no escapes."""
    quote = '"' if "'" in text else "'"
    if quote in text or "\\" in text:
        raise ConfigurationError(f"MLflow cannot search for {text!r}: leave out backslashes and one kind of quotes")
    return f"{quote}{text}{quote}"


def _ensure_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _point(client: Any, name: str, alias: str, version: str) -> None:
    """Move the alias, remembering on the new version which one it left."""
    current = _aliases(client, name).get(alias)
    if str(current) == version:
        return
    if current is not None:
        client.set_model_version_tag(name, version, f"{PREVIOUS_TAG}.{alias}", str(current))
    client.set_registered_model_alias(name, alias, version)


def _aliases(client: Any, name: str) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
