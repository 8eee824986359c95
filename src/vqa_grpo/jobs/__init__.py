"""Where a job runs: on this machine, or as a PyTorchJob on a cluster. Knows images, commands and environment only."""

from __future__ import annotations

import os

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs.spec import JobSpec, job_name

__all__ = ["JobSpec", "job_name", "launch", "render", "sweep"]


def launch(spec: JobSpec, launcher: str = "auto") -> None:
    """Run the job and return when it has succeeded; raises JobError otherwise.

    `launcher` is local, pytorchjob, or auto: a PyTorchJob inside a cluster, this machine elsewhere.
    """
    launcher = place(launcher)
    if launcher == "local":
        from vqa_grpo.jobs import local

        local.run(spec)
    elif launcher == "pytorchjob":
        from vqa_grpo.jobs import cluster

        cluster.run(spec)
    else:
        raise ConfigurationError(f"job.launcher is {launcher!r}: use auto, local or pytorchjob")


def place(launcher: str) -> str:
    """Where `launcher` puts a job here: "auto" is decided by whether this is a pod."""
    if launcher != "auto":
        return launcher
    return "pytorchjob" if os.environ.get("KUBERNETES_SERVICE_HOST") else "local"


def render(spec: JobSpec) -> str:
    """The manifest that `launch` would submit from here, as YAML; only the owner is not known yet."""
    import yaml

    from vqa_grpo.jobs.kind import kind_named
    from vqa_grpo.jobs.pod import inherited

    manifest = kind_named(spec.kind).build_manifest(spec, environment=inherited(os.environ))
    return yaml.safe_dump(manifest, sort_keys=False)


def sweep(run_id: str, namespace: str = "") -> list[str]:
    """Delete the jobs of a pipeline run that still run; their names. Nothing to do outside of a cluster."""
    if not (namespace or os.environ.get("KUBERNETES_SERVICE_HOST")):
        return []
    from vqa_grpo.jobs import janitor

    return janitor.sweep(run_id, namespace)
