"""A job on this machine: one process, or torchrun over several."""

from __future__ import annotations

import os
from pathlib import Path

from vqa_grpo.contract.failure import ConfigurationError, FailureReason, JobError
from vqa_grpo.jobs.spec import JobSpec
from vqa_grpo.jobs.supervisor import GRACE_SECONDS, Work, supervise


def run(spec: JobSpec, grace_seconds: float = GRACE_SECONDS) -> None:
    """Run the job and wait for it; its output goes to our stdout, line by line.

    SIGTERM and SIGINT are passed on, and the job has `grace_seconds` to end; a second signal ends it at once. No
    process of the job outlives this call. Raises JobError when the job fails, is stopped, or takes too long.
    """
    if spec.num_nodes > 1:
        raise ConfigurationError(
            f"job.num_nodes is {spec.num_nodes}, but this machine is one node: set it to 1, or job.launcher=pytorchjob"
        )
    logs = os.environ.get("VQA_GRPO_LOGS")
    work = Work(
        spec.module,
        spec.arguments,
        processes=spec.processes_per_node,
        environment=spec.environment,
        log_dir=Path(logs) if logs else None,
        grace_seconds=grace_seconds,
        timeout_seconds=spec.timeout_seconds,
    )
    if failure := supervise(work).failure:
        called_off = failure.reason is FailureReason.CANCELLED
        raise JobError(f"job {spec.name} {failure.sentence}" if called_off else failure.sentence, failure.reason)
