"""A job as a TrainJob (Kubeflow Trainer 2.2 or newer): the manifest, and how its status reads.

A TrainJob says less of its pods than a PyTorchJob. The rest stands in the namespaced TrainingRuntime `vqa-grpo`, which
`manifests/` ships: no restarts, no token of the API server, and a termination message that falls back to the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs import pod
from vqa_grpo.jobs.kind import JobState, last_of, true_conditions
from vqa_grpo.jobs.spec import JobSpec

RUNTIME = "vqa-grpo"
_WORDS = 128  # the CRD's limit for each of command, args and env
# The parts of a container and of a pod that the trainer takes, those that a patch may set, and those that the
# TrainingRuntime says as we would.
_TRAINER = ("image", "command", "args", "env", "resources")
_CONTAINER_PATCH = ("name", "volumeMounts", "securityContext")
_POD_PATCH = (
    *("affinity", "imagePullSecrets", "nodeSelector", "schedulingGates", "securityContext", "serviceAccountName"),
    *("terminationGracePeriodSeconds", "tolerations", "volumes"),
)
_RUNTIMES = {"automountServiceAccountToken": False, "terminationMessagePolicy": "FallbackToLogsOnError"}


class _TrainJob:
    group, version, plural = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
    title = "TrainJob"
    operator = f"Kubeflow Trainer 2.2 or newer, and the TrainingRuntime {RUNTIME} from manifests/ in this namespace"
    container = "node"

    def build_manifest(
        self, spec: JobSpec, owner: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        template = pod.template(spec, self.container, environment)
        return {
            "apiVersion": f"{self.group}/{self.version}",
            "kind": self.title,
            "metadata": pod.job_metadata(spec, owner),
            "spec": {
                "runtimeRef": {"apiGroup": self.group, "kind": "TrainingRuntime", "name": RUNTIME},
                "activeDeadlineSeconds": spec.timeout_seconds,
                "trainer": self._trainer(spec, template["spec"]["containers"]),
                "runtimePatches": [self._patch(template)],
            },
        }

    def _trainer(self, spec: JobSpec, containers: list[dict[str, Any]]) -> dict[str, Any]:
        (container, *others) = sorted(containers, key=lambda each: each["name"] != self.container)
        if others:
            raise _impossible(f"the container {others[0]['name']}")
        # Command and arguments are one line to the container; what one list does not hold goes into the other.
        command, arguments, variables = (container.get(key) or [] for key in ("command", "args", "env"))
        words = command + arguments
        middle = max(len(command), len(words) - _WORDS)
        for what, count in (("arguments", middle), ("variables", len(variables))):
            if count > _WORDS:
                raise ConfigurationError(f"job {spec.name} has too many {what} for a TrainJob: use a PyTorchJob")
        return {
            "image": container.get("image") or spec.image,
            "command": words[:middle],
            "args": words[middle:],
            "env": variables,
            "numNodes": spec.num_nodes,
            "numProcPerNode": spec.processes_per_node,
            "resourcesPerNode": container.get("resources") or {},
        }

    def _patch(self, template: Mapping[str, Any]) -> dict[str, Any]:
        wanted = template["spec"]
        container = _only(wanted["containers"][0], _CONTAINER_PATCH, but=_TRAINER)
        patched = {**_only(wanted, _POD_PATCH, but=("containers",)), "containers": [container]}
        job = {"spec": {"template": {"metadata": template["metadata"], "spec": patched}}}
        return {
            "manager": "vqa-grpo/launcher",
            "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [{"name": "node", "template": job}]}}},
        }

    def state(self, job: Mapping[str, Any]) -> JobState:
        found = true_conditions(job)
        if ended := last_of(found, "Complete"):
            return JobState("succeeded", ended.message, found)
        if ended := last_of(found, "Failed"):
            return JobState("failed", ended.message or ended.reason, found)
        if suspended := last_of(found, "Suspended"):
            return JobState("queued", suspended.message, found)
        # There is no condition for it: a child Job counts as ready once all of its pods are, or have ended.
        nodes = (job.get("status") or {}).get("jobsStatus") or ()
        up = any(node.get("ready") or node.get("succeeded") for node in nodes)
        return JobState("running" if up else "queued", conditions=found)

    def pod_selector(self, name: str) -> str:
        return f"jobset.sigs.k8s.io/jobset-name={name}"

    def is_first(self, pod: Mapping[str, Any]) -> bool:
        labels = pod["metadata"].get("labels") or {}
        return bool(labels.get("batch.kubernetes.io/job-completion-index") == "0")


def _only(part: Mapping[str, Any], allowed: tuple[str, ...], but: tuple[str, ...]) -> dict[str, Any]:
    """What a patch may say of `part`. Raises ConfigurationError for what nobody would carry out."""
    for key, value in part.items():
        if key not in allowed and key not in but and (key not in _RUNTIMES or _RUNTIMES[key] != value):
            raise _impossible(key)
    return {key: value for key, value in part.items() if key in allowed}


def _impossible(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"a TrainJob cannot set {what} of its pods: put it into the TrainingRuntime {RUNTIME}, or use a PyTorchJob"
    )


KIND = _TrainJob()
