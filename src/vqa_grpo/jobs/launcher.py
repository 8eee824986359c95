"""The pod that launches a job, and the pipeline run that it belongs to: whose the job is, and why we are told to stop.

A run that is called off must stop burning GPUs. A launcher that only has to leave its node must not cost a job of two
days, for its retry finds the job again and goes on following it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vqa_grpo.jobs.kubernetes_api import ApiError, ClusterApi

_OVER = ("Succeeded", "Failed", "Error")


def is_disrupted(pod: Mapping[str, Any]) -> bool:
    """Whether somebody wants this pod off its node: drained, evicted, preempted, or deleted."""
    if pod["metadata"].get("deletionTimestamp"):
        return True
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "DisruptionTarget" and each.get("status") == "True" for each in conditions)


def is_over(workflow: Mapping[str, Any]) -> bool:
    """Whether a pipeline run's Workflow has ended, is being deleted, or was told to stop.

    Kubeflow's Terminate sets `activeDeadlineSeconds` to 0; Argo's own stop and terminate set `shutdown`.
    """
    spec, status = workflow.get("spec") or {}, workflow.get("status") or {}
    return bool(
        workflow["metadata"].get("deletionTimestamp")
        or spec.get("activeDeadlineSeconds") == 0
        or spec.get("shutdown")
        or status.get("phase") in _OVER
    )


class Launcher:
    """Who we are. `owner` is the ownerReference of our jobs: the run's Workflow, else our pod; None outside of KFP."""

    def __init__(self, api: ClusterApi, say: Callable[[str], None], pod: str = "") -> None:
        self._api, self._say, self._pod = api, say, pod
        self._workflow = ""
        self.workflow_uid = ""  # stays, whatever we may read: a step is tried again under the same
        self.owner: dict[str, Any] | None = None

    def introduce(self, patiently: Callable[[Callable[[], Any], str], Any]) -> None:
        """Find out whose pod we are: KFP tells a step its pod, and the pod's own owner is the Workflow. `patiently`
        makes a call, again and again where need be."""
        if not self._pod:
            return
        try:
            metadata = patiently(lambda: self._api.pod(self._pod), f"get pod {self._pod}")["metadata"]
        except ApiError as error:
            self._say(
                f"pod {self._pod} cannot be read ({error}): the job has no owner, only its deadline and time to live"
            )
            return
        owner = {"apiVersion": "v1", "kind": "Pod", "name": self._pod, "uid": metadata["uid"]}
        for reference in metadata.get("ownerReferences") or ():
            if reference["kind"] == "Workflow":
                owner = {key: reference[key] for key in ("apiVersion", "kind", "name", "uid")}
                self._workflow, self.workflow_uid = reference["name"], reference["uid"]
        # Not the controller: Kueue would take the job for a part of it. Not blocking: OpenShift asks for more rights.
        self.owner = {**owner, "controller": False, "blockOwnerDeletion": False}

    def called_off(self) -> bool:
        """Whether the pipeline run was called off; where nobody knows, it was not."""
        if not self._workflow:
            return False
        try:
            return is_over(self._api.workflow(self._workflow))
        except ApiError as error:
            if error.status != 404 and not error.transient:
                self._say(
                    f"workflow {self._workflow} cannot be read ({error}): an eviction of this pod will delete the job"
                )
                self._workflow = ""
            return error.status == 404

    def only_evicted(self) -> bool:
        """Whether our pod has to go while its run goes on. In doubt, and when the answer takes long, it is not so."""
        if not self._workflow:
            return False
        try:
            pod = self._api.pod(self._pod, urgent=True)
            return is_disrupted(pod) and not is_over(self._api.workflow(self._workflow, urgent=True))
        except ApiError:
            return False
