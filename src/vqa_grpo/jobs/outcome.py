"""Why a job failed, read from what its pods left behind: the supervisor's word, else exit codes and last lines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from vqa_grpo.contract.failure import FailureReason, JobError, reason_of
from vqa_grpo.jobs.verdict import read_message, sentence

CONTAINER = "pytorch"  # the operator insists on this name
_UNSPECIFIC = (FailureReason.INTERNAL, FailureReason.CANCELLED)  # also what a peer of the failed process leaves


class Ended(NamedTuple):
    """A pod that ended badly; `peer` when only for want of another pod."""

    pod: str
    at: str
    reason: FailureReason
    sentence: str
    peer: bool = False


def ended_badly(pod: dict[str, Any], log_tail: Sequence[str] = ()) -> Ended | None:
    """How a pod failed, or None where it did not. `log_tail` is the end of its log, where it can be had."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("phase") == "Succeeded":
        return None
    disrupted = [
        c for c in status.get("conditions") or () if c.get("type") == "DisruptionTarget" and c["status"] == "True"
    ]
    if disrupted or (status.get("phase") == "Failed" and status.get("reason")):
        # Evicted, preempted, or its node went away: nothing the job did, so another node may do.
        why = status.get("reason") or disrupted[0].get("reason", "disrupted")
        detail = status.get("message") or (disrupted[0].get("message", "") if disrupted else "")
        return Ended(name, _ended_at(status), FailureReason.RETRY, " ".join(f"{why}: {detail}".split()).rstrip(": "))
    for container in _containers(status):
        ended = container.get("state", {}).get("terminated")
        if not ended or ended["exitCode"] == 0:
            continue
        at = ended.get("finishedAt") or ""
        if said := read_message(ended.get("message") or ""):
            since = datetime.fromtimestamp(said.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if said.time else at
            text = f"rank {said.rank}: {said.sentence}" if said.rank else said.sentence
            return Ended(name, since, said.reason, text, said.peer)
        if ended.get("reason") == "OOMKilled":
            return Ended(name, at, FailureReason.OUT_OF_MEMORY, "out of memory (OOMKilled): raise job.memory")
        lines = log_tail or (ended.get("message") or "").splitlines()
        code = ended["exitCode"]
        return Ended(name, at, reason_of(code), sentence(code, lines))
    return None


def failure(job: str, condition: dict[str, Any], ended: Sequence[Ended]) -> JobError:
    """The verdict on a Failed job: the pod that failed first, for the others only lost their peer."""
    if ended:
        first = min(ended, key=lambda pod: (pod.peer, pod.at, pod.reason in _UNSPECIFIC))
        return JobError(f"job {job}: {first.pod}: {first.sentence}", first.reason)
    message = " ".join(str(condition.get("message") or condition.get("reason") or "failed").split())
    if "deadline" in message.lower():
        return JobError(f"job {job}: {message}; raise job.timeout_seconds", FailureReason.CANCELLED)
    return JobError(f"job {job}: {message} (no failed pod is left to ask why)", FailureReason.RETRY)


def waiting(pod: dict[str, Any]) -> str:
    """Why a pod does not start, in one line; empty where nothing keeps it."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending":
        return ""
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    for container in _containers(status):
        state = container.get("state", {}).get("waiting") or {}
        if state.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{state['reason']}: {state.get('message', '')}"
    return ""


def _containers(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Those whose end is the pod's end: init containers and ours, but no sidecar that something injected."""
    ours = [c for c in status.get("containerStatuses") or () if c.get("name") == CONTAINER]
    return [*(status.get("initContainerStatuses") or ()), *ours]


def _ended_at(status: dict[str, Any]) -> str:
    ends = (c.get("state", {}).get("terminated") or {} for c in _containers(status))
    return min((end["finishedAt"] for end in ends if end.get("finishedAt")), default="")
