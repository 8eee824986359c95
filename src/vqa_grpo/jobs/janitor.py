"""Deletes jobs that nobody follows any more: those of one run, or those whose run is gone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError, FailureReason, JobError
from vqa_grpo.jobs import outcome
from vqa_grpo.jobs.kind import JobKind, kind_named
from vqa_grpo.jobs.kubernetes_api import ApiError, ClusterApi, KubernetesApi, own_namespace
from vqa_grpo.jobs.launcher import Launcher, is_over
from vqa_grpo.jobs.patience import Patience, missing_is_fine
from vqa_grpo.jobs.spec import KINDS, MANAGED_BY, RUN_LABEL, run_label

_PATIENCE_SECONDS = 120.0
_ABSENT = (403, 404)  # a kind of job that is not installed, or that we may not touch: then none of them is ours


@dataclass(frozen=True)
class Place:
    """Jobs of one kind in one namespace."""

    kind: JobKind
    api: ClusterApi


def sweep(
    run_id: str, namespace: str = "", places: Sequence[Place] = (), sleep: Callable[[float], None] = time.sleep
) -> list[str]:
    """Delete what still runs of a run, whoever left it; the names of the jobs that were deleted.

    Finished jobs hold nothing but their logs, which somebody may want to read; their time to live removes them. Called
    in a pipeline's pod, it leaves alone what belongs to another pipeline run, of the same name, that goes on.
    """
    selector = f"{RUN_LABEL}={run_label(run_id)}"
    janitor = _Janitor(places or _everywhere(namespace), sleep)
    ours = janitor.own_workflow()
    return janitor.sweep(selector, lambda place, job: janitor.may_go(place, job, ours))


def sweep_orphans(
    namespace: str = "",
    dry_run: bool = False,
    places: Sequence[Place] = (),
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Delete the running jobs of ours whose pipeline run is gone or over; their names. `dry_run` only names them.

    A job without an owner was launched by hand, and one whose owner cannot be read may be needed: both stay.
    """
    janitor = _Janitor(places or _everywhere(namespace), sleep)
    return janitor.sweep(f"app.kubernetes.io/managed-by={MANAGED_BY}", janitor.is_orphan, dry_run)


class _Janitor:
    def __init__(self, places: Sequence[Place], sleep: Callable[[float], None]) -> None:
        self._places = places
        self._patiently = Patience(sleep, time.monotonic, _say)

    def sweep(
        self, selector: str, unwanted: Callable[[Place, dict[str, Any]], bool], dry_run: bool = False
    ) -> list[str]:
        deleted, trouble = [], ""
        for place, job in self._running(selector):
            name = job["metadata"]["name"]
            try:
                if not unwanted(place, job):
                    continue
                if not dry_run:
                    with missing_is_fine():
                        self._call(partial(place.api.delete, name), f"delete job {name}")
                deleted.append(name)
            except (ApiError, JobError) as error:  # the others can still be deleted
                trouble = f"job {name} may still run: {error}"
                _say(trouble)
        if trouble:
            raise JobError(trouble, FailureReason.RETRY)
        return deleted

    def own_workflow(self) -> str:
        """The uid of the Workflow whose pod this is; empty where it is none's, or nobody says."""
        with suppress(ApiError):
            launcher = Launcher(self._places[0].api, lambda _: None, os.environ.get("KFP_POD_NAME", ""))
            launcher.introduce(self._call)
            return launcher.workflow_uid
        return ""

    def may_go(self, place: Place, job: dict[str, Any], workflow: str) -> bool:
        """Whether a job belongs to `workflow`, or to no other that goes on; without a `workflow`, always."""
        owners = [owner["uid"] for owner in _owners(job) if owner["kind"] == "Workflow"]
        return not workflow or not owners or workflow in owners or self.is_orphan(place, job)

    def is_orphan(self, place: Place, job: dict[str, Any]) -> bool:
        owners = {owner["kind"]: owner for owner in _owners(job)}
        for kind, read in (("Workflow", place.api.workflow), ("Pod", place.api.pod)):
            if kind not in owners:
                continue
            name, uid = owners[kind]["name"], owners[kind]["uid"]
            try:
                owner = self._call(partial(read, name), f"get {kind} {name}")
            except ApiError as error:
                if error.status == 404:
                    return True
                raise
            if owner["metadata"]["uid"] != uid:
                return True
            if kind == "Workflow":
                return is_over(owner)
            return outcome.is_over(owner)
        return False

    def _running(self, selector: str) -> Iterator[tuple[Place, dict[str, Any]]]:
        refused: list[ApiError] = []
        for place in self._places:
            try:
                jobs = self._call(partial(place.api.jobs, selector), f"list {place.kind.title}s")
            except ApiError as error:
                if error.status not in _ABSENT:
                    raise JobError(f"{place.kind.title}s cannot be listed: {error}", FailureReason.RETRY) from error
                refused.append(error)
                continue
            for job in jobs:
                leaving = job["metadata"].get("deletionTimestamp")
                if not leaving and not place.kind.state(job).finished:
                    yield place, job
        if len(refused) == len(self._places):
            raise ConfigurationError(f"no jobs can be listed ({refused[0]}): bind the launcher's Role, see manifests/")

    def _call(self, call: Callable[[], Any], what: str) -> Any:
        return self._patiently(call, what, _PATIENCE_SECONDS)


def _owners(job: dict[str, Any]) -> list[dict[str, Any]]:
    return list(job["metadata"].get("ownerReferences") or ())


def _everywhere(namespace: str) -> list[Place]:
    namespace = namespace or own_namespace("--namespace")
    kinds = [kind_named(name) for name in KINDS]
    return [Place(kind, KubernetesApi(namespace, kind)) for kind in kinds]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # stdout is for the names
