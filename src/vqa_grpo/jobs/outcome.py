"""What a job's pods and events say, in words: why it waits, and why it failed.

A failure is read from what the pods left behind: the supervisor's word, else exit codes and last lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from vqa_grpo.contract.failure import FailureReason, JobError, reason_of
from vqa_grpo.jobs.verdict import read_message, sentence

_UNSPECIFIC = (FailureReason.INTERNAL, FailureReason.CANCELLED)  # also what a peer of the failed process leaves
_COMING = (None, "ContainerCreating", "PodInitializing")
# Nothing that a free node would cure: the pod has one, and holds its GPUs there.
_BROKEN = (
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"),
    *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
)


class Ended(NamedTuple):
    """A pod that ended badly; `peer` when only for want of another pod. `lines` are its last, as far as it left any."""

    pod: str
    at: str
    reason: FailureReason
    sentence: str
    peer: bool = False
    lines: Sequence[str] = ()


class Waiting(NamedTuple):
    """Why a pod does not start; `broken` where waiting alone will not help."""

    reason: str
    message: str
    broken: bool = False

    @property
    def text(self) -> str:
        return _line(f"{self.reason}: {self.message}").rstrip(": ")


def ended_badly(pod: Mapping[str, Any], container: str, log_tail: Sequence[str] = ()) -> Ended | None:
    """How a pod failed, None where it did not. `container` trains; `log_tail` is the end of its log, if it has one."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if status.get("phase") == "Succeeded":
        return None
    if lost := _lost(status):
        # Evicted, preempted, or its node went away: nothing the job did, so another node may do.
        return Ended(name, _ended_at(status, container), FailureReason.RETRY, lost, lines=log_tail)
    for each in _containers(status, container):
        ended = (each.get("state") or {}).get("terminated")
        if not ended or ended["exitCode"] == 0:
            continue
        at, message = ended.get("finishedAt") or "", ended.get("message") or ""
        if said := read_message(message):
            since = datetime.fromtimestamp(said.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if said.time else at
            text = f"rank {said.rank}: {said.sentence}" if said.rank else said.sentence
            return Ended(name, since, said.reason, text, said.peer, log_tail or _lines_in(message))
        lines = log_tail or message.splitlines()
        if ended.get("reason") == "OOMKilled":
            text = "out of memory (OOMKilled): raise job.memory"
            return Ended(name, at, FailureReason.OUT_OF_MEMORY, text, lines=lines)
        return Ended(name, at, reason_of(ended["exitCode"]), sentence(ended["exitCode"], lines), lines=lines)
    return None


def is_clear(ended: Iterable[Ended]) -> bool:
    """Whether a cause is among those that ended: a peer of it tells only that another pod is to blame."""
    return any(not pod.peer and pod.reason not in _UNSPECIFIC for pod in ended)


def in_order(ended: Iterable[Ended]) -> list[Ended]:
    """Those that ended badly, the cause first: the pod that failed first, for the others only lost their peer."""
    return sorted(ended, key=lambda pod: (pod.peer, pod.at, pod.reason in _UNSPECIFIC))


def failure(job: str, message: str, ended: Sequence[Ended]) -> JobError:
    """The verdict on a Failed job, from the operator's `message` and the pods that ended badly."""
    message = _line(message) or "failed"
    if "deadline" in message.replace(job, "").lower():
        return JobError(f"job {job}: {message}: raise job.timeout_seconds", FailureReason.CANCELLED)
    if not ended:
        return JobError(f"job {job}: {message} (no failed pod is left to ask why)", FailureReason.RETRY)
    first = in_order(ended)[0]
    text = f"job {job}: {first.pod}: {first.sentence}"
    if first.reason is FailureReason.CANCELLED:  # not by us: who calls a job off deletes it
        return JobError(f"{text} (stopped from outside)", FailureReason.RETRY)
    return JobError(text, first.reason)


def restartable(reason: FailureReason) -> bool:
    """Whether the same job may do better on other nodes. A job out of memory would be so again; where the node was
    short of it, Kubernetes says Evicted, which is a retry."""
    return reason.retryable and reason is not FailureReason.OUT_OF_MEMORY


def waiting(pod: Mapping[str, Any], container: str) -> Waiting | None:
    """Why a pod does not start; None where nothing keeps it."""
    status = pod.get("status") or {}
    if status.get("phase") != "Pending":
        return None
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Waiting(condition.get("reason") or "not scheduled", condition.get("message") or "")
    for each in _containers(status, container):
        state = (each.get("state") or {}).get("waiting") or {}
        if state.get("reason") not in _COMING:
            return Waiting(state["reason"], state.get("message") or "", state["reason"] in _BROKEN)
    return None


def has_node(pod: Mapping[str, Any]) -> bool:
    return bool((pod.get("spec") or {}).get("nodeName"))


def complaint(event: Mapping[str, Any], job: str) -> Waiting | None:
    """What an event says against a job, its pods or its Kueue workload; None where it is about something else."""
    about = event.get("involvedObject") or {}
    name = about.get("name") or ""
    ours = name == job or name.startswith(f"{job}-") or (about.get("kind") == "Workload" and f"-{job}-" in name)
    return Waiting(event.get("reason") or "", event.get("message") or "") if ours else None


def gist(text: str) -> str:
    """A message without its numbers and pod names' ends, by which it is the same for every pod and at every poll."""
    return re.sub(r"\d+", "#", text)


def _lost(status: Mapping[str, Any]) -> str:
    disrupted = [
        each
        for each in status.get("conditions") or ()
        if each.get("type") == "DisruptionTarget" and each.get("status") == "True"
    ]
    if not disrupted and not (status.get("phase") == "Failed" and status.get("reason")):
        return ""
    first = disrupted[0] if disrupted else {}
    why = status.get("reason") or first.get("reason") or "disrupted"
    return _line(f"{why}: {status.get('message') or first.get('message') or ''}").rstrip(": ")


def _containers(status: Mapping[str, Any], container: str) -> list[dict[str, Any]]:
    """Those whose end is the pod's end: init containers and ours, but no sidecar that something injected."""
    ours = [c for c in status.get("containerStatuses") or () if c.get("name") == container]
    return [*(status.get("initContainerStatuses") or ()), *ours]


def _ended_at(status: Mapping[str, Any], container: str) -> str:
    ends = ((c.get("state") or {}).get("terminated") or {} for c in _containers(status, container))
    return min((end["finishedAt"] for end in ends if end.get("finishedAt")), default="")


def _lines_in(message: str) -> list[str]:
    """The last lines of the process at fault, which the supervisor's message holds."""
    try:
        return [str(line) for line in json.loads(message.strip().splitlines()[-1]).get("lines") or ()]
    except (ValueError, IndexError, AttributeError):
        return []


def _line(text: str) -> str:
    return " ".join(text.split())
