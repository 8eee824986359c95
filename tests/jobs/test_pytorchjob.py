"""The PyTorchJob, and what its status means."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from vqa_grpo import jobs
from vqa_grpo.jobs.pod import inherited
from vqa_grpo.jobs.pytorchjob import KIND
from vqa_grpo.jobs.spec import JobSpec, job_name

RUN = "3f9c1d2a-b4e5-4c7e-9d1e-0a1b2c3d4e5f"
OWNER = {
    "apiVersion": "argoproj.io/v1alpha1",
    "kind": "Workflow",
    "name": "w",
    "uid": "u",
    "controller": False,
    "blockOwnerDeletion": False,
}


def spec(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {"name": job_name(RUN), "run_id": RUN, "module": "vqa_grpo.training", "image": "i"}
    return JobSpec(**(fields | changes))


def pod(manifest: dict, replica: str = "Master") -> dict:
    return manifest["spec"]["pytorchReplicaSpecs"][replica]["template"]["spec"]


@pytest.mark.parametrize("gpus", [0, 8])
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_the_operator_accepts_the_manifest(faults_of: Callable[[dict], list[str]], nodes: int, gpus: int) -> None:
    job = spec(num_nodes=nodes, gpus_per_node=gpus, processes_per_node=gpus or 1, namespace="team")
    assert faults_of(KIND.build_manifest(job, OWNER, {"AWS_REGION": "eu-1"})) == []


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: m["spec"].update(nprocPerNode=8),
        lambda m: m["spec"]["runPolicy"].update(backofLimit=0),
        lambda m: pod(m)["containers"][0].update(volumeMount=[]),
        lambda m: pod(m)["containers"][0].pop("name"),
        lambda m: pod(m)["containers"][0]["resources"]["limits"].update(memory="six"),
    ],
)
def test_the_check_finds_a_broken_manifest(faults_of: Callable[[dict], list[str]], break_it: Any) -> None:
    manifest = KIND.build_manifest(spec())
    break_it(manifest)
    assert len(faults_of(manifest)) == 1


@pytest.mark.parametrize(("nodes", "replicas"), [(1, [("Master", 1)]), (4, [("Master", 1), ("Worker", 3)])])
def test_one_master_and_the_rest_are_workers(nodes: int, replicas: list) -> None:
    found = KIND.build_manifest(spec(num_nodes=nodes))["spec"]["pytorchReplicaSpecs"]
    assert [(name, replica["replicas"]) for name, replica in found.items()] == replicas


def test_the_operator_finds_the_container_under_its_name_and_the_number_of_processes_as_text() -> None:
    manifest = KIND.build_manifest(spec(num_nodes=2, processes_per_node=8, gpus_per_node=8))
    assert pod(manifest, "Worker")["containers"][0]["name"] == "pytorch"
    assert manifest["spec"]["nprocPerNode"] == "8"


def test_nothing_restarts_or_keeps_running_by_itself() -> None:
    manifest = KIND.build_manifest(spec(num_nodes=2, timeout_seconds=99))
    assert {r["restartPolicy"] for r in manifest["spec"]["pytorchReplicaSpecs"].values()} == {"Never"}
    policy = manifest["spec"]["runPolicy"]
    assert policy == {"cleanPodPolicy": "Running", "activeDeadlineSeconds": 99, "ttlSecondsAfterFinished": 86_400}


def test_the_job_carries_its_run_its_digest_its_queue_and_its_owner() -> None:
    job = spec(queue="gpus", labels={"team": "vision", "vqa-grpo/run-id": "forged"})
    metadata = KIND.build_manifest(job, OWNER)["metadata"]
    assert metadata["labels"]["vqa-grpo/run-id"] == RUN
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert metadata["labels"]["team"] == "vision"
    assert metadata["annotations"]["vqa-grpo/spec-hash"] == job.spec_hash
    assert metadata["ownerReferences"] == [OWNER]
    assert "ownerReferences" not in KIND.build_manifest(job)["metadata"]


def test_pods_carry_the_run_but_no_queue() -> None:
    """Kueue admits the job as a whole, and would take a pod with its label for one that stands alone."""
    made = KIND.build_manifest(spec(queue="gpus"))["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["metadata"]
    assert made["labels"]["vqa-grpo/run-id"] == RUN
    assert not [name for name in made["labels"] if "kueue" in name]


def test_what_is_built_is_what_would_be_submitted_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-1")
    manifest = jobs.build(spec(num_nodes=2))
    assert manifest["kind"] == "PyTorchJob"
    assert {"name": "AWS_REGION", "value": "eu-1"} in pod(manifest)["containers"][0]["env"]
    assert manifest == KIND.build_manifest(spec(num_nodes=2), environment=inherited(os.environ))


# --- status -----------------------------------------------------------------------------------------------------------


def job(**conditions: bool) -> dict:
    said = [{"type": kind, "status": str(holds), "message": f"is {kind}"} for kind, holds in conditions.items()]
    return {"metadata": {"name": "j"}, "status": {"conditions": said}}


@pytest.mark.parametrize(
    ("found", "phase"),
    [
        ({}, "queued"),
        ({"metadata": {}, "status": {}}, "queued"),
        (job(Created=True), "queued"),
        (job(Created=True, Running=True), "running"),
        (job(Created=True, Suspended=True, Running=False), "queued"),
        (job(Created=True, Suspended=False, Running=True), "running"),
        (job(Created=True, Running=False, Succeeded=True), "succeeded"),
        (job(Created=True, Running=False, Failed=True), "failed"),
    ],
)
def test_the_phase_is_read_from_the_conditions(found: dict, phase: str) -> None:
    state = KIND.state(found)
    assert state.phase == phase
    assert state.finished == (phase in ("succeeded", "failed"))
    assert "False" not in str(state.conditions)


def test_a_suspended_job_waits_and_says_what_for() -> None:
    """Kueue suspends a job until its queue has room, and again when something more urgent comes."""
    state = KIND.state(job(Created=True, Running=True, Suspended=True))
    assert (state.phase, state.message) == ("queued", "is Suspended")


def test_a_failed_job_says_why_and_all_that_holds_is_there_to_be_announced() -> None:
    state = KIND.state(job(Created=True, Running=False, Failed=True))
    assert state.message == "is Failed"
    assert [condition.type for condition in state.conditions] == ["Created", "Failed"]


def test_the_first_pod_is_the_master() -> None:
    assert KIND.is_first({"metadata": {"name": "j-a0-master-0"}})
    assert not KIND.is_first({"metadata": {"name": "j-a0-worker-0"}})
    assert KIND.pod_selector("j-a0") == "training.kubeflow.org/job-name=j-a0"
