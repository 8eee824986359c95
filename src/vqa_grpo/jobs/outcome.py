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
# What the kubelet says of a pod that went over a limit of its own, which it would do anywhere.
_OWN_LIMIT = re.compile(r"exceed(s|ed) (the|its) .*limit")
_OPERATORS_INIT = "init-pytorch"  # what the training operator puts before every worker
_FROM_OUTSIDE = (137, 255)  # the kubelet's SIGKILL or its ContainerStatusUnknown, and what is left when a node restarts
_REFUSED = re.compile(r"violates PodSecurity|security context constraint|denied the request")  # at admission
_UNKNOWN = "~"  # after every time stamp


class Ended(NamedTuple):
    """A pod that ended badly; `peer` when only for want of another pod. `lines` are its last, as far as it left any.
    `at` and `node` are empty where nobody knows."""

    pod: str
    at: str
    reason: FailureReason
    sentence: str
    peer: bool = False
    lines: Sequence[str] = ()
    node: str = ""


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
    status = pod.get("status") or {}
    if status.get("phase") == "Succeeded":
        return None
    found = _lost(status, container) or _broken_off(status, container, log_tail)
    if not found:
        return None
    name, node = pod["metadata"]["name"], (pod.get("spec") or {}).get("nodeName") or ""
    return found._replace(pod=name, node=node, lines=log_tail or found.lines)


def is_clear(ended: Iterable[Ended]) -> bool:
    """Whether a cause is among those that ended: a peer of it tells only that another pod is to blame."""
    return any(not pod.peer and pod.reason not in _UNSPECIFIC for pod in ended)


def in_order(ended: Iterable[Ended]) -> list[Ended]:
    """Those that ended badly, the cause first: the pod that failed first, for the others only lost their peer. One of
    which nobody knows when it ended comes last."""
    return sorted(ended, key=lambda pod: (pod.peer, pod.at or _UNKNOWN, pod.reason in _UNSPECIFIC))


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
    inits, ours = _containers(status, container)
    for each in [*inits, *ours]:
        state = (each.get("state") or {}).get("waiting") or {}
        if state.get("reason") not in _COMING:
            return Waiting(state["reason"], state.get("message") or "", state["reason"] in _BROKEN)
    return None


def has_node(pod: Mapping[str, Any]) -> bool:
    return bool((pod.get("spec") or {}).get("nodeName"))


def is_over(pod: Mapping[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def complaint(event: Mapping[str, Any], job: str) -> Waiting | None:
    """What an event says against a job, its pods or its Kueue workload; None where it is about something else."""
    about = event.get("involvedObject") or {}
    name = about.get("name") or ""
    ours = name == job or name.startswith(f"{job}-") or (about.get("kind") == "Workload" and f"-{job}-" in name)
    message = event.get("message") or ""
    return Waiting(event.get("reason") or "", message, bool(_REFUSED.search(message))) if ours else None


def gist(text: str) -> str:
    """A message without its numbers and pod names' ends, by which it is the same for every pod and at every poll."""
    return re.sub(r"\d+", "#", text)


def _lost(status: Mapping[str, Any], container: str) -> Ended | None:
    """A pod that was evicted, preempted, or whose node went away: nothing the job did, so another node may do; except
    that the kubelet also evicts what goes over a limit of its own."""
    disrupted = [
        each
        for each in status.get("conditions") or ()
        if each.get("type") == "DisruptionTarget" and each.get("status") == "True"
    ]
    if not disrupted and not (status.get("phase") == "Failed" and status.get("reason")):
        return None
    first = disrupted[0] if disrupted else {}
    why = status.get("reason") or first.get("reason") or "disrupted"
    text = _line(f"{why}: {status.get('message') or first.get('message') or ''}").rstrip(": ")
    at = _ended_at(status, container) or first.get("lastTransitionTime") or ""
    if _OWN_LIMIT.search(text):
        text += ": raise job.shared_memory" if '"shm"' in text else ": raise job.ephemeral_storage"
        return Ended("", at, FailureReason.CONFIGURATION, text)
    return Ended("", at, FailureReason.RETRY, text)


def _broken_off(status: Mapping[str, Any], container: str, log_tail: Sequence[str]) -> Ended | None:
    """A pod whose container ended badly, by what that left behind."""
    culprit = _culprit(status, container)
    if not culprit:
        return None
    ended = culprit["state"]["terminated"]
    at, message, code = _finished(ended), ended.get("message") or "", ended["exitCode"]
    lines = log_tail or message.splitlines()
    if said := read_message(message):
        since = datetime.fromtimestamp(said.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if said.time else at
        text = f"rank {said.rank}: {said.sentence}" if said.rank else said.sentence
        return Ended("", since, said.reason, text, said.peer, log_tail or _lines_in(message))
    if ended.get("reason") == "OOMKilled":
        return Ended("", at, FailureReason.OUT_OF_MEMORY, "out of memory (OOMKilled): raise job.memory", lines=lines)
    if culprit["name"] == _OPERATORS_INIT:
        text = (
            f"{_OPERATORS_INIT} waited for the master in vain: where the master's image or node takes long, raise the "
            "training operator's --pytorch-init-container-max-tries"
        )
        return Ended("", at, FailureReason.RETRY, text, peer=True, lines=lines)
    if code in _FROM_OUTSIDE:  # our supervisor says so itself when a process of ours ended like that
        text = f"ended from outside ({ended.get('reason') or 'killed'}, exit code {code})"
        return Ended("", at, FailureReason.RETRY, text, lines=lines)
    return Ended("", at, reason_of(code), sentence(code, lines), lines=lines)


def _culprit(status: Mapping[str, Any], container: str) -> dict[str, Any] | None:
    """The container that ended badly: ours, or an init container where ours never began. A sidecar decides nothing,
    and since Kubernetes 1.29 those are among the init containers."""
    inits, ours = _containers(status, container)
    for each in ours:
        if (each.get("state") or {}).keys() & {"terminated", "running"}:
            return each if _code(each) else None
    return next((each for each in inits if _code(each)), None)


def _containers(status: Mapping[str, Any], container: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What came before ours, and ours; no sidecar that something injected."""
    ours = [c for c in status.get("containerStatuses") or () if c.get("name") == container]
    return list(status.get("initContainerStatuses") or ()), ours


def _code(container: Mapping[str, Any]) -> int:
    """A container's exit code; 0 while it runs."""
    return int(((container.get("state") or {}).get("terminated") or {}).get("exitCode") or 0)


def _ended_at(status: Mapping[str, Any], container: str) -> str:
    inits, ours = _containers(status, container)
    ends = [_finished((each.get("state") or {}).get("terminated") or {}) for each in [*inits, *ours]]
    return min((end for end in ends if end), default="")


def _finished(ended: Mapping[str, Any]) -> str:
    """When a container ended; empty where the kubelet does not know and writes the year 1."""
    at = str(ended.get("finishedAt") or "")
    return "" if at.startswith("0001") else at


def _lines_in(message: str) -> list[str]:
    """The last lines of the process at fault, which the supervisor's message holds."""
    try:
        return [str(line) for line in json.loads(message.strip().splitlines()[-1]).get("lines") or ()]
    except (ValueError, IndexError, AttributeError):
        return []


def _line(text: str) -> str:
    return " ".join(text.split())
