"""A job as a PyTorchJob (training operator v1): the manifest, and how its status reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vqa_grpo.jobs import pod
from vqa_grpo.jobs.kind import JobState, last_of, true_conditions
from vqa_grpo.jobs.spec import JobSpec

_TTL_SECONDS = 86_400  # a day to read the logs of a finished job


class _PyTorchJob:
    group, version, plural = "kubeflow.org", "v1", "pytorchjobs"
    title = "PyTorchJob"
    operator = "the Kubeflow training operator (v1)"
    container = "pytorch"

    def build_manifest(
        self, spec: JobSpec, owner: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        replicas = {"Master": self._replica(spec, environment, 1)}
        if spec.num_nodes > 1:
            replicas["Worker"] = self._replica(spec, environment, spec.num_nodes - 1)
        return {
            "apiVersion": f"{self.group}/{self.version}",
            "kind": self.title,
            "metadata": pod.job_metadata(spec, owner),
            "spec": {
                "nprocPerNode": str(spec.processes_per_node),  # a string in v1
                "runPolicy": {
                    # The operator's own default leaves the peers of a failed pod on their GPUs.
                    "cleanPodPolicy": "Running",
                    "activeDeadlineSeconds": spec.timeout_seconds,
                    "ttlSecondsAfterFinished": _TTL_SECONDS,
                },
                "pytorchReplicaSpecs": replicas,
            },
        }

    def _replica(self, spec: JobSpec, environment: Mapping[str, str] | None, count: int) -> dict[str, Any]:
        # Never: a node restarted alone would wait for peers that wait for it. The whole gang is run again, or nothing.
        template = pod.template(spec, self.container, environment)
        return {"replicas": count, "restartPolicy": "Never", "template": template}

    def state(self, job: Mapping[str, Any]) -> JobState:
        found = true_conditions(job)
        if ended := last_of(found, "Succeeded"):
            return JobState("succeeded", ended.message, found)
        if ended := last_of(found, "Failed"):
            return JobState("failed", ended.message or ended.reason, found)
        if suspended := last_of(found, "Suspended"):
            return JobState("queued", suspended.message, found)
        if running := last_of(found, "Running"):
            return JobState("running", running.message, found)
        return JobState("queued", conditions=found)

    def pod_selector(self, name: str) -> str:
        return f"training.kubeflow.org/job-name={name}"

    def is_first(self, pod: Mapping[str, Any]) -> bool:
        return str(pod["metadata"]["name"]).endswith("-master-0")


KIND = _PyTorchJob()
