"""The pod that trains, the same for every kind of job: what it runs, what it gets, and what it must not carry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs.spec import HASH_ANNOTATION, MANAGED_BY, RUN_LABEL, SETTINGS, JobSpec, run_label

_GRACE_SECONDS = 120  # for a last checkpoint
_LAST_WORD_SECONDS = 20  # of those, for the supervisor to end what does not listen and to say why
_LOGS = "/tmp/vqa-grpo/logs"  # noqa: S108 - a training pod's own disk

# What pods inherit from the launcher: where things are, and how NCCL is to talk. No name here holds a secret.
_INHERITED = re.compile("|".join(SETTINGS) + r"|HTTPS?_PROXY|NO_PROXY|(TORCH_)?NCCL_\w+")
_SECRET = re.compile(r"(^|_)(SECRET|TOKEN|PASSWORD|CREDENTIALS?|ACCESS_KEY|API_KEY|PRIVATE_KEY)(_|$)", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"//[^/@\s]+:[^/@\s]+@")


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of the launcher's environment that its jobs get too."""
    return {name: value for name, value in sorted(environ.items()) if value and _INHERITED.fullmatch(name)}


def job_metadata(spec: JobSpec, owner: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metadata of the job itself. `owner` is an ownerReference."""
    metadata: dict[str, Any] = {
        "name": spec.name,
        "labels": labels(spec),
        "annotations": {HASH_ANNOTATION: spec.spec_hash},
    }
    if spec.namespace:
        metadata["namespace"] = spec.namespace
    if owner:
        metadata["ownerReferences"] = [dict(owner)]
    return metadata


def labels(spec: JobSpec) -> dict[str, str]:
    return {"app.kubernetes.io/managed-by": MANAGED_BY, RUN_LABEL: run_label(spec.run_id)}


def template(spec: JobSpec, container: str, environment: Mapping[str, str] | None) -> dict[str, Any]:
    """The pod template, its training container under the name that the operator insists on.

    Raises ConfigurationError when there is no image, or a secret where everybody who may read the job would see it.
    """
    if not spec.image:
        raise ConfigurationError(f"job {spec.name} has no image: give the training image, best with its digest")
    variables = {**(environment or {}), **spec.environment}
    _refuse_secrets(variables)
    return {
        "metadata": {
            # Istio's sidecar outlives the container and breaks the rendezvous; which of the two it reads depends on
            # its version.
            "labels": {**labels(spec), "sidecar.istio.io/inject": "false"},
            "annotations": {"sidecar.istio.io/inject": "false"},
        },
        "spec": _pod(spec, container, variables),
    }


def _pod(spec: JobSpec, container: str, variables: Mapping[str, str]) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,  # training has no business with the API server
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": container,
                "image": spec.image,
                "command": _command(spec),
                "args": list(spec.arguments),
                "env": _environment(spec, variables),
                "resources": _resources(spec),
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108
            }
        ],
        # The container runtime's default of 64 MiB is too small for NCCL and for data loaders. It counts as memory.
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": spec.memory}}],
    }
    if spec.gpus_per_node:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _command(spec: JobSpec) -> list[str]:
    options = ["--grace_seconds", str(_GRACE_SECONDS - _LAST_WORD_SECONDS), "--log_dir", _LOGS]
    if spec.status_uri:
        options += ["--status_uri", spec.status_uri]
    return ["python", "-m", "vqa_grpo.jobs.supervisor", *options, "--", "-m", spec.module]


def _environment(spec: JobSpec, variables: Mapping[str, str]) -> list[dict[str, Any]]:
    plain = dict(variables)
    if spec.total_processes > 1:
        plain.setdefault("OMP_NUM_THREADS", "1")  # else each process starts a thread for every core of the node
    references = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name, "optional": True}}}
        for name, secret in sorted(spec.secrets.items())
    ]
    return [{"name": name, "value": value} for name, value in sorted(plain.items())] + references


def _resources(spec: JobSpec) -> dict[str, Any]:
    amounts = {"cpu": spec.cpu, "memory": spec.memory}
    if spec.gpus_per_node:
        amounts["nvidia.com/gpu"] = str(spec.gpus_per_node)
    # Requests equal limits, so that a node short of memory evicts others first.
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _refuse_secrets(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        if _SECRET.search(name):
            raise ConfigurationError(f"{name} would stand in the job for all to read: keep it in a Secret, see secrets")
        if _PASSWORD_IN_URL.search(value):
            raise ConfigurationError(f"{name} holds a password inside a URL: take it out and keep it in a Secret")
