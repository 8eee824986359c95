"""The pod that trains, the same for every kind of job: what it runs, what it gets, and what it must not carry."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from vqa_grpo.config import CACHE
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs.spec import (
    HASH_ANNOTATION,
    LEAVE_ALONE,
    MANAGED_BY,
    QUEUE_LABEL,
    RUN_LABEL,
    SECRETS,
    SETTINGS,
    JobSpec,
    run_label,
)

_LAST_WORD_SECONDS = 20  # of a pod's grace, for the supervisor to end what does not listen and to say why
_LOGS = "/tmp/vqa-grpo/logs"  # noqa: S108 - a training pod's own disk
_GROUP = 65532  # may write to a fresh volume, whoever the image's user is

# What pods inherit from the launcher: where things are, and how NCCL is to talk. No name here holds a secret.
_INHERITED = re.compile("|".join(SETTINGS) + r"|HTTPS?_PROXY|NO_PROXY|(TORCH_)?NCCL_\w+")
_SECRET = re.compile(r"(^|_)(SECRET|TOKEN|PASSWORD|CREDENTIALS?|ACCESS_KEY|API_KEY|PRIVATE_KEY)(_|$)", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"//[^/@\s]+:[^/@\s]+@")
# The operators set these themselves: PyTorchJob overrides what a pod says, and TrainJob is refused.
_RESERVED = re.compile(r"PET_\w+|MASTER_(ADDR|PORT)|(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)")


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of the launcher's environment that its jobs get too."""
    return {name: value for name, value in sorted(environ.items()) if value and _INHERITED.fullmatch(name)}


def job_metadata(spec: JobSpec, owner: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metadata of the job itself. `owner` is an ownerReference."""
    queue = {QUEUE_LABEL: spec.queue} if spec.queue else {}
    metadata: dict[str, Any] = {
        "name": spec.name,
        "labels": {**_labels(spec), **queue},
        "annotations": {HASH_ANNOTATION: spec.spec_hash},
    }
    if spec.namespace:
        metadata["namespace"] = spec.namespace
    if owner:
        metadata["ownerReferences"] = [dict(owner)]
    return metadata


def template(spec: JobSpec, container: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The pod template, with its training container under the name that the operator insists on.

    Raises ConfigurationError when there is no image, when the operator sets a variable itself, or when a secret would
    stand where everybody who may read the job sees it.
    """
    if not spec.image:
        raise ConfigurationError(f"job {spec.name} has no image: give the training image, best with its digest")
    if re.search(r"\s", spec.image):
        raise ConfigurationError(f"image {spec.image!r} has a space in it: give REPOSITORY@sha256:… or REPOSITORY:TAG")
    plain = {
        # Istio's sidecar outlives the container and breaks the rendezvous; which of the two it reads depends on its
        # version.
        "metadata": {
            "labels": {**_labels(spec), "sidecar.istio.io/inject": "false"},
            "annotations": {"sidecar.istio.io/inject": "false", **LEAVE_ALONE},
        },
        "spec": _pod(spec, container, environment or {}),
    }
    made: dict[str, Any] = merged(plain, spec.overrides)
    for each in _containers(made["spec"], container):
        for variable in each.get("env") or []:
            _check_variable(str(variable.get("name", "")), str(variable.get("value") or ""))
    return made


def merged(base: Any, change: Any, key: str = "") -> Any:
    """`change` put over `base` as Kubernetes merges pods: objects key by key, and lists of named things name by name.

    Lists of anything else are replaced, and null takes a key away.

    >>> merged({"env": [{"name": "A", "value": "1"}], "x": 1}, {"env": [{"name": "A", "value": "2"}], "x": None})
    {'env': [{'name': 'A', 'value': '2'}]}
    """
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        kept = {name: value for name, value in base.items() if name not in change}
        return kept | {name: merged(base.get(name), value, name) for name, value in change.items() if value is not None}
    identity = _identity(key)
    if isinstance(base, list) and isinstance(change, list) and _all_have(identity, [*base, *change]):
        new = {item[identity]: item for item in change}
        old = [merged(item, new.pop(item[identity], {})) for item in base]
        return old + [merged({}, item) for item in new.values()]
    return merged({}, change) if isinstance(change, Mapping) else copy.deepcopy(change)


def _identity(key: str) -> str:
    return "mountPath" if key == "volumeMounts" else "name"


def _all_have(key: str, items: list[Any]) -> bool:
    return all(isinstance(item, Mapping) and isinstance(item.get(key), str) for item in items)


def _pod(spec: JobSpec, container: str, environment: Mapping[str, str]) -> dict[str, Any]:
    volumes, mounts = _volumes(spec)
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,  # training has no business with the API server
        "terminationGracePeriodSeconds": spec.grace_seconds,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": container,
                "image": spec.image,
                "command": _command(spec),
                "args": [_literally(word) for word in spec.arguments],
                "env": _environment(spec, environment),
                "resources": _resources(spec),
                # Not for the whole pod: the training operator v1 puts an init container into every worker that runs
                # as root and inherits what the pod says; the kubelet would not start it.
                "securityContext": {
                    "runAsNonRoot": True,
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if spec.cache_claim:
        # Root, rather than the root of a large volume's every file at every start.
        pod["securityContext"] |= {"fsGroup": _GROUP, "fsGroupChangePolicy": "OnRootMismatch"}
    gpus = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if spec.gpus_per_node else []
    optional = {
        "tolerations": gpus + [dict(toleration) for toleration in spec.tolerations],
        "nodeSelector": dict(spec.node_selector),
        "affinity": _affinity(spec.avoided_nodes),
        "priorityClassName": spec.priority_class,
        "serviceAccountName": spec.service_account,
        "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
    }
    return pod | {key: value for key, value in optional.items() if value}


def _affinity(avoided: tuple[str, ...]) -> dict[str, Any]:
    """Rather another node than one where this job failed: a node with broken GPUs is the one that is free again."""
    if not avoided:
        return {}
    others = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": list(avoided)}
    preferred = {"weight": 100, "preference": {"matchExpressions": [others]}}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}}


def _volumes(spec: JobSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    # The container runtime's default of 64 MiB is too small for NCCL and for data loaders. It counts as memory.
    shared = {"medium": "Memory", "sizeLimit": spec.shared_memory or spec.memory}
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": shared}]
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108
    if spec.cache_claim:
        volumes.append({"name": "cache", "persistentVolumeClaim": {"claimName": spec.cache_claim}})
        mounts.append({"name": "cache", "mountPath": CACHE})
    return volumes, mounts


def _command(spec: JobSpec) -> list[str]:
    options = ["--grace_seconds", str(spec.grace_seconds - _LAST_WORD_SECONDS), "--log_dir", _LOGS]
    if spec.status_uri:
        options += ["--status_uri", _literally(spec.status_uri)]
    return ["python", "-m", "vqa_grpo.jobs.supervisor", *options, "--", "-m", spec.module]


def _environment(spec: JobSpec, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """The container's variables: the launcher's, then ours where nobody else says so, then the spec's, and secrets."""
    for name, value in spec.environment.items():
        _check_variable(name, value)
    twice = sorted(spec.environment.keys() & spec.secrets.keys())
    if twice:
        raise ConfigurationError(f"{twice[0]} is both among the plain variables and among the secrets: leave one out")
    plain = {name: value for name, value in environment.items() if name not in spec.secrets}
    if spec.total_processes > 1:
        plain.setdefault("OMP_NUM_THREADS", "1")  # else each process starts a thread for every core of the node
    if spec.gpus_per_node:
        plain.setdefault("NCCL_DEBUG", "WARN")
    if spec.cache_claim:
        plain |= {"VQA_GRPO_CACHE": f"{CACHE}/vqa-grpo", "HF_HOME": f"{CACHE}/huggingface"}
    plain |= spec.environment
    references = []
    for name, secret in sorted(spec.secrets.items()):
        # Ours may be missing, where instance roles and public services do; one that somebody named must be there.
        optional = {"optional": True} if SECRETS.get(name) == secret else {}
        references.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name, **optional}}})
    return [{"name": name, "value": _literally(value)} for name, value in sorted(plain.items())] + references


def _literally(text: str) -> str:
    """Kubernetes would put a variable's value, a secret one too, in the place of $(NAME), and make one $ of two."""
    return text.replace("$", "$$")


def _resources(spec: JobSpec) -> dict[str, Any]:
    amounts = {"cpu": spec.cpu, "memory": spec.memory, **spec.resources}
    if spec.ephemeral_storage:
        amounts["ephemeral-storage"] = spec.ephemeral_storage
    if spec.gpus_per_node:
        amounts["nvidia.com/gpu"] = str(spec.gpus_per_node)
    # Requests equal limits, so that a node short of memory evicts others first.
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _labels(spec: JobSpec) -> dict[str, str]:
    return {**spec.labels, "app.kubernetes.io/managed-by": MANAGED_BY, RUN_LABEL: run_label(spec.run_id)}


def _containers(pod: Mapping[str, Any], own: str) -> list[Mapping[str, Any]]:
    """All containers of a pod, whatever overrides made of it; ConfigurationError where it could not train."""
    if pod.get("restartPolicy", "Never") != "Never":
        # A node restarted alone would wait for peers that wait for it.
        raise ConfigurationError("job.overrides: spec.restartPolicy must be Never: leave it out, see job.max_restarts")
    found = {key: _named(pod, key, "spec") for key in ("initContainers", "containers", "volumes")}
    if own not in [each["name"] for each in found["containers"]]:
        raise ConfigurationError(f"job.overrides: spec.containers must be a list in which the one that trains is {own}")
    containers = [*found["initContainers"], *found["containers"]]
    for each in containers:
        for key in ("env", "volumeMounts"):
            _named(each, key, each["name"])
    return containers


def _named(part: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    """A list that is merged by name; ConfigurationError where it is none."""
    items = [] if part.get(key) is None else part[key]
    identity = _identity(key)
    if not isinstance(items, list) or not _all_have(identity, items):
        raise ConfigurationError(f"job.overrides: {where}.{key} must be a list of things with a {identity} each")
    return items


def _check_variable(name: str, value: str) -> None:
    if _RESERVED.fullmatch(name):
        raise ConfigurationError(f"{name} is the operator's to set: leave it out of job.environment and job.overrides")
    if value and _SECRET.search(name):
        raise ConfigurationError(f"{name} would stand in the job for all to read: keep it in a Secret, see job.secrets")
    if _PASSWORD_IN_URL.search(value):
        raise ConfigurationError(f"{name} holds a password inside a URL: take it out and keep it in a Secret")
