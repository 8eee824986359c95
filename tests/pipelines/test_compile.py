"""The compiled pipelines, read as Kubeflow reads them: from YAML."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from vqa_grpo.contract.failure import StepError
from vqa_grpo.jobs.spec import SECRETS
from vqa_grpo.pipelines import package as packaging
from vqa_grpo.pipelines.package import package

COMPONENTS = Path(packaging.__file__).parents[1] / "components"
STEPS_IMAGE = "registry.example/steps@sha256:" + "1" * 64
TRAINER_IMAGE = "registry.example/trainer@sha256:" + "2" * 64
ON_TRAINER = {"prepare-model"}
LAUNCHERS = {"train-model", "evaluate-models"}
CACHED = {"validate-dataset": {"checks"}, "convert-dataset": {"report_uri"}}  # and what each needs of its own
PARTS = {"list-parts", "scan-part", "conclude-validation", "convert-part", "merge-parts"}
REQUIRED = {"vqa-grpo-train": set(), "vqa-grpo-retrain": {"output_root"}}  # memory of decisions has no default place
IMAGE_PARAMETER = "{{$.inputs.parameters['pipelinechannel--trainer_image']}}"


def tasks(compiled: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task of every level, groups included."""
    dags = [compiled["root"], *compiled["components"].values()]
    for dag in dags:
        yield from dag.get("dag", {}).get("tasks", {}).items()


def work(compiled: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tasks that run a container."""
    own = {name.removeprefix("comp-") for name, part in compiled["components"].items() if "executorLabel" in part}
    return {name: task for name, task in tasks(compiled) if name in own}


def containers(compiled: dict[str, Any]) -> dict[str, dict[str, Any]]:
    executors = compiled["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()}


def test_both_pipelines_hold_every_step_and_only_retrain_asks_whether_to(compiled):
    steps = {path.stem.replace("_", "-") for path in COMPONENTS.glob("*.py")} - {"--init--", "images"}
    missing = steps - set(work(compiled))
    assert missing - PARTS == (set() if compiled["pipelineInfo"]["name"] == "vqa-grpo-retrain" else {"needs-training"})


def test_the_data_pipeline_works_in_parts_and_its_results_can_be_cached(packaged):
    compiled, _ = yaml.safe_load_all(packaged["data"].read_text())
    assert set(work(compiled)) == PARTS | {"resolve-source"}
    loops = [task["parameterIterator"] for _, task in tasks(compiled) if "parameterIterator" in task]
    assert len(loops) == 2
    cached = {name for name, task in work(compiled).items() if task["cachingOptions"].get("enableCache")}
    assert cached == PARTS - {"list-parts"}
    assert all(steps["image"] == STEPS_IMAGE for steps in containers(compiled).values())


def test_compiling_twice_gives_the_same_bytes(packaged, tmp_path):
    again = package(tmp_path / "a new folder", STEPS_IMAGE, TRAINER_IMAGE)
    assert {path.stem: path.read_bytes() for path in again} == {
        name: path.read_bytes() for name, path in packaged.items()
    }


def defaults_of(compiled: dict[str, Any]) -> dict[str, Any]:
    parameters = compiled["root"]["inputDefinitions"]["parameters"]
    return {name: part["defaultValue"] for name, part in parameters.items() if "defaultValue" in part}


def test_a_person_is_asked_for_few_parameters_each_with_a_default_and_a_description(compiled):
    parameters = compiled["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 15
    for name, parameter in parameters.items():
        assert parameter.get("description"), name
    assert set(parameters) - set(defaults_of(compiled)) == REQUIRED[compiled["pipelineInfo"]["name"]]


def test_the_default_parameters_are_a_smoke_run_on_two_nodes_without_gpus(compiled):
    defaults = defaults_of(compiled)
    assert defaults.pop("config") == "quickstart"
    assert (defaults.pop("num_nodes"), defaults.pop("gpus_per_node")) == (2, 0)
    assert defaults.pop("trainer_image") == TRAINER_IMAGE
    assert set(defaults.values()) == {"", 0}  # everything else is the configuration's to say


def test_the_default_parameters_are_a_valid_configuration(compiled, tmp_path):
    """What the first task would do with them, without Kubeflow."""
    from vqa_grpo.components.resolve_source import resolve_source
    from vqa_grpo.steps.shared import config_of

    parameters = compiled["root"]["inputDefinitions"]["parameters"]
    types = {"NUMBER_INTEGER": int, "STRING": str}
    values = {name: types[parameters[name]["parameterType"]](value) for name, value in defaults_of(compiled).items()}
    del values["trainer_image"]
    values.setdefault("output_root", "")
    place = SimpleNamespace(uri=f"{tmp_path}/resolve-source/an-execution/place")
    resolved = resolve_source.python_func(**values, place=place, job_id="a-kubeflow-job")
    run = config_of(resolved.config)
    assert (run.job.num_nodes, run.job.gpus_per_node, run.model.base) == (2, 0, "builtin:tiny")
    assert (resolved.run_id, resolved.root) == ("a-kubeflow-job", str(tmp_path))


def test_the_nodes_and_gpus_that_were_asked_for_win_over_the_configuration(tmp_path):
    """Kubeflow's form shows them with a number in it: what it shows is what there will be."""
    from vqa_grpo.components.resolve_source import resolve_source
    from vqa_grpo.steps.shared import config_of

    config = "extends: quickstart\njob: {num_nodes: 3, gpus_per_node: 8}\n"
    empty = ("overrides", "source", "base_model", "registered_model", "tracking_uri", "run_id", "code")
    resolved = resolve_source.python_func(
        **dict.fromkeys(empty, ""),
        config=config,
        seed=0,
        num_nodes=1,
        gpus_per_node=0,
        output_root=str(tmp_path),
        job_id="j",
        place=None,
    )
    run = config_of(resolved.config)
    assert (run.job.num_nodes, run.job.gpus_per_node) == (1, 0)


def test_only_the_data_steps_are_cached(compiled):
    cached = {name for name, task in work(compiled).items() if task["cachingOptions"].get("enableCache")}
    assert cached == set(CACHED)


def test_the_data_steps_see_nothing_that_is_new_in_each_run(compiled):
    """A run id among their inputs would mean that Kubeflow's cache never hits."""
    for name, own in CACHED.items():
        inputs = work(compiled)[name]["inputs"]["parameters"]
        assert set(inputs) == {"data_config", "fingerprint", "root", "code"} | own
        assert not re.search(r"run_id|pipeline_job|PIPELINE_JOB", str(inputs))


def test_every_task_asks_for_cpu_and_memory(compiled):
    for name, container in containers(compiled).items():
        resources = container["resources"]
        assert resources["resourceCpuRequest"], name
        assert resources["resourceMemoryRequest"], name
        assert resources["resourceMemoryLimit"], name


def test_every_task_runs_in_one_of_the_two_images_by_digest(compiled):
    images = {name: container["image"] for name, container in containers(compiled).items()}
    # The same parameter that names the training pods' image; its default is the image by digest.
    assert {name for name, image in images.items() if image == IMAGE_PARAMETER} == ON_TRAINER
    assert defaults_of(compiled)["trainer_image"] == TRAINER_IMAGE
    assert {image for name, image in images.items() if name not in ON_TRAINER} == {STEPS_IMAGE}


def test_without_images_the_package_s_own_version_is_named(tmp_path, monkeypatch):
    from vqa_grpo import __version__

    for name in ("VQA_GRPO_STEPS_IMAGE", "VQA_GRPO_TRAINER_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(packaging, "PIPELINES", {"train": "train_pipeline"})
    compiled = next(yaml.safe_load_all(package(tmp_path, "", "")[0].read_text()))
    images = {container["image"] for container in containers(compiled).values()}
    assert images == {f"ghcr.io/vqa-grpo/steps:{__version__}", IMAGE_PARAMETER}
    assert defaults_of(compiled)["trainer_image"] == f"ghcr.io/vqa-grpo/trainer:{__version__}"


def test_the_last_task_runs_whatever_happened_and_knows_what_did(compiled):
    last = compiled["root"]["dag"]["tasks"]["finish-run"]
    assert last["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert last["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}
    # Everything else is inside, so nothing can fail without it.
    assert set(compiled["root"]["dag"]["tasks"]) == {"exit-handler-1", "finish-run"}


def test_a_lost_node_costs_a_retry_and_not_the_run(compiled):
    for name, task in work(compiled).items():
        assert task.get("retryPolicy", {}).get("maxRetryCount", 0) == 2, name


def test_a_step_is_tried_again_however_long_it_had_run(packaged):
    """Argo counts from the first attempt's start. The tries that have an end must fit, and beside them any job."""
    for path in packaged.values():
        compiled = next(yaml.safe_load_all(path.read_text()))
        deadlines = {name: pod.get("activeDeadlineSeconds", 0) for name, pod in on_the_platform(path).items()}
        for name, task in work(compiled).items():
            policy = task["retryPolicy"]
            retried_for = int(policy["backoffMaxDuration"].removesuffix("s"))
            tries = policy["maxRetryCount"] + 1
            assert retried_for > tries * (int(deadlines[name]) + 3600), name
            assert retried_for >= 365 * 86_400, name


def test_no_task_installs_anything_when_it_starts(compiled):
    for name, container in containers(compiled).items():
        command = " ".join([*container["command"], *container["args"]])
        assert not re.search(r"\bpip3?\b|uv pip|apt-get|conda", command), name


def test_nothing_in_the_yaml_looks_like_a_secret(packaged):
    for path in packaged.values():
        text = path.read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|hf_[A-Za-z0-9]{20}|://[^/\s'\"]+:[^/\s'\"]+@", text)
        # The second document names the Secret that tasks take their S3 keys from; values stand in neither.
        names = set(re.findall(r"^\s+([A-Za-z_]+):", text.split("\n---\n")[0], re.MULTILINE))
        assert not [name for name in names if re.search(r"password|secret|token|credential|access_key", name, re.I)]


def test_the_condition_is_on_a_boolean(compiled):
    """Kubeflow's own runner takes a condition on NaN, or on a text with an apostrophe, for false without a word."""
    conditions = [task["triggerPolicy"]["condition"] for _, task in tasks(compiled) if "condition" in str(task)]
    assert conditions
    for condition in conditions:
        assert re.fullmatch(r"inputs\.parameter_values\['[^']+'\] == true", condition)
    for step in ("comp-decide-promotion", "comp-needs-training"):
        if step in compiled["components"]:
            outputs = compiled["components"][step]["outputDefinitions"]["parameters"]
            assert outputs["Output"]["parameterType"] == "BOOLEAN"


def test_large_things_travel_as_uris(compiled):
    """Kubeflow's launcher would copy each declared input artifact whole to the node's disk, one file at a time."""
    for name, part in compiled["components"].items():
        assert "artifacts" not in part.get("inputDefinitions", {}), name


@pytest.mark.parametrize("path", sorted(COMPONENTS.glob("[a-z]*_*.py")), ids=lambda path: path.stem)
def test_a_component_s_file_is_its_function_and_its_body_imports_what_it_needs(path):
    """Only the function's text reaches the container: names from outside it would be unknown there."""
    tree = ast.parse(path.read_text())
    imported = {
        alias.name for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    }
    assert imported <= {"dsl", "NamedTuple", "STEPS", "TRAINER"}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == [path.stem]
    body = [name.id for node in functions[0].body for name in ast.walk(node) if isinstance(name, ast.Name)]
    assert not {"STEPS", "TRAINER", "NamedTuple"} & set(body)
    decorator = ast.unparse(functions[0].decorator_list[0])
    assert "install_kfp_package=False" in decorator
    assert "packages_to_install" not in decorator


def test_a_pipeline_that_does_not_compile_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(packaging, "PIPELINES", {"no_such_module": "pipeline"})
    with pytest.raises(StepError, match="no_such_module does not compile: ModuleNotFoundError") as caught:
        package(tmp_path, "", "")
    assert "\n" not in str(caught.value)


def test_a_compiler_that_dies_without_a_word_is_still_an_error_of_one_line(tmp_path, monkeypatch):
    import sys

    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(StepError, match="train does not compile"):
        package(tmp_path, "", "")


def on_the_platform(path: Path) -> dict[str, dict[str, Any]]:
    """What Kubernetes is told of each task's pod."""
    _, platform = yaml.safe_load_all(path.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor for name, executor in executors.items()}


def test_a_task_that_waits_for_a_job_is_left_alone_and_every_other_has_an_end(packaged):
    """A timeout on a launcher would end a job that is at work, and a drained node would cost its follower."""
    for path in packaged.values():
        for name, pod in on_the_platform(path).items():
            annotations = pod.get("podMetadata", {}).get("annotations", {})
            assert (name in LAUNCHERS) == (pod.get("activeDeadlineSeconds") is None), name
            assert (name in LAUNCHERS) == (annotations.get("karpenter.sh/do-not-disrupt") == "true"), name
            assert (name in LAUNCHERS) == (annotations.get("cluster-autoscaler.kubernetes.io/safe-to-evict") == "false")


def test_tasks_take_keys_from_secrets_and_places_from_a_config_map_and_may_do_without(packaged):
    """By reference; and each pod may be one that has an instance role and needs nothing."""
    for path in packaged.values():
        compiled, platform = yaml.safe_load_all(path.read_text())
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        assert len(executors) == len(compiled["deploymentSpec"]["executors"])
        for name, executor in executors.items():
            taken = {
                pair["envVar"]: (pair["secretKey"], secret["secretName"])
                for secret in executor["secretAsEnv"]
                for pair in secret["keyToEnv"]
            }
            notice = taken.pop("VQA_GRPO_NOTIFY_URL", None)
            assert (notice is not None) == (name == "exec-finish-run")
            assert taken == {key: (key, secret) for key, secret in SECRETS.items()}, name
            names = {secret["secretName"] for secret in executor["secretAsEnv"]} - {"vqa-grpo-notify"}
            assert names == {"vqa-grpo-s3", "vqa-grpo-hf", "vqa-grpo-judge", "vqa-grpo-mlflow"}
            (settings,) = executor["configMapAsEnv"]
            assert settings["configMapName"] == "vqa-grpo"
            assert {"MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"} <= {pair["envVar"] for pair in settings["keyToEnv"]}
            assert all(source["optional"] is True for source in [settings, *executor["secretAsEnv"]]), name
