"""A job as a TrainJob (Kubeflow Trainer 2.2 or newer): the manifest, and how its status reads.

What a job may not say of its pods stands in the namespaced TrainingRuntime `vqa-grpo`, which `manifests/` ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vqa_grpo.jobs.kind import JobState, last_of, true_conditions
from vqa_grpo.jobs.spec import JobSpec

RUNTIME = "vqa-grpo"


class _TrainJob:
    group, version, plural = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
    title = "TrainJob"
    operator = "Kubeflow Trainer 2.2 or newer, with the TrainingRuntime vqa-grpo of manifests/ in this namespace"
    container = "node"

    def build_manifest(
        self, spec: JobSpec, owner: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        raise NotImplementedError

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
        return labels.get("batch.kubernetes.io/job-completion-index") == "0"


KIND = _TrainJob()
