"""What a job is, whatever place it runs in."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from vqa_grpo.config import Job
from vqa_grpo.contract.failure import ConfigurationError

NAME_LIMIT = 50  # the operator makes a Service `<job>-worker-<n>` for each worker, and those end at 63 characters
LABEL_LIMIT = 63
_ATTEMPTS = 1000
_NOT_HASHED = {
    *("name", "namespace", "kind", "max_restarts", "on_eviction", "avoided_nodes"),
    *("timeout_seconds", "queue_timeout_seconds", "stall_timeout_seconds"),
}
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # DNS-1035: the job's name becomes the name of Services

KINDS = ("pytorchjob", "trainjob")  # `jobs.kind` says what each of them is

# What every job of ours carries, whatever its kind.
MANAGED_BY = "vqa-grpo"  # the value of app.kubernetes.io/managed-by
RUN_LABEL = "vqa-grpo/run-id"
HASH_ANNOTATION = "vqa-grpo/spec-hash"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

# Autoscalers move pods for the sake of packing. A training pod takes the whole job back to its last checkpoint when it
# goes; a launcher's next try finds its job again, but there are few tries.
LEAVE_ALONE = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}

# Variables that pods take from Kubernetes Secrets, and the Secret's name; the key is the variable's own name.
# Every reference is optional: a cluster with instance roles has no such Secret.
SECRETS: Mapping[str, str] = {
    "AWS_ACCESS_KEY_ID": "vqa-grpo-s3",
    "AWS_SECRET_ACCESS_KEY": "vqa-grpo-s3",
    "AWS_SESSION_TOKEN": "vqa-grpo-s3",
    "HF_TOKEN": "vqa-grpo-hf",
    "VQA_GRPO_JUDGE_API_KEY": "vqa-grpo-judge",
    "MLFLOW_TRACKING_USERNAME": "vqa-grpo-mlflow",
    "MLFLOW_TRACKING_PASSWORD": "vqa-grpo-mlflow",
}
# Plain variables that steps take from a ConfigMap, and training pods from the step that launches them.
SETTINGS_MAP = "vqa-grpo"
SETTINGS = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_CA_BUNDLE", "AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID"),
    *("MLFLOW_TRACKING_URI", "HF_ENDPOINT", "HF_HUB_OFFLINE", "DEBUG_MODE", "LOG_PATH"),
)


@dataclass(frozen=True)
class JobSpec:
    """A Python module run by `num_nodes` times `processes_per_node` processes, and what each node needs.

    `name`                unique in the namespace; take it from `job_name`, so that a retried step finds its job again
    `run_id`              the pipeline run; every job of a run carries it as a label and is swept up by it
    `module`, `arguments` what runs: `python -m module arguments…`, under torchrun where there are several processes
    `environment`         plain variables; a secret is refused here, see `secrets`
    `image`               what a pod runs in; ignored on this machine
    `processes_per_node`  one for each GPU, or any number on CPU
    `kind`                which resource of a cluster it becomes: pytorchjob or trainjob
    `status_uri`          gets each node's last word as `node-N.json`, and the launcher's on a failure (`record.py`); on
                          a cluster only
    `secrets`             variable → name of the Kubernetes Secret that holds it under the same key
    `avoided_nodes`       where an attempt before this one failed; taken only when there are no others

    All others are settings of the configuration's `job` section, described there.
    """

    name: str
    run_id: str
    module: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    kind: str = "pytorchjob"
    status_uri: str = ""
    secrets: Mapping[str, str] = field(default_factory=lambda: dict(SECRETS))
    num_nodes: int = 1
    processes_per_node: int = 1
    gpus_per_node: int = 0
    cpu: str = "2"
    memory: str = "6Gi"
    shared_memory: str = ""
    ephemeral_storage: str = ""
    resources: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str], ...] = ()
    priority_class: str = ""
    queue: str = ""
    service_account: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    cache_claim: str = ""
    namespace: str = ""
    grace_seconds: int = 120
    timeout_seconds: int = 172_800
    queue_timeout_seconds: int = 0
    stall_timeout_seconds: int = 0
    max_restarts: int = 0
    on_eviction: Literal["keep", "delete"] = "keep"
    avoided_nodes: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.name) > NAME_LIMIT or not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"job name {self.name!r}: at most {NAME_LIMIT} of a-z, 0-9 and -, a letter first; use job_name()"
            )
        for key in ("num_nodes", "processes_per_node", "timeout_seconds"):
            if getattr(self, key) < 1:
                raise ConfigurationError(f"job {self.name}: {key} is {getattr(self, key)}, it must be 1 or more")

    @classmethod
    def from_config(cls, name: str, run_id: str, module: str, job: Job, **more: Any) -> JobSpec:
        """The spec that the configuration's `job` section asks for; `more` is any field, and wins over the section."""
        section = {key: getattr(job, key) for key in type(job).model_fields if key != "launcher"}
        section |= {
            "processes_per_node": job.processes_per_node or job.gpus_per_node or 1,
            "tolerations": tuple(toleration.as_dict() for toleration in job.tolerations),
            "secrets": {**SECRETS, **job.secrets},
            "environment": {**job.environment, **more.pop("environment", {})},
            "kind": job.launcher if job.launcher in KINDS else KINDS[0],
        }
        return cls(name=name, run_id=run_id, module=module, **section | more)

    @property
    def total_processes(self) -> int:
        return self.num_nodes * self.processes_per_node

    @property
    def spec_hash(self) -> str:
        """What is run, as a digest: a job found under our name is ours only when this agrees.

        Where it lies, how long it is waited for and how often it may be tried again do not change what it does: a
        step that is called again with more patience follows the job that it finds. The attempt is part of the name.
        """
        content = {name: value for name, value in asdict(self).items() if name not in _NOT_HASHED}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def next_attempt(self) -> JobSpec:
        """The same job under the next name, for when this one has failed."""
        stem, dash, attempt = self.name.rpartition("-a")
        if not dash or not attempt.isdigit() or int(attempt) + 1 >= _ATTEMPTS:
            raise ConfigurationError(f"job {self.name} has failed and its name has no next attempt; use job_name()")
        return replace(self, name=f"{stem}-a{int(attempt) + 1}")


def job_name(run_id: str, attempt: int = 0, prefix: str = "vqa-grpo") -> str:
    """`<prefix>-<run id>-a<attempt>`: the same for the same run, and a valid name whatever the run id looks like."""
    if not 0 <= attempt < _ATTEMPTS:
        raise ConfigurationError(f"attempt {attempt}: there are attempts 0 to {_ATTEMPTS - 1}")
    room = NAME_LIMIT - len(prefix) - len("--a") - len(str(_ATTEMPTS - 1))
    if room < 10 or not _NAME.fullmatch(prefix):
        raise ConfigurationError(f"job prefix {prefix!r}: a short word of a-z, 0-9 and -, a letter first")
    return f"{prefix}-{slug(run_id, room)}-a{attempt}"


def run_label(run_id: str) -> str:
    """The run id as a label value; a KFP run id (a UUID) stays as it is."""
    return slug(run_id, LABEL_LIMIT)


def slug(text: str, limit: int) -> str:
    """`text` in a-z, 0-9 and -, at most `limit` long; what had to be changed gets a digest, so no two texts meet."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if plain == text and len(plain) <= limit:
        return plain
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{plain[: limit - 9].strip('-')}-{digest}".lstrip("-")
