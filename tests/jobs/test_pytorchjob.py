"""The manifest, held against the operator's own CRD, read strictly: a key that it does not know is an error."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs import render, supervisor
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
TYPES = {"string": str, "boolean": bool, "array": list, "object": dict}


def spec(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "name": job_name(RUN),
        "run_id": RUN,
        "module": "vqa_grpo.training",
        "arguments": ("--config", "s3://b/c.yaml"),
        "environment": {"LEVEL": "info"},
        "image": "example.org/train@sha256:00",
    }
    return JobSpec(**(fields | changes))


def pod(manifest: dict, replica: str = "Master") -> dict:
    return manifest["spec"]["pytorchReplicaSpecs"][replica]["template"]["spec"]


def variables(manifest: dict) -> dict[str, Any]:
    return {
        entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod(manifest)["containers"][0]["env"]
    }


def faults(value: Any, schema: dict, path: str = "") -> Iterator[str]:
    """What an API server with strict field validation would refuse; only what this CRD's schema uses."""
    if "anyOf" in schema or schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{path}: neither int nor string"
        elif isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
            yield f"{path}: {value!r} does not match"
        return
    kind = schema.get("type")
    if kind == "integer":
        if isinstance(value, bool) or not isinstance(value, int):
            yield f"{path}: {value!r} is no integer"
    elif kind in TYPES and not isinstance(value, TYPES[kind]):
        yield f"{path}: {value!r} is no {kind}"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), f"{path}[{index}]")
    elif isinstance(value, dict):
        known, extra = schema.get("properties"), schema.get("additionalProperties")
        yield from (f"{path}.{key}: missing" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            if known is not None and key in known:
                yield from faults(item, known[key], f"{path}.{key}")
            elif isinstance(extra, dict):
                yield from faults(item, extra, f"{path}.{key}")
            elif known is not None:
                yield f"{path}.{key}: unknown"


@pytest.fixture(scope="module")
def schema() -> dict:
    folder = os.environ.get("CRD_DIR")
    if not folder:
        pytest.skip("CRD_DIR is not set: it names a folder with kubeflow.org_pytorchjobs.yaml")
    text = Path(folder, "kubeflow.org_pytorchjobs.yaml").read_text(encoding="utf-8")
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("gpus", [0, 8])
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_the_operator_accepts_the_manifest(schema: dict, nodes: int, gpus: int) -> None:
    job = spec(num_nodes=nodes, gpus_per_node=gpus, processes_per_node=gpus or 1, namespace="team")
    manifest = KIND.build_manifest(job, OWNER, {"AWS_REGION": "eu-1"})
    # A CRD says no more of metadata than that it is an object.
    assert list(faults(manifest, schema)) == []


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
def test_the_check_finds_a_broken_manifest(schema: dict, break_it: Any) -> None:
    manifest = KIND.build_manifest(spec())
    break_it(manifest)
    assert len(list(faults(manifest, schema))) == 1


@pytest.mark.parametrize(("nodes", "replicas"), [(1, [("Master", 1)]), (4, [("Master", 1), ("Worker", 3)])])
def test_one_master_and_the_rest_are_workers(nodes: int, replicas: list) -> None:
    found = KIND.build_manifest(spec(num_nodes=nodes))["spec"]["pytorchReplicaSpecs"]
    assert [(name, replica["replicas"]) for name, replica in found.items()] == replicas


def test_the_pods_run_the_supervisor_which_leaves_the_rendezvous_to_the_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = KIND.build_manifest(
        spec(num_nodes=2, processes_per_node=8, gpus_per_node=8, status_uri="s3://b/r/status")
    )
    container = pod(manifest, "Worker")["containers"][0]
    assert container["name"] == "pytorch"
    assert container["command"][:3] == ["python", "-m", "vqa_grpo.jobs.supervisor"]
    options, work = supervisor._parse(container["command"][3:] + container["args"])
    assert (work.module, work.arguments) == ("vqa_grpo.training", ("--config", "s3://b/c.yaml"))
    assert options.status_uri == "s3://b/r/status"
    assert work.grace_seconds + 15 <= pod(manifest)["terminationGracePeriodSeconds"]
    monkeypatch.setenv("PET_NNODES", "2")
    assert supervisor.command(work)[1:4] == ["-m", "torch.distributed.run", "-m"]
    assert manifest["spec"]["nprocPerNode"] == "8"


def test_nothing_restarts_or_keeps_running_by_itself() -> None:
    manifest = KIND.build_manifest(spec(num_nodes=2, timeout_seconds=99))
    assert {r["restartPolicy"] for r in manifest["spec"]["pytorchReplicaSpecs"].values()} == {"Never"}
    policy = manifest["spec"]["runPolicy"]
    assert policy == {"cleanPodPolicy": "Running", "activeDeadlineSeconds": 99, "ttlSecondsAfterFinished": 86_400}


def test_a_pod_has_what_a_restricted_namespace_asks_for() -> None:
    found = pod(KIND.build_manifest(spec()))
    assert found["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert found["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert found["automountServiceAccountToken"] is False


def test_istio_stays_out_by_label_and_by_annotation() -> None:
    metadata = KIND.build_manifest(spec())["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["metadata"]
    assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
    assert metadata["annotations"]["sidecar.istio.io/inject"] == "false"


def test_shared_memory_is_memory() -> None:
    found = pod(KIND.build_manifest(spec(memory="64Gi")))
    assert found["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}}]
    assert found["containers"][0]["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108


@pytest.mark.parametrize("gpus", [0, 4])
def test_gpus_are_asked_for_only_where_there_are_any(gpus: int) -> None:
    resources = pod(KIND.build_manifest(spec(gpus_per_node=gpus, cpu="3")))["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"].get("nvidia.com/gpu") == ("4" if gpus else None)
    assert resources["limits"]["cpu"] == "3"


def test_several_processes_get_one_thread_each_unless_told_otherwise() -> None:
    assert "OMP_NUM_THREADS" not in variables(KIND.build_manifest(spec()))
    assert variables(KIND.build_manifest(spec(num_nodes=2)))["OMP_NUM_THREADS"] == "1"
    told = spec(num_nodes=2, environment={"OMP_NUM_THREADS": "4"})
    assert variables(KIND.build_manifest(told))["OMP_NUM_THREADS"] == "4"


def test_keys_come_from_secrets_and_places_from_the_launcher() -> None:
    launcher = {"AWS_ENDPOINT_URL": "http://s3:8333", "AWS_SECRET_ACCESS_KEY": "hush", "HOME": "/h", "AWS_REGION": ""}
    found = variables(KIND.build_manifest(spec(), environment=inherited(launcher)))
    assert found["AWS_ENDPOINT_URL"] == "http://s3:8333"
    assert found["AWS_SECRET_ACCESS_KEY"] == {
        "secretKeyRef": {"name": "vqa-grpo-s3", "key": "AWS_SECRET_ACCESS_KEY", "optional": True}
    }
    assert "hush" not in str(found)
    assert not {"HOME", "AWS_REGION"} & set(found)


@pytest.mark.parametrize(
    "environment",
    [
        {"AWS_SECRET_ACCESS_KEY": "hush"},
        {"hf_token": "hush"},
        {"MLFLOW_TRACKING_URI": "http://me:hush@mlflow:5000"},
    ],
)
def test_a_secret_in_plain_sight_is_refused_without_printing_it(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as error:
        KIND.build_manifest(spec(environment=environment))
    assert "hush" not in str(error.value)


def test_a_name_that_only_looks_like_a_secret_is_no_secret() -> None:
    KIND.build_manifest(spec(environment={"TOKENIZERS_PARALLELISM": "false", "MAX_TOKENS": "9"}))


def test_the_job_carries_its_run_its_digest_and_its_owner() -> None:
    job = spec()
    metadata = KIND.build_manifest(job, OWNER)["metadata"]
    assert metadata["labels"]["vqa-grpo/run-id"] == RUN
    assert metadata["annotations"]["vqa-grpo/spec-hash"] == job.spec_hash
    assert metadata["ownerReferences"] == [OWNER]
    assert "ownerReferences" not in KIND.build_manifest(job)["metadata"]


def test_a_job_without_an_image_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="image"):
        KIND.build_manifest(spec(image=""))


def test_what_is_rendered_is_what_would_be_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-1")
    text = render(spec(num_nodes=2))
    assert yaml.safe_load(text) == KIND.build_manifest(spec(num_nodes=2), environment=inherited(os.environ))
    assert "&id" not in text
