"""A training operator of the tests' own: pods for PyTorchJobs, and the jobs' conditions from their pods.

It does what the operator v1.9 does for jobs as ours are (`restartPolicy: Never`, `cleanPodPolicy: Running`). What
happens inside of pods is a kubelet's: `Script` plays it, `nodes.Kubelet` runs real processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from emulator import NAMESPACE, Cluster, now

PORT = "23456"
FINISHED = ("Succeeded", "Failed")


class Kubelet(Protocol):
    def step(self, pod: dict[str, Any]) -> None:
        """Let time pass for a pod: its status is changed in place. The first call is its beginning."""

    def stop(self, pod: dict[str, Any]) -> bool:
        """The pod is to be deleted: end it, with its grace. Whether it has ended."""


class Operator:
    """Call `tick` again and again."""

    def __init__(self, cluster: Cluster, kubelet: Kubelet) -> None:
        self._cluster = cluster
        self._kubelet = kubelet

    def tick(self) -> None:
        jobs = {job["metadata"]["name"]: job for job in self._cluster.read("pytorchjobs")}
        pods = self._pods()
        for pod in pods:
            job = jobs.get(_job_of(pod))
            if job is None or job["metadata"]["uid"] != _owner_of(pod):
                self._delete(pod)  # what Kubernetes' garbage collector does once the owner is gone
        for job in jobs.values():
            self._reconcile(job, [pod for pod in pods if _owner_of(pod) == job["metadata"]["uid"]])

    def running(self) -> list[str]:
        """Pods that hold a node."""
        return [pod["metadata"]["name"] for pod in self._pods() if _phase(pod) not in FINISHED]

    def _pods(self) -> list[dict[str, Any]]:
        """The pods of jobs."""
        return [pod for pod in self._cluster.read("pods") if _job_of(pod)]

    def _reconcile(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        status = job.get("status") or {"conditions": [], "startTime": now()}
        if any(_has(status, kind) for kind in FINISHED):
            for pod in pods:
                if _phase(pod) not in FINISHED:
                    self._delete(pod)
            return
        name = job["metadata"]["name"]
        _add(status, "Created", f"PyTorchJob {name} is created.")
        if not pods:
            pods = pods_of(job)
            for pod in pods:
                self._cluster.put("pods", pod)
        else:
            for pod in pods:
                self._kubelet.step(pod)
                self._cluster.set_status("pods", pod["metadata"]["name"], pod["status"])
        phases = {pod["metadata"]["name"]: _phase(pod) for pod in pods}
        if "Running" in phases.values():
            _add(status, "Running", f"PyTorchJob {NAMESPACE}/{name} is running.")
        if phases.get(f"{name}-master-0") == "Succeeded":
            _end(status, "Succeeded", f"PyTorchJob {NAMESPACE}/{name} successfully completed.")
        elif failed := [pod for pod, phase in phases.items() if phase == "Failed"]:
            kind = "Master" if failed[0].endswith("master-0") else "Worker"
            _end(status, "Failed", f"PyTorchJob {name} is failed because {len(failed)} {kind} replica(s) failed.")
        self._cluster.set_status("pytorchjobs", name, status)

    def _delete(self, pod: dict[str, Any]) -> None:
        if self._kubelet.stop(pod):
            self._cluster.remove("pods", pod["metadata"]["name"])


def pods_of(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pods that the operator makes of a PyTorchJob, with what it puts behind the environment of each container."""
    name, spec = job["metadata"]["name"], job["spec"]
    replicas = spec["pytorchReplicaSpecs"]
    nodes = sum(replica["replicas"] for replica in replicas.values())
    processes = str(spec.get("nprocPerNode", "auto"))
    world = nodes * int(processes) if processes.isdigit() else nodes
    pods = []
    for kind, replica in replicas.items():
        for index in range(replica["replicas"]):
            rank = str(index if kind == "Master" else index + 1)
            master = f"{name}-master-0"
            environment = {
                "PYTHONUNBUFFERED": "1",
                "MASTER_PORT": PORT,
                "PET_MASTER_PORT": PORT,
                "MASTER_ADDR": master,
                "PET_MASTER_ADDR": master,
                "WORLD_SIZE": str(world),
                "RANK": rank,
                "PET_NODE_RANK": rank,
                "PET_NPROC_PER_NODE": processes,
                "PET_NNODES": str(nodes),
            }
            pods.append(_pod(job, kind, index, replica["template"], environment))
    return pods


def _pod(
    job: Mapping[str, Any], kind: str, index: int, template: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    name = job["metadata"]["name"]
    spec = copy.deepcopy(template["spec"])
    for container in spec["containers"]:
        container["env"] = [
            *container.get("env", ()),
            *({"name": key, "value": value} for key, value in environment.items()),
        ]
    labels = {
        **template.get("metadata", {}).get("labels", {}),
        "training.kubeflow.org/job-name": name,
        "training.kubeflow.org/operator-name": "pytorchjob-controller",
        "training.kubeflow.org/replica-index": str(index),
        "training.kubeflow.org/replica-type": kind.lower(),
    }
    if kind == "Master":
        labels["training.kubeflow.org/job-role"] = "master"
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": name, "uid": job["metadata"]["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-{kind.lower()}-{index}",
            "namespace": NAMESPACE,
            "labels": labels,
            "annotations": dict(template.get("metadata", {}).get("annotations", {})),
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        },
        "spec": spec,
        "status": {"phase": "Pending"},
    }


def _phase(pod: Mapping[str, Any]) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _job_of(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"].get("labels", {}).get("training.kubeflow.org/job-name", ""))


def _owner_of(pod: Mapping[str, Any]) -> str:
    return str((pod["metadata"].get("ownerReferences") or [{}])[0].get("uid", ""))


def _has(status: Mapping[str, Any], kind: str) -> bool:
    return any(each["type"] == kind and each["status"] == "True" for each in status.get("conditions", ()))


def _add(status: dict[str, Any], kind: str, message: str) -> None:
    if not _has(status, kind):
        at = now()
        status["conditions"].append(
            {
                "type": kind,
                "status": "True",
                "reason": f"PyTorchJob{kind}",
                "message": message,
                "lastUpdateTime": at,
                "lastTransitionTime": at,
            }
        )


def _end(status: dict[str, Any], kind: str, message: str) -> None:
    for each in status["conditions"]:
        if each["type"] == "Running":
            each["status"] = "False"
    _add(status, kind, message)
    status["completionTime"] = now()


# --- a kubelet that plays a script --------------------------------------------------------------------------------

Step = Callable[[Cluster, dict[str, Any]], None]


def pending(cluster: Cluster, pod: dict[str, Any]) -> None:
    pod["status"] = {"phase": "Pending"}


def running(cluster: Cluster, pod: dict[str, Any]) -> None:
    state = {"running": {"startedAt": now()}}
    pod["status"] = {
        "phase": "Running",
        "startTime": now(),
        "containerStatuses": [{"name": pod["spec"]["containers"][0]["name"], "ready": True, "state": state}],
    }


def says(*lines: str) -> Step:
    def step(cluster: Cluster, pod: dict[str, Any]) -> None:
        for line in lines:
            cluster.log(pod["metadata"]["name"]).add(line)

    return step


def unschedulable(message: str = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.") -> Step:
    def step(cluster: Cluster, pod: dict[str, Any]) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        pod["status"] = {"phase": "Pending", "conditions": [condition]}
        event(cluster, pod, "FailedScheduling", message)

    return step


def image_missing(reason: str = "ImagePullBackOff") -> Step:
    def step(cluster: Cluster, pod: dict[str, Any]) -> None:
        container = pod["spec"]["containers"][0]
        message = f'Back-off pulling image "{container["image"]}"'
        state = {"waiting": {"reason": reason, "message": message}}
        statuses = [{"name": container["name"], "ready": False, "state": state}]
        pod["status"] = {"phase": "Pending", "containerStatuses": statuses}
        event(cluster, pod, "Failed", message)

    return step


def exits(code: int = 0, message: str = "", reason: str = "") -> Step:
    """The container ends; so does the pod."""

    def step(cluster: Cluster, pod: dict[str, Any]) -> None:
        pod["status"] = terminated(pod, code, message, reason)
        cluster.log(pod["metadata"]["name"]).ended = True

    return step


def terminated(pod: Mapping[str, Any], code: int, message: str = "", reason: str = "") -> dict[str, Any]:
    """The status of a pod whose container ended."""
    ended: dict[str, Any] = {"exitCode": code, "reason": reason or ("Error" if code else "Completed")}
    ended |= {"finishedAt": now()} | ({"message": message} if message else {})
    statuses = [{"name": pod["spec"]["containers"][0]["name"], "ready": False, "state": {"terminated": ended}}]
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": statuses}


def evicted(cluster: Cluster, pod: dict[str, Any]) -> None:
    """As the kubelet does under pressure: the pod's own status says so, and so does a condition."""
    message = "The node was low on resource: memory."
    exits(137)(cluster, pod)
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": message}
    pod["status"] |= {"reason": "Evicted", "message": message, "conditions": [condition]}


def event(cluster: Cluster, pod: Mapping[str, Any], reason: str, message: str) -> None:
    name = f"{pod['metadata']['name']}.{reason.lower()}"
    involved = {"kind": "Pod", "namespace": NAMESPACE, "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    cluster.put(
        "events",
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "involvedObject": involved,
            "lastTimestamp": now(),
        },
    )


HAPPY: tuple[Step, ...] = (pending, running, says("one", "two"), says("three"), exits(0))


@dataclass
class Script:
    """One step for each tick; the last state stays. `parts` has a script for a pod by the end of its name, as in
    `a0-worker-0` or `worker-0`; the first that fits counts."""

    cluster: Cluster
    parts: Mapping[str, Sequence[Step]] = field(default_factory=dict)
    default: Sequence[Step] = HAPPY
    at: dict[str, int] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)

    def step(self, pod: dict[str, Any]) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        if _phase(pod) in FINISHED:
            return
        script = next((steps for end, steps in self.parts.items() if name.endswith(end)), self.default)
        at = self.at.get(uid, 0)
        if at < len(script):
            script[at](self.cluster, pod)
            self.at[uid] = at + 1

    def stop(self, pod: dict[str, Any]) -> bool:
        self.stopped.append(pod["metadata"]["name"])
        self.cluster.log(pod["metadata"]["name"]).ended = True
        return True
