"""Operators of the tests' own: pods for PyTorchJobs and TrainJobs, and the jobs' conditions from their pods.

They do what training operator 1.9 and Trainer 2.2 do for jobs as ours are: no pod is restarted, and the first that
fails ends the job. What happens inside of pods is a kubelet's: `Script` plays it, `nodes.Kubelet` runs real processes.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from emulator import NAMESPACE, Cluster, now

FINISHED = ("Succeeded", "Failed")
_PORTS = {"pytorchjobs": "23456", "trainjobs": "29400"}
_OWNER_LABELS = {"pytorchjobs": "training.kubeflow.org/job-name", "trainjobs": "jobset.sigs.k8s.io/jobset-name"}


class Kubelet(Protocol):
    def step(self, pod: dict[str, Any]) -> None:
        """Let time pass for a pod: its status is changed in place. The first call is its beginning."""

    def stop(self, pod: dict[str, Any]) -> bool:
        """The pod is to be deleted: end it, with its grace; its status may change meanwhile. Whether it is gone."""


class Operator:
    """Call `tick` again and again."""

    def __init__(self, cluster: Cluster, kubelet: Kubelet) -> None:
        self._cluster = cluster
        self._kubelet = kubelet

    def tick(self) -> None:
        pods = self._pods()
        uids = set()
        for plural in _PORTS:
            for job in self._cluster.read(plural):
                uids.add(job["metadata"]["uid"])
                self._reconcile(plural, job, [pod for pod in pods if _owner_of(pod) == job["metadata"]["uid"]])
        for pod in pods:
            if _owner_of(pod) not in uids:
                self._delete(pod)  # what Kubernetes' garbage collector does once the owner is gone

    def running(self) -> list[str]:
        """Pods that hold a node."""
        return [pod["metadata"]["name"] for pod in self._pods() if _phase(pod) not in FINISHED]

    def _pods(self) -> list[dict[str, Any]]:
        """The pods of jobs."""
        return [pod for pod in self._cluster.read("pods") if set(_OWNER_LABELS.values()) & set(_labels(pod))]

    def _reconcile(self, plural: str, job: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        status = job.get("status") or {"conditions": [], "startTime": now()}
        if any(_has(status, kind) for kind in ("Succeeded", "Complete", "Failed")):
            for pod in pods:
                if _phase(pod) not in FINISHED:
                    self._delete(pod)
            return
        if not pods:
            pods = pods_of(plural, job)
            there = {pod["metadata"]["name"] for pod in self._pods()}
            if there & {pod["metadata"]["name"] for pod in pods}:
                return  # those of a job of this name that was deleted have to go first
            for pod in pods:
                self._cluster.put("pods", pod)
        else:
            for pod in pods:
                self._kubelet.step(pod)
                self._cluster.set_status("pods", pod["metadata"]["name"], pod["status"])
        phases = {rank_of(pod): _phase(pod) for pod in pods}
        _CONDITIONS[plural](job["metadata"]["name"], status, phases)
        self._cluster.set_status(plural, job["metadata"]["name"], status)

    def _delete(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        if self._kubelet.stop(pod):
            self._cluster.remove("pods", name)
        else:
            self._cluster.set_status("pods", name, pod["status"])


def _of_pytorchjob(name: str, status: dict[str, Any], phases: Mapping[int, str]) -> None:
    _add(status, "Created", f"PyTorchJob {name} is created.")
    if "Running" in phases.values():
        _add(status, "Running", f"PyTorchJob {NAMESPACE}/{name} is running.")
    failed = [rank for rank, phase in phases.items() if phase == "Failed"]
    if phases[0] == "Succeeded":
        _end(status, "Succeeded", f"PyTorchJob {NAMESPACE}/{name} successfully completed.")
    elif failed:
        kind = "Worker" if failed[0] else "Master"
        _end(status, "Failed", f"PyTorchJob {name} is failed because {len(failed)} {kind} replica(s) failed.")


def _of_trainjob(name: str, status: dict[str, Any], phases: Mapping[int, str]) -> None:
    # The node's Job is ready once all of its pods are.
    ready = int(all(phase == "Running" for phase in phases.values()))
    status["jobsStatus"] = [{"name": "node", "ready": ready, "succeeded": 0, "failed": 0, "active": 1, "suspended": 0}]
    if all(phase == "Succeeded" for phase in phases.values()):
        _end(status, "Complete", "jobset completed successfully")
    elif "Failed" in phases.values():
        _end(status, "Failed", "jobset failed due to one or more job failures")


_CONDITIONS = {"pytorchjobs": _of_pytorchjob, "trainjobs": _of_trainjob}


def pods_of(plural: str, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pods that an operator makes of a job, with what it puts behind the environment of each container."""
    return _pods_of_pytorchjob(job) if plural == "pytorchjobs" else _pods_of_trainjob(job)


def _pods_of_pytorchjob(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    name, spec = job["metadata"]["name"], job["spec"]
    replicas = spec["pytorchReplicaSpecs"]
    nodes = sum(replica["replicas"] for replica in replicas.values())
    processes = str(spec.get("nprocPerNode", "auto"))
    master, port = f"{name}-master-0", _PORTS["pytorchjobs"]
    pods = []
    for kind, replica in replicas.items():
        for index in range(replica["replicas"]):
            rank = str(index if kind == "Master" else index + 1)
            environment = {
                "PYTHONUNBUFFERED": "1",
                "MASTER_PORT": port,
                "PET_MASTER_PORT": port,
                "MASTER_ADDR": master,
                "PET_MASTER_ADDR": master,
                "WORLD_SIZE": str(nodes * int(processes) if processes.isdigit() else nodes),
                "RANK": rank,
                "PET_NODE_RANK": rank,
                "PET_NPROC_PER_NODE": processes,
                "PET_NNODES": str(nodes),
            }
            labels = {
                _OWNER_LABELS["pytorchjobs"]: name,
                "training.kubeflow.org/operator-name": "pytorchjob-controller",
                "training.kubeflow.org/replica-index": str(index),
                "training.kubeflow.org/replica-type": kind.lower(),
            }
            if kind == "Master":
                labels["training.kubeflow.org/job-role"] = "master"
            pods.append(_pod(job, f"{name}-{kind.lower()}-{index}", replica["template"], labels, environment))
    return pods


def _pods_of_trainjob(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = copy.deepcopy(node["template"]["spec"]["template"])
    (container,) = template["spec"]["containers"]
    container |= {key: trainer[key] for key in ("image", "command", "args", "env")}
    pods = []
    for rank in range(trainer["numNodes"]):
        environment = {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
            "PET_MASTER_PORT": _PORTS["trainjobs"],
        }
        labels = {_OWNER_LABELS["trainjobs"]: name, "batch.kubernetes.io/job-completion-index": str(rank)}
        pods.append(_pod(job, f"{name}-node-0-{rank}-{uuid.uuid4().hex[:5]}", template, labels, environment))
    return pods


def _pod(
    job: Mapping[str, Any],
    name: str,
    template: Mapping[str, Any],
    labels: Mapping[str, str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    spec = copy.deepcopy(template["spec"])
    for container in spec["containers"]:
        added = [{"name": key, "value": value} for key, value in environment.items()]
        container["env"] = [*container.get("env", ()), *added]
    metadata = template.get("metadata", {})
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], **_only(job["metadata"], ("name", "uid"))}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {**metadata.get("labels", {}), **labels},
            "annotations": dict(metadata.get("annotations", {})),
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        },
        "spec": spec,
        "status": {"phase": "Pending"},
    }


def _only(thing: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: thing[key] for key in keys}


def rank_of(pod: Mapping[str, Any]) -> int:
    """The node's number in its job; the master's is 0."""
    env = pod["spec"]["containers"][0]["env"]
    return int(next(each["value"] for each in env if each["name"] == "PET_NODE_RANK"))


def attempt_of(pod: Mapping[str, Any]) -> int:
    return int(pod["metadata"]["ownerReferences"][0]["name"].rpartition("-a")[2])


def _phase(pod: Mapping[str, Any]) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _labels(pod: Mapping[str, Any]) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}


def _owner_of(pod: Mapping[str, Any]) -> str:
    return str((pod["metadata"].get("ownerReferences") or [{}])[0].get("uid", ""))


def _has(status: Mapping[str, Any], kind: str) -> bool:
    return any(each["type"] == kind and each["status"] == "True" for each in status.get("conditions", ()))


def _add(status: dict[str, Any], kind: str, message: str) -> None:
    if not _has(status, kind):
        said = {"type": kind, "status": "True", "reason": f"Job{kind}", "message": message}
        status["conditions"].append(said | {"lastUpdateTime": now(), "lastTransitionTime": now()})


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
            cluster.log(pod).add(line)

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
        cluster.log(pod).ended = True

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


def event(cluster: Cluster, thing: Mapping[str, Any], reason: str, message: str, kind: str = "Pod") -> None:
    name = f"{thing['metadata']['name']}.{reason.lower()}"
    involved = {
        "kind": kind,
        "namespace": NAMESPACE,
        "name": thing["metadata"]["name"],
        "uid": thing["metadata"]["uid"],
    }
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
    """One step for each tick; the last state stays. `parts` has the script of a pod as `worker`, or for one attempt
    as `a0_worker`; what is not there plays `default`."""

    cluster: Cluster
    parts: Mapping[str, Sequence[Step]] = field(default_factory=dict)
    default: Sequence[Step] = HAPPY
    at: dict[str, int] = field(default_factory=dict)

    def step(self, pod: dict[str, Any]) -> None:
        if _phase(pod) in FINISHED:
            return
        uid, script = pod["metadata"]["uid"], self._script(pod)
        at = self.at.get(uid, 0)
        if at < len(script):
            script[at](self.cluster, pod)
            self.at[uid] = at + 1

    def stop(self, pod: dict[str, Any]) -> bool:
        """What its script has left is how it ends; a pod without an end of its own is gone at once."""
        script, at = self._script(pod), self.at.get(pod["metadata"]["uid"], 0)
        if _phase(pod) in FINISHED or at == len(script):
            self.cluster.log(pod).ended = True
            return True
        self.step(pod)
        return False

    def _script(self, pod: Mapping[str, Any]) -> Sequence[Step]:
        role = "worker" if rank_of(pod) else "master"
        return self.parts.get(f"a{attempt_of(pod)}_{role}") or self.parts.get(role) or self.default
