"""Why a job failed, read from what it left behind: exit codes, the last lines of output, the state of its pods."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

from vqa_grpo.contract.failure import FailureReason, JobError, reason_of

CONTAINER = "pytorch"  # the operator insists on this name
_ERROR = re.compile(r"(?:\[[\w:]+\]:\s*)?error: (.+)")  # torchrun may put the rank in front
_TORCHRUN_EXIT = re.compile(r"\s*exitcode\s*:\s*(-?\d+)")
_UNSPECIFIC = (FailureReason.INTERNAL, FailureReason.CANCELLED)  # also what a peer of the failed process leaves


def reason_behind(exit_code: int, lines: Sequence[str]) -> FailureReason:
    """The reason for a failed process. torchrun exits 1 whatever its workers did, and prints their codes."""
    if exit_code == 1:
        # Its report ends with the root cause.
        codes = [int(match[1]) for line in lines if (match := _TORCHRUN_EXIT.match(line))]
        exit_code = codes[-1] if codes else exit_code
    return reason_of(exit_code)


def sentence(exit_code: int, lines: Sequence[str]) -> str:
    """One line for a person: the last error the process printed, else how it ended."""
    for line in reversed(lines):
        if match := _ERROR.match(line.rstrip()):
            return match[1]
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


class Ended(NamedTuple):
    """A pod that ended badly."""

    pod: str
    at: str
    reason: FailureReason
    sentence: str


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
        if ended.get("reason") == "OOMKilled":
            return Ended(name, at, FailureReason.OUT_OF_MEMORY, "out of memory (OOMKilled): raise job.memory")
        lines = log_tail or (ended.get("message") or "").splitlines()
        code = ended["exitCode"]
        return Ended(name, at, reason_behind(code, lines), sentence(code, lines))
    return None


def failure(job: str, condition: dict[str, Any], ended: Sequence[Ended]) -> JobError:
    """The verdict on a Failed job: the pod that failed first, for the others only lost their peer."""
    if ended:
        first = min(ended, key=lambda pod: (pod.at, pod.reason in _UNSPECIFIC))
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
