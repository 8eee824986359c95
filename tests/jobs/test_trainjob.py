"""The TrainJob, and what its status means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs import pytorchjob
from vqa_grpo.jobs.spec import JobSpec, job_name
from vqa_grpo.jobs.trainjob import KIND

RUN = "3f9c1d2a-b4e5-4c7e-9d1e-0a1b2c3d4e5f"


def spec(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {"name": job_name(RUN), "run_id": RUN, "module": "m", "image": "i", "kind": "trainjob"}
    return JobSpec(**(fields | changes))


def trainer(manifest: dict) -> dict[str, Any]:
    return manifest["spec"]["trainer"]


def patched(manifest: dict) -> dict[str, Any]:
    """The pod template within the patch."""
    (patch,) = manifest["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert job["name"] == "node"
    return job["template"]["spec"]["template"]


@pytest.mark.parametrize("gpus", [0, 8])
@pytest.mark.parametrize("nodes", [1, 4])
def test_the_operator_accepts_the_manifest(faults_of: Callable[[dict], list[str]], nodes: int, gpus: int) -> None:
    job = spec(num_nodes=nodes, gpus_per_node=gpus, processes_per_node=gpus or 1, namespace="team")
    assert faults_of(KIND.build_manifest(job, {"kind": "Workflow"}, {"AWS_REGION": "eu-1"})) == []


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: trainer(m).update(numNodes="2"),
        lambda m: trainer(m).update(nprocPerNode=2),
        lambda m: m["spec"].pop("runtimeRef"),
        lambda m: trainer(m).update(args=["x"] * 129),
        lambda m: trainer(m)["env"].append(trainer(m)["env"][0]),
        lambda m: patched(m)["spec"].update(priorityClassName="high"),
    ],
)
def test_the_check_finds_a_broken_manifest(faults_of: Callable[[dict], list[str]], break_it: Any) -> None:
    manifest = KIND.build_manifest(spec())
    break_it(manifest)
    assert len(faults_of(manifest)) == 1


def test_it_runs_what_a_pytorchjob_would_run() -> None:
    job = spec(arguments=("--x", "1"), num_nodes=3, processes_per_node=2, gpus_per_node=2, timeout_seconds=99)
    made = KIND.build_manifest(job)
    replicas = pytorchjob.KIND.build_manifest(job)["spec"]["pytorchReplicaSpecs"]
    (other,) = replicas["Master"]["template"]["spec"]["containers"]
    assert {key: trainer(made)[key] for key in ("image", "command", "args", "env")} == {
        key: other[key] for key in ("image", "command", "args", "env")
    }
    assert trainer(made)["resourcesPerNode"] == other["resources"]
    assert (trainer(made)["numNodes"], trainer(made)["numProcPerNode"]) == (3, 2)
    assert made["spec"]["activeDeadlineSeconds"] == 99
    assert made["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": "vqa-grpo",
    }


def test_placement_is_a_patch_of_the_runtime() -> None:
    job = spec(
        node_selector={"gpu": "h200"},
        tolerations=({"key": "team", "operator": "Exists"},),
        service_account="trainer",
        image_pull_secrets=("registry",),
        cache_claim="models",
        shared_memory="1Gi",
        queue="gpus",
    )
    made = KIND.build_manifest(job)
    template = patched(made)
    assert template["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert template["spec"]["serviceAccountName"] == "trainer"
    assert [volume["name"] for volume in template["spec"]["volumes"]] == ["shm", "cache"]
    (container,) = template["spec"]["containers"]
    assert (container["name"], len(container["volumeMounts"])) == ("node", 2)
    assert "env" not in container  # Trainer refuses it there
    assert template["metadata"]["labels"]["vqa-grpo/run-id"] == RUN
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"


def test_overrides_reach_the_trainer_and_the_patch() -> None:
    node = {"name": "node", "env": [{"name": "X", "value": "1"}], "image": "other"}
    made = KIND.build_manifest(spec(overrides={"spec": {"affinity": {"podAffinity": {}}, "containers": [node]}}))
    assert {"name": "X", "value": "1"} in trainer(made)["env"]
    assert trainer(made)["image"] == "other"
    assert patched(made)["spec"]["affinity"] == {"podAffinity": {}}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"priority_class": "high"}, "priorityClassName"),
        ({"overrides": {"spec": {"hostNetwork": True}}}, "hostNetwork"),
        ({"overrides": {"spec": {"automountServiceAccountToken": True}}}, "automountServiceAccountToken"),
        ({"overrides": {"spec": {"containers": [{"name": "sidecar", "image": "x"}]}}}, "sidecar"),
        ({"overrides": {"spec": {"containers": [{"name": "node", "lifecycle": {}}]}}}, "lifecycle"),
        ({"arguments": ("x",) * 300}, "arguments"),
        ({"environment": {f"V{n}": "1" for n in range(150)}}, "variables"),
    ],
)
def test_what_a_trainjob_cannot_do_is_refused_and_not_dropped(changes: dict, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        KIND.build_manifest(spec(**changes))


def test_more_arguments_than_one_list_may_hold_go_into_the_other(faults_of: Callable[[dict], list[str]]) -> None:
    words = tuple(str(number) for number in range(200))
    made = KIND.build_manifest(spec(arguments=words))
    assert tuple((trainer(made)["command"] + trainer(made)["args"])[-200:]) == words
    assert faults_of(made) == []


# --- status -----------------------------------------------------------------------------------------------------------


def job(nodes: dict[str, int] | None = None, **conditions: bool) -> dict:
    said = [{"type": kind, "status": str(holds), "message": f"is {kind}"} for kind, holds in conditions.items()]
    counts = {"active": 0, "failed": 0, "ready": 0, "succeeded": 0, "suspended": 0}
    status = {"conditions": said, "jobsStatus": [{"name": "node", **counts, **(nodes or {})}]}
    return {"metadata": {"name": "j"}, "status": status}


@pytest.mark.parametrize(
    ("found", "phase"),
    [
        ({}, "queued"),
        (job(), "queued"),
        (job({"active": 1}), "queued"),  # pods are there, and not all of them run
        (job({"active": 1, "ready": 1}), "running"),
        (job({"suspended": 1}, Suspended=True), "queued"),
        (job({"active": 1, "ready": 1}, Suspended=False), "running"),
        (job({"succeeded": 1}, Complete=True), "succeeded"),
        (job({"failed": 1}, Failed=True), "failed"),
    ],
)
def test_the_phase_is_read_from_conditions_and_child_jobs(found: dict, phase: str) -> None:
    assert KIND.state(found).phase == phase


def test_the_first_pod_has_index_0_whatever_its_name() -> None:
    labels = {"batch.kubernetes.io/job-completion-index": "0"}
    assert KIND.is_first({"metadata": {"name": "j-node-0-0-x7k2p", "labels": labels}})
    assert not KIND.is_first({"metadata": {"name": "j-node-0-1-x7k2p", "labels": dict.fromkeys(labels, "1")}})
    assert not KIND.is_first({"metadata": {"name": "j"}})
