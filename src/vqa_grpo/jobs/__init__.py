"""Where a job runs: on this machine, or on a cluster as a PyTorchJob or a TrainJob.

Knows images, commands and environment only.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs.kind import kind_named
from vqa_grpo.jobs.pod import inherited
from vqa_grpo.jobs.spec import KINDS, JobSpec, job_name

__all__ = ["KINDS", "JobSpec", "build", "job_name", "launch", "place", "sweep"]


def launch(spec: JobSpec, launcher: str = "auto") -> None:
    """Run the job and return when it has succeeded; raises JobError otherwise.

    `launcher` is local, pytorchjob, trainjob, or auto: a PyTorchJob inside a cluster, this machine elsewhere.
    """
    where = place(launcher)
    if where == "local":
        from vqa_grpo.jobs import local

        local.run(spec)
    elif where in KINDS:
        from vqa_grpo.jobs import cluster

        cluster.run(replace(spec, kind=where))
    else:
        raise ConfigurationError(f"job.launcher is {launcher!r}: use auto, local, {' or '.join(KINDS)}")


def place(launcher: str) -> str:
    """Where `launcher` puts a job here: "auto" is decided by whether this is a pod."""
    if launcher != "auto":
        return launcher
    return "pytorchjob" if os.environ.get("KUBERNETES_SERVICE_HOST") else "local"


def build(spec: JobSpec) -> dict[str, Any]:
    """The manifest that `launch` would submit from here; only the owner is not known yet.

    Raises ConfigurationError for what its kind of job cannot do.
    """
    return kind_named(spec.kind).build_manifest(spec, environment=inherited(os.environ))


def sweep(run_id: str, namespace: str = "") -> list[str]:
    """Delete the jobs of a pipeline run that still run; their names. Nothing to do outside of a cluster."""
    if not (namespace or os.environ.get("KUBERNETES_SERVICE_HOST")):
        return []
    from vqa_grpo.jobs import janitor

    return janitor.sweep(run_id, namespace)
