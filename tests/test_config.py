"""A configuration is checked whole, in words, before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from vqa_grpo import config
from vqa_grpo.config import RunConfig
from vqa_grpo.contract.failure import ConfigurationError


def refused(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_anything_the_defaults_hold() -> None:
    assert config.load() == RunConfig()


@pytest.mark.parametrize("path", sorted(config.SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_by_name_and_by_path(path: Path) -> None:
    assert config.load(path.stem) == config.load(str(path)) == config.load(path.read_text())


def test_a_configuration_extends_another_and_changes_only_what_it_names() -> None:
    quickstart, quick = config.load("quickstart"), config.load("quick")
    assert quick.model.recipe == "quick"
    assert quick.model.prompt == quickstart.model.prompt == "short"
    assert quick.train.extra == quickstart.train.extra


def test_a_configuration_that_extends_itself_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(f"extends: {two}\n")
    two.write_text(f"extends: {one}\n")
    assert "extends itself" in refused(config.load, str(one))


def test_settings_change_single_values_in_order() -> None:
    run = config.load("quickstart", ["train.max_steps=3", "data.limit=5", "train.max_steps=4", "train.extra.top_k=7"])
    assert (run.train.max_steps, run.data.limit) == (4, 5)
    assert run.train.extra == {"adam_beta2": 0.99, "top_k": 7}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train.learning_rate=1e-5", 1e-5),
        ("train.learning_rate=1E-5", 1e-5),
        ("train.learning_rate=0.5", 0.5),
        ("train.extra.learning=1e-5", 1e-5),
        ("train.extra.learning=-2e+3", -2000.0),
        ("rewards.functions=[format]", ("format",)),
        ("gate.interval_above_zero=false", False),
        ("model.base=s3://bucket/a=b", "s3://bucket/a=b"),
        ("registry.tracking_uri=", None),
    ],
)
def test_a_setting_is_read_as_yaml_and_as_a_person_means_it(setting: str, value: object) -> None:
    if value is None:  # YAML's empty value is no text
        assert "registry.tracking_uri" in refused(config.load, "", [setting])
        return
    found: Any = config.load("", [setting])
    for part in setting.partition("=")[0].split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.lerning_rate=1", "unknown key train.lerning_rate, did you mean learning_rate?"),
        ("trian.max_steps=1", "unknown key trian, did you mean train?"),
        ("data.zzz=1", "unknown key data.zzz; known: source, limit"),
        ("train.max_steps=many", "train.max_steps: Input should be a valid integer"),
        ("train.learning_rate=0", "train.learning_rate: Input should be greater than 0 (got 0)"),
        ("train.learning_rate=.nan", "train.learning_rate: Input should be a finite number"),
        ("gate.min_accuracy_gain=.inf", "gate.min_accuracy_gain: Input should be a finite number"),
        ("data.test_fraction=1.5", "data.test_fraction: Input should be less than or equal to 1 (got 1.5)"),
        ("evaluate.split=train", "evaluate.split: Input should be 'test' or 'validation' (got 'train')"),
        ("data=3", "data: Input should be a valid dictionary"),
        ("rewards.weights=[1]", "weights has 1 values for 2 functions: give one each"),
        ("rewards.functions=[]", "functions is empty: name at least one reward"),
        ("rewards.weights=[0, 0.0]", "weights are all 0"),
        ("rewards.weights=[.nan, 1]", "rewards.weights.0: Input should be a finite number"),
        ("rewards.weights=[1, .inf]", "rewards.weights.1: Input should be a finite number"),
        ("seed=-1", "seed: Input should be greater than or equal to 0 (got -1)"),
        ("seed=4294967296", "seed: Input should be less than 4294967296"),
        ("train.deepspeed=zero9", "train.deepspeed: neither zero1, zero2, zero3 or zero3_offload, nor"),
        ("data.source=ftp://x/y", "source: ftp:// is not read"),
        ("data.mix=[{source: here}, {source: 'gs://x/y'}]", "source: gs:// is not read"),
        (".train=3", "is not of the form section.key=value"),
        ("train.=3", "is not of the form section.key=value"),
        ("no equals sign", "is not of the form section.key=value"),
        ("=3", "is not of the form section.key=value"),
        ("train.extra.x={", "the value is not YAML; quote it"),
        ("train.extra.x=2001-99-99", "the value is not YAML; quote it"),
        ("train.extra.x=0b_", "the value is not YAML; quote it"),
        ("train.extra.x=.nan", "train.extra: x is not plain JSON"),
        ("train.extra.x=2001-01-01", "train.extra: x is not plain JSON"),
        ("train.extra.x=!!binary gIGC", "train.extra: x is not plain JSON"),
        ("train.extra.x=&a [*a]", "train.extra: x is not plain JSON"),
        ("train.extra.x={1: 2}", "train.extra: x is not plain JSON"),
    ],
)
def test_a_wrong_setting_is_explained_in_one_line(setting: str, words: str) -> None:
    assert words in refused(config.load, "", [setting])


def test_shares_are_not_more_than_the_whole() -> None:
    for validation, test in ((0.7, 0.3), (0.58, 0.42), (1.0, 0.0)):
        config.load("", [f"data.validation_fraction={validation}", f"data.test_fraction={test}"])
    said = refused(config.load, "", ["data.validation_fraction=0.6", "data.test_fraction=0.6"])
    assert "validation_fraction 0.6 and test_fraction 0.6 must be not more than 1 together" in said


def test_a_password_in_a_source_is_not_repeated() -> None:
    assert "hunter2" not in refused(config.load, "", ["data.source=https://me:hunter2@host/data"])


@pytest.mark.parametrize("name", ["", "zero1", "zero3_offload", "ds_config_zero2", "some/zero3.json", "mine.json"])
def test_a_preset_and_a_file_of_the_trainers_are_taken_for_deepspeed(name: str) -> None:
    assert config.load("", [f"train.deepspeed={json.dumps(name)}"]).train.deepspeed == name


def test_a_problem_without_a_key_begins_with_its_words() -> None:
    assert "configuration quickstart: train.max_steps 0" in refused(config.load, "quickstart", ["train.max_steps=0"])
    assert "unknown key ''; known: seed" in refused(config.load, '{"": 3}')


def test_a_value_cannot_be_used_as_a_section() -> None:
    assert "max_steps is a value, not a section" in refused(config.load, "quickstart", ["train.max_steps.deeper=1"])


def test_every_wrong_key_is_named_at_once() -> None:
    message = refused(config.load, "", ["data.limt=3", "train.beta=-1", "model.recipe=slow"])
    assert "did you mean limit?" in message
    assert "train.beta" in message
    assert "model.recipe" in message


def test_a_password_in_the_tracking_uri_is_refused_and_not_repeated() -> None:
    message = refused(config.load, "", ["registry.tracking_uri=https://me:s3cr3t@mlflow.example"])
    assert "MLFLOW_TRACKING_PASSWORD" in message
    assert "s3cr3t" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "must be a mapping of sections"),
        ("{", "configuration is not YAML"),
        ("data: [\n", "configuration is not YAML"),
        ("a: 2001-99-99\n", "configuration is not YAML"),
        ("data:\n", "data: Input should be a valid dictionary"),
        ("1: 2\n", "Keys should be strings"),
        ("? [a]\n: 3\n", "configuration is not YAML"),
    ],
)
def test_yaml_text_that_is_no_configuration_is_explained_in_one_line(text: str, words: str) -> None:
    assert words in refused(config.load, text)


@pytest.mark.parametrize("name", ["no-such-file.yaml", "nul\0name", ".", "x" * 5000])
def test_a_name_that_cannot_be_read_lists_the_shipped_ones(name: str) -> None:
    assert "shipped ones: quick, quickstart" in refused(config.load, name)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "cannot be read" in refused(config.load, str(tmp_path / "c.yaml"))


@given(st.text(max_size=60), st.text(max_size=40))
def test_no_setting_ends_in_anything_but_a_configuration_or_a_configuration_error(key: str, value: str) -> None:
    for setting in (f"{key}={value}", f"train.extra.x={value}", f"data.source={value}", key):
        try:
            run = config.load("", [setting])
        except ConfigurationError:
            continue
        json.loads(run.canonical())


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


@given(st.data())
def test_any_key_set_to_any_json_value_is_taken_or_refused_in_words(data: st.DataObject) -> None:
    section = data.draw(st.sampled_from(sorted(sections(RunConfig))))
    key = data.draw(st.sampled_from(sorted(sections(RunConfig)[section].model_fields)))
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
    value = data.draw(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5))
    try:
        run = config.from_tree({section: {key: value}}, "test")
    except ConfigurationError as refusal:
        said = str(refusal)
    else:
        said = section if config.load(run.canonical()) == run else "reads back otherwise"
    assert section in said


def test_the_canonical_form_is_a_configuration_that_says_the_same() -> None:
    run = config.load("quickstart", ["seed=7", "rewards.weights=[1, 0.5]"])
    assert config.load(run.canonical()) == run
    assert run.canonical() == config.load(yaml.safe_dump(json.loads(run.canonical()))).canonical()
    assert run.canonical() != config.load("quickstart", ["seed=8", "rewards.weights=[1, 0.5]"]).canonical()


def test_a_configuration_cannot_be_changed_once_it_was_checked() -> None:
    run: Any = config.load()
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 3


# --- the job section --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("job.memory=6GB", "job.memory"),
        ("job.memory=six", "job.memory"),
        ("job.cpu=2 cores", "job.cpu"),
        ("job.shared_memory=1 Gi", "job.shared_memory"),
        ("job.resources={rdma hca: 1}", "job.resources"),
        ("job.resources={rdma/hca: one}", "job.resources"),
        ("job.environment={1X: a}", "job.environment"),
        ("job.environment={X: true}", "job.environment.X"),
        ("job.secrets={X: Not A Name}", "job.secrets.X"),
        ("job.labels={a b: c}", "job.labels"),
        ("job.node_selector={a: 'b c'}", "job.node_selector"),
        ("job.tolerations=[{key: a, operator: Exists, value: b}]", "Exists"),
        ("job.tolerations=[{value: b}]", "key is empty"),
        ("job.tolerations=[{keys: a}]", "did you mean key"),
        ("job.queue=no/slash", "job.queue"),
        ("job.service_account=Upper", "job.service_account"),
        ("job.grace_seconds=10", "job.grace_seconds"),
        ("job.on_eviction=perhaps", "job.on_eviction"),
        ("job.launcher=slurm", "trainjob"),
        ("job.cpu=0", "job.cpu: nothing runs"),
        ("job.cpu=0m", "job.cpu: nothing runs"),
        ("job.memory=0.0Gi", "job.memory: nothing runs"),
        ("job.shared_memory=7Gi", "shared_memory 7Gi counts as memory, and is more than 6Gi"),
        ("job.resources={cpu: 1}", "cpu has a place of its own, job.cpu"),
        ("job.resources={memory: 1Gi}", "memory has a place of its own, job.memory"),
        ("job.resources={nvidia.com/gpu: 1}", "nvidia.com/gpu has a place of its own, job.gpus_per_node"),
        ("job={launcher: local, num_nodes: 2}", "job: num_nodes is 2, but this machine is one node"),
        ("job={timeout_seconds: 60, queue_timeout_seconds: 61}", "queue_timeout_seconds 61 is more than"),
        ("job.overrides=[]", "job.overrides"),
        ("job.overrides={containers: []}", "metadata: {…} and spec: {…}"),
        ("job.overrides={spec: []}", "metadata: {…} and spec: {…}"),
        ("job.overrides={spec: {a: 2026-01-01}}", "plain JSON"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_before_anything_starts(setting: str, word: str) -> None:
    assert word in refused(config.load, "", [setting])


def test_a_base_model_in_the_claim_is_seen_by_pods_alone() -> None:
    assert "no folder here" in refused(config.load, "", ["model.base=/cache/models/qwen"])
    assert config.load("", ["model.base=/cache/models/qwen", "job.cache_claim=models"]).job.cache_claim == "models"
    assert "no folder here" in refused(config.load, "", ["model.base=/elsewhere", "job.cache_claim=models"])


def test_shared_memory_may_be_all_of_the_memory() -> None:
    for shared, memory in (("6Gi", "6Gi"), ("6G", "6Gi"), ("1024Ki", "1Mi"), ("500M", "0.5G")):
        config.load("", [f"job.memory={memory}", f"job.shared_memory={shared}"])


def test_amounts_may_be_numbers_as_people_write_them_in_yaml() -> None:
    job = config.load("", ["job.cpu=8", "job.memory=64Gi", "job.resources={rdma/hca: 1}", "job.environment={N: 4}"]).job
    assert (job.cpu, job.resources, job.environment) == ("8", {"rdma/hca": "1"}, {"N": "4"})


def test_every_setting_of_a_job_that_does_not_explain_itself_is_explained() -> None:
    plain = {"launcher", "image_pull_secrets"}
    assert {name for name, field in config.Job.model_fields.items() if not field.description} == plain
