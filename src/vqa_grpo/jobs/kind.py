"""The kinds of job that a cluster knows, behind one small Protocol: what differs between them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from vqa_grpo.jobs.spec import JobSpec

Phase = Literal["queued", "running", "succeeded", "failed"]


@dataclass(frozen=True)
class Condition:
    """Something the operator says of a job that holds now. `since` is its time there, as text."""

    type: str
    message: str = ""
    reason: str = ""
    since: str = ""


@dataclass(frozen=True)
class JobState:
    """What the operator says of a job.

    `phase`       queued until every pod was seen running, and again while it is suspended
    `message`     of the condition that decides the phase: why a job failed, or what it waits for; may be empty
    `conditions`  those that hold, to be announced
    """

    phase: Phase
    message: str = ""
    conditions: tuple[Condition, ...] = ()

    @property
    def finished(self) -> bool:
        return self.phase in ("succeeded", "failed")


class JobKind(Protocol):
    """A custom resource that runs a JobSpec's pods.

    `group`, `version`, `plural`  where it lies in the API
    `title`                       its name for people and in manifests, "PyTorchJob"
    `operator`                    what must be installed in the cluster, for errors
    `container`                   the name of the container that trains; the operator insists on it
    """

    @property
    def group(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def plural(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def operator(self) -> str: ...

    @property
    def container(self) -> str: ...

    def build_manifest(
        self, spec: JobSpec, owner: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The job for a spec. `owner` is an ownerReference, `environment` what `pod.inherited` gave.

        Raises ConfigurationError when there is no image, when a secret would stand where everybody who may read the
        job sees it, or when an override asks for what this kind cannot do.
        """

    def state(self, job: Mapping[str, Any]) -> JobState:
        """What a job found in the cluster is up to."""

    def pod_selector(self, name: str) -> str:
        """The label selector of a job's pods."""

    def is_first(self, pod: Mapping[str, Any]) -> bool:
        """Whether this pod has rank 0: its log is the job's."""


def kind_named(name: str) -> JobKind:
    """The kind that `job.launcher` and JobSpec.kind call `name`."""
    from vqa_grpo.jobs import pytorchjob, trainjob  # they take the types above from here

    kinds: dict[str, JobKind] = {"pytorchjob": pytorchjob.KIND, "trainjob": trainjob.KIND}
    return kinds[name]


def true_conditions(job: Mapping[str, Any]) -> tuple[Condition, ...]:
    """The conditions of a job that hold, in the operator's order."""
    found = (job.get("status") or {}).get("conditions") or ()
    return tuple(
        Condition(c["type"], c.get("message") or "", c.get("reason") or "", c.get("lastTransitionTime") or "")
        for c in found
        if c.get("status") == "True"
    )


def last_of(conditions: tuple[Condition, ...], kind: str) -> Condition | None:
    return next((condition for condition in reversed(conditions) if condition.type == kind), None)
