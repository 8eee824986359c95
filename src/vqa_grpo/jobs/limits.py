"""When a job has had its time: in a queue, without a sign of life, in all. Pure decisions."""

from __future__ import annotations

from dataclasses import dataclass

from vqa_grpo.contract.failure import FailureReason, JobError
from vqa_grpo.jobs.outcome import Waiting
from vqa_grpo.jobs.spec import JobSpec

# For an image that cannot be pulled, and for whatever else keeps a pod that has a node: it holds GPUs meanwhile.
BROKEN_START_SECONDS = 900.0
SLOW_START_SECONDS = 3600.0


@dataclass
class Since:
    """Since when a job is what it is, on the launcher's clock; None where it is not.

    `began`   since its first attempt was created
    `queued`  not all of its nodes run
    `broken`  a pod has a node and cannot start there
    `slow`    a pod has a node and does not start, for whatever reason
    `refused` a pod is not let into the cluster as it is
    `quiet`   running, and no new line in its log
    """

    began: float
    queued: float | None = None
    broken: float | None = None
    slow: float | None = None
    refused: float | None = None
    quiet: float | None = None


def overdue(spec: JobSpec, since: Since, now: float, waits: Waiting | None = None) -> JobError | None:
    """The verdict on a job that has had its time, None while it has some left. `waits`: what keeps one of its pods."""
    job = f"job {spec.name} deleted"
    why = f" ({waits.text})" if waits else ""
    if _over(since.refused, BROKEN_START_SECONDS, now):
        text = f"{job}: its pods were refused for {BROKEN_START_SECONDS:.0f} s{why}: "
        cure = "mend what refuses them, or see Pod Security in manifests/README.md"
        return JobError(text + cure, FailureReason.CONFIGURATION)
    for began, seconds in ((since.broken, BROKEN_START_SECONDS), (since.slow, SLOW_START_SECONDS)):
        if _over(began, seconds, now):
            text = f"{job}: a pod has had a node for {seconds:.0f} s and could not start{why}: mend its image, Secrets "
            return JobError(f"{text}or volumes", FailureReason.CONFIGURATION)
    if spec.queue_timeout_seconds and _over(since.queued, spec.queue_timeout_seconds, now):
        text = (
            f"{job}: not all of its {spec.num_nodes} nodes ran within {spec.queue_timeout_seconds} s{why}: free nodes, "
            "ask for less, or raise job.queue_timeout_seconds"
        )
        return JobError(text, FailureReason.RETRY)
    if is_stalled(spec, since, now):
        text = (
            f"{job}: nothing new in its log for {spec.stall_timeout_seconds} s: see there where it hung, or raise "
            "job.stall_timeout_seconds if it was at work"
        )
        return JobError(text, FailureReason.RETRY)
    if _over(since.began, spec.timeout_seconds, now):
        text = (
            f"{job} after {spec.timeout_seconds} s: raise job.timeout_seconds if it was at work, or free the nodes "
            f"that it waited for{why}"
        )
        return JobError(text, FailureReason.CANCELLED)
    return None


def is_stalled(spec: JobSpec, since: Since, now: float) -> bool:
    return bool(spec.stall_timeout_seconds) and _over(since.quiet, spec.stall_timeout_seconds, now)


def _over(since: float | None, seconds: float, now: float) -> bool:
    return since is not None and now - since >= seconds
