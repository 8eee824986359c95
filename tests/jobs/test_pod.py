"""The pod that trains, whatever kind of job it belongs to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs import supervisor
from vqa_grpo.jobs.pod import inherited, merged, template
from vqa_grpo.jobs.spec import JobSpec, job_name

RUN = "3f9c1d2a-b4e5-4c7e-9d1e-0a1b2c3d4e5f"


def pod(launcher: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": job_name(RUN),
        "run_id": RUN,
        "module": "vqa_grpo.training",
        "arguments": ("--config", "s3://b/c.yaml"),
        "image": "example.org/train@sha256:00",
    }
    return template(JobSpec(**(fields | changes)), "pytorch", launcher)


def container(**changes: Any) -> dict[str, Any]:
    return pod(**changes)["spec"]["containers"][0]


def variables(launcher: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    entries = pod(launcher, **changes)["spec"]["containers"][0]["env"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}


def test_it_runs_the_supervisor_which_leaves_the_rendezvous_to_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"num_nodes": 2, "processes_per_node": 8, "gpus_per_node": 8, "status_uri": "s3://b/r/status"}
    made = container(**changes)
    assert made["command"][:3] == ["python", "-m", "vqa_grpo.jobs.supervisor"]
    options, work = supervisor._parse(made["command"][3:] + made["args"])
    assert (work.module, work.arguments) == ("vqa_grpo.training", ("--config", "s3://b/c.yaml"))
    assert options.status_uri == "s3://b/r/status"
    monkeypatch.setenv("PET_NNODES", "2")
    assert supervisor.command(work)[1:4] == ["-m", "torch.distributed.run", "-m"]


@pytest.mark.parametrize("grace", [30, 120, 600])
def test_the_supervisor_has_time_for_a_last_word_within_the_pods_grace(grace: int) -> None:
    found = pod(grace_seconds=grace)["spec"]
    _, work = supervisor._parse(found["containers"][0]["command"][3:] + found["containers"][0]["args"])
    assert found["terminationGracePeriodSeconds"] == grace
    assert 0 < work.grace_seconds <= grace - 15


def test_it_has_what_a_restricted_namespace_asks_for() -> None:
    found = pod()["spec"]
    # The operator's own init container runs as root, and inherits what the pod says.
    assert found["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert found["containers"][0]["securityContext"] == {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert found["automountServiceAccountToken"] is False


def test_istio_stays_out_by_label_and_by_annotation() -> None:
    metadata = pod()["metadata"]
    assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
    assert metadata["annotations"]["sidecar.istio.io/inject"] == "false"


@pytest.mark.parametrize(("own", "size"), [("", "64Gi"), ("16Gi", "16Gi")])
def test_shared_memory_is_memory_and_has_a_size_of_its_own(own: str, size: str) -> None:
    found = pod(memory="64Gi", shared_memory=own)["spec"]
    assert found["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}]
    assert found["containers"][0]["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108


@pytest.mark.parametrize("gpus", [0, 4])
def test_gpus_are_asked_for_only_where_there_are_any(gpus: int) -> None:
    resources = container(gpus_per_node=gpus, cpu="3")["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"].get("nvidia.com/gpu") == ("4" if gpus else None)
    assert resources["limits"]["cpu"] == "3"
    assert "tolerations" in pod(gpus_per_node=4)["spec"]
    assert "tolerations" not in pod()["spec"]


def test_network_cards_and_disk_are_resources_too() -> None:
    limits = container(resources={"rdma/hca": "1"}, ephemeral_storage="200Gi")["resources"]["limits"]
    assert limits == {"cpu": "2", "memory": "6Gi", "rdma/hca": "1", "ephemeral-storage": "200Gi"}


def test_a_claim_keeps_models_and_data_and_a_non_root_user_may_write_to_it() -> None:
    found = pod(cache_claim="models")["spec"]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}} in found["volumes"]
    (mount,) = (mount for mount in found["containers"][0]["volumeMounts"] if mount["name"] == "cache")
    assert found["securityContext"]["fsGroup"]
    there = variables(cache_claim="models")
    assert there["HF_HOME"].startswith(mount["mountPath"])
    assert there["VQA_GRPO_CACHE"].startswith(mount["mountPath"])
    assert "HF_HOME" not in variables()


def test_placement_goes_where_kubernetes_looks_for_it() -> None:
    found = pod(
        gpus_per_node=1,
        node_selector={"gpu": "h200"},
        tolerations=({"key": "team", "operator": "Exists"},),
        priority_class="high",
        service_account="trainer",
        image_pull_secrets=("registry",),
    )["spec"]
    assert found["nodeSelector"] == {"gpu": "h200"}
    assert [toleration["key"] for toleration in found["tolerations"]] == ["nvidia.com/gpu", "team"]
    assert found["priorityClassName"] == "high"
    assert found["serviceAccountName"] == "trainer"
    assert found["imagePullSecrets"] == [{"name": "registry"}]


def test_several_processes_get_one_thread_each_unless_told_otherwise() -> None:
    assert "OMP_NUM_THREADS" not in variables()
    assert variables(num_nodes=2)["OMP_NUM_THREADS"] == "1"
    assert variables(num_nodes=2, environment={"OMP_NUM_THREADS": "4"})["OMP_NUM_THREADS"] == "4"
    assert variables({"OMP_NUM_THREADS": "3"}, num_nodes=2)["OMP_NUM_THREADS"] == "3"


def test_what_the_launcher_knows_of_nccl_is_handed_on_and_what_is_asked_for_wins() -> None:
    launcher = inherited({"NCCL_SOCKET_IFNAME": "eth0", "TORCH_NCCL_TRACE_BUFFER_SIZE": "9", "NCCL_DEBUG": "INFO"})
    found = variables(launcher, gpus_per_node=1, environment={"NCCL_SOCKET_IFNAME": "ib0"})
    assert found["NCCL_SOCKET_IFNAME"] == "ib0"
    assert found["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "9"
    assert found["NCCL_DEBUG"] == "INFO"
    assert variables(gpus_per_node=1)["NCCL_DEBUG"] == "WARN"


def test_keys_come_from_secrets_and_places_from_the_launcher() -> None:
    launcher = {"AWS_ENDPOINT_URL": "http://s3:8333", "AWS_SECRET_ACCESS_KEY": "hush", "HOME": "/h", "AWS_REGION": ""}
    found = variables(inherited(launcher))
    assert found["AWS_ENDPOINT_URL"] == "http://s3:8333"
    assert found["AWS_SECRET_ACCESS_KEY"] == {
        "secretKeyRef": {"name": "vqa-grpo-s3", "key": "AWS_SECRET_ACCESS_KEY", "optional": True}
    }
    assert "hush" not in str(found)
    assert not {"HOME", "AWS_REGION"} & set(found)


def test_a_secret_that_somebody_named_must_be_there() -> None:
    found = variables(secrets={"WANDB_API_KEY": "wandb", "AWS_ACCESS_KEY_ID": "own"})
    assert found["WANDB_API_KEY"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}
    assert "optional" not in found["AWS_ACCESS_KEY_ID"]["secretKeyRef"]


def test_a_variable_from_a_secret_is_not_taken_from_the_launcher() -> None:
    found = variables({"MLFLOW_TRACKING_URI": "http://m"}, secrets={"MLFLOW_TRACKING_URI": "mlflow"})
    assert found["MLFLOW_TRACKING_URI"] == {"secretKeyRef": {"name": "mlflow", "key": "MLFLOW_TRACKING_URI"}}
    with pytest.raises(ConfigurationError, match="both"):
        template_of({"A": "1"}, secrets={"A": "s"})


@pytest.mark.parametrize(
    "environment",
    [
        {"AWS_SECRET_ACCESS_KEY": "hush"},
        {"hf_token": "hush"},
        {"MLFLOW_TRACKING_URI": "http://me:hush@mlflow:5000"},
    ],
)
@pytest.mark.parametrize("where", ["environment", "overrides"])
def test_a_secret_in_plain_sight_is_refused_without_printing_it(where: str, environment: dict[str, str]) -> None:
    env = [{"name": name, "value": value} for name, value in environment.items()]
    changes = {"environment": environment, "secrets": {}}
    if where == "overrides":
        changes = {"overrides": {"spec": {"containers": [{"name": "pytorch", "env": env}]}}}
    with pytest.raises(ConfigurationError) as error:
        template(JobSpec(name="x", run_id="r", module="m", image="i", **changes), "pytorch")
    assert "hush" not in str(error.value)


def test_a_name_that_only_looks_like_a_secret_is_no_secret() -> None:
    template_of({"TOKENIZERS_PARALLELISM": "false", "MAX_TOKENS": "9"})


def template_of(environment: dict[str, str], **more: Any) -> dict[str, Any]:
    return template(JobSpec(name="x", run_id="r", module="m", image="i", environment=environment, **more), "pytorch")


@pytest.mark.parametrize("name", ["PET_NNODES", "MASTER_ADDR", "RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_what_the_operator_sets_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        template_of({name: "1"})


def test_a_job_without_an_image_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="image"):
        pod(image="")


# --- what Kubernetes makes of a dollar --------------------------------------------------------------------------------


def expanded(text: str, known: dict[str, str]) -> str:
    """What a container gets of an argument or a value, by the rules of the API's documentation."""
    out, at = "", 0
    while at < len(text):
        if text.startswith("$$", at):
            out, at = out + "$", at + 2
        elif text.startswith("$(", at) and ")" in text[at:]:
            end = text.index(")", at)
            out, at = out + known.get(text[at + 2 : end], text[at : end + 1]), end + 1
        else:
            out, at = out + text[at], at + 1
    return out


@given(st.text("$()AB ", max_size=12))
def test_an_argument_and_a_value_arrive_as_they_are(text: str) -> None:
    """A prompt with $(AWS_SECRET_ACCESS_KEY) in it would otherwise hold the key."""
    made = template_of({"X": text}, arguments=("--prompt_template", text))["spec"]["containers"][0]
    known = {"A": "hush", "X": "hush"}
    assert expanded(made["args"][1], known) == text
    assert expanded(next(entry["value"] for entry in made["env"] if entry["name"] == "X"), known) == text


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_come_last_and_find_containers_variables_and_volumes_by_name() -> None:
    wanted = {
        "metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "ib"}},
        "spec": {
            "schedulerName": "volcano",
            "securityContext": {"seccompProfile": None},
            "containers": [
                {
                    "name": "pytorch",
                    "env": [{"name": "LEVEL", "value": "debug"}, {"name": "NEW", "value": "1"}],
                    "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
                    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                }
            ],
            "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "shm", "emptyDir": {"sizeLimit": "1Gi"}}],
        },
    }
    made = template_of({"LEVEL": "info"}, arguments=("-x",), overrides=wanted)
    assert made["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "ib"
    assert made["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
    spec = made["spec"]
    assert (spec["schedulerName"], spec["securityContext"]) == ("volcano", {})
    assert [volume["name"] for volume in spec["volumes"]] == ["shm", "scratch"]
    assert spec["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    (only,) = spec["containers"]
    assert {entry["name"] for entry in only["env"]} >= {"LEVEL", "NEW", "AWS_ACCESS_KEY_ID"}
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert [mount["mountPath"] for mount in only["volumeMounts"]] == ["/dev/shm", "/scratch"]  # noqa: S108
    assert only["args"] == ["-x"]
    assert [entry["value"] for entry in only["env"] if entry["name"] == "LEVEL"] == ["debug"]


@pytest.mark.parametrize("containers", [[{"image": "x"}], "none", None, ["pytorch"], 3, {}, {"name": "pytorch"}])
def test_overrides_that_lose_the_container_are_refused(containers: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"job\.overrides: spec\.containers must be a list"):
        pod(overrides={"spec": {"containers": containers}})


def test_a_container_that_only_prepares_is_not_the_one_that_trains() -> None:
    with pytest.raises(ConfigurationError, match="the one that trains is pytorch"):
        pod(overrides={"spec": {"containers": None, "initContainers": [{"name": "pytorch"}]}})


@pytest.mark.parametrize("key", ["env", "volumeMounts"])
@pytest.mark.parametrize("value", [3, "", {}, [3], [{"value": "x"}], {"name": "x"}, [None]])
def test_what_is_merged_by_name_must_have_names(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"job\.overrides: pytorch\.{key} must be a list of things with a "):
        pod(overrides={"spec": {"containers": [{"name": "pytorch", key: value}]}})


@pytest.mark.parametrize("key", ["initContainers", "volumes"])
def test_a_pods_own_lists_must_have_names_too(key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"job\.overrides: spec\.{key} must be a list of things with a name"):
        pod(overrides={"spec": {key: [3]}})


@pytest.mark.parametrize("policy", ["Always", "OnFailure", 3])
def test_a_pod_is_never_restarted_alone(policy: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"spec\.restartPolicy must be Never"):
        pod(overrides={"spec": {"restartPolicy": policy}})


def test_one_volume_can_be_mounted_twice() -> None:
    mounts = [{"name": "shm", "mountPath": "/a"}, {"name": "shm", "mountPath": "/b"}]
    made = pod(overrides={"spec": {"containers": [{"name": "pytorch", "volumeMounts": mounts}]}})
    paths = [mount["mountPath"] for mount in made["spec"]["containers"][0]["volumeMounts"]]
    assert paths == ["/dev/shm", "/a", "/b"]  # noqa: S108


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "a", "b"]), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=2), JSON, max_size=3), st.dictionaries(st.text(max_size=2), JSON, max_size=3))
def test_merging_changes_neither_side_and_leaves_no_null_that_was_not_there(base: dict, change: dict) -> None:
    before = repr((base, change))
    made = merged(base, change)
    assert repr((base, change)) == before
    assert merged(base, {}) == base
    for key, value in change.items():
        assert (key in made) == (value is not None)
