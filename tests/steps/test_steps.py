"""The steps after the first: what is done once, what is refused, and what is left when a run ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo import steps
from vqa_grpo.contract.failure import ConfigurationError, DataError, FailureReason, JobError, RetryError, StepError
from vqa_grpo.contract.layout import step_uri
from vqa_grpo.data.converted import read_records
from vqa_grpo.jobs import record
from vqa_grpo.steps import evaluate, train
from vqa_grpo.steps.shared import config_of, dataset_folder
from vqa_grpo.storage import publish


def inputs(run: steps.Resolved) -> tuple[str, str, str, str]:
    return run.data_config, run.fingerprint, run.root, run.code


def validate(run: steps.Resolved) -> steps.Validated:
    return steps.validate_dataset(run.data_config, run.checks, run.fingerprint, run.root, run.code)


def convert(run: steps.Resolved) -> steps.Converted:
    return steps.convert_dataset(*inputs(run), validate(run).report_uri)


# --- the data steps -------------------------------------------------------------------------------------------------


def test_data_is_validated_once(resolve, monkeypatch):
    run = resolve()
    first = validate(run)
    assert (first.rows, first.invalid) == (42, 0)
    assert "42 rows, 0 unusable" in first.markdown
    monkeypatch.setattr("vqa_grpo.data.validate.validate", broken)
    assert validate(run) == first


def test_reference_steps_are_looked_at_only_for_a_reward_that_uses_them(resolve, monkeypatch):
    """Beside each other, so that neither verdict is taken for the other's; the converted data is the same."""
    plain, with_steps = resolve(), resolve("rewards.functions=[format, accuracy, reasoning]")
    uris = [validate(run).report_uri for run in (plain, with_steps)]
    assert [uri.rpartition("/")[2] for uri in uris] == ["validate", "validate-with-steps"]
    assert uris[0].rpartition("/")[0] == uris[1].rpartition("/")[0]
    first = convert(plain)
    monkeypatch.setattr("vqa_grpo.data.convert.convert", broken)
    assert convert(with_steps) == first


def test_data_is_converted_once_and_other_settings_take_it_as_it_is(resolve, monkeypatch):
    first = convert(resolve())
    assert sum(first.splits.values()) == 42
    assert first.splits["test"] == 12  # the source's own
    made = publish.get(first.dataset_uri)
    monkeypatch.setattr("vqa_grpo.data.convert.convert", broken)
    assert convert(resolve("train.max_steps=1")) == first
    assert publish.get(first.dataset_uri) == made


def test_other_code_other_splits_or_another_source_convert_anew(resolve, source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    runs = [
        resolve(),
        resolve(code="other code"),
        resolve("data.split_seed=1"),
        resolve(f"data.source={json.dumps(str(copy))}"),
    ]
    made = [convert(run) for run in runs]
    assert len({one.dataset_uri for one in made}) == 4
    assert made[0].digest == made[1].digest == made[3].digest  # the same rows in the same splits
    assert made[0].digest != made[2].digest


def test_a_source_that_changed_under_the_run_is_refused_and_nothing_is_published(resolve, source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    run = resolve(f"data.source={json.dumps(str(copy))}")
    (copy / "test" / "state.json").touch()
    for step in (validate, lambda run: convert(run)):
        with pytest.raises(ConfigurationError, match="changed since this run looked at it"):
            step(run)
    assert not list((tmp_path / "out").rglob("READY"))


def test_too_many_unusable_rows_fail_the_step_again_and_again(resolve, make_rows, save_rows, tmp_path):
    """The report is published, for people to read; the verdict on it is given anew each time."""
    rows = make_rows("train", 10)
    rows[3]["answer"] = " "
    folder = save_rows(tmp_path / "bad", {"train": rows})
    run = resolve(f"data.source={folder}")
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 of 10 rows .* most often answer_empty, e.g. row train/00000003"):
            validate(run)
    (quarantine,) = (tmp_path / "out").rglob("quarantine.jsonl")
    assert [problem["code"] for problem in json.loads(quarantine.read_text())["problems"]] == ["answer_empty"]
    lenient = resolve(f"data.source={folder}", "data.max_invalid_fraction=0.1")
    assert lenient.data_config == run.data_config  # the same rows, and so the same report of them
    assert validate(lenient).invalid == 1
    assert convert(lenient).splits != {}


def test_parts_give_what_the_whole_would_and_a_run_takes_their_result(resolve, tmp_path, monkeypatch):
    whole, run = resolve(code="a"), resolve(code="b")
    checked, converted = validate(whole), convert(whole)
    for part in steps.list_parts(2):
        steps.scan_part(run.data_config, run.checks, *inputs(run)[1:], part, 2)
    in_parts = steps.conclude_validation(run.data_config, run.checks, *inputs(run)[1:], 2)
    assert (in_parts.markdown, in_parts.html) == (checked.markdown, checked.html)
    for part in steps.list_parts(2):
        steps.convert_part(*inputs(run), in_parts.report_uri, part, 2)
    merged = steps.merge_parts(*inputs(run), 2)
    assert (merged.digest, merged.splits) == (converted.digest, converted.splits)
    monkeypatch.setattr("vqa_grpo.data.validate.validate", broken)
    monkeypatch.setattr("vqa_grpo.data.convert.convert", broken)
    assert (validate(run), convert(run)) == (in_parts, merged)


@pytest.mark.parametrize(("part", "parts"), [(2, 2), (-1, 2), (0, 0)])
def test_a_part_that_there_is_not_is_refused(resolve, part, parts):
    run = resolve()
    with pytest.raises(ConfigurationError, match=f"part {part} of {parts}"):
        steps.scan_part(run.data_config, run.checks, *inputs(run)[1:], part, parts)


def test_a_conversion_that_was_broken_off_goes_on(resolve, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_GRPO_WORK", str(tmp_path / "work"))
    run, writer = resolve(), "vqa_grpo.data.arrow_shards.ShardWriter.finish"
    with monkeypatch.context() as context:
        context.setattr(writer, broken)
        with pytest.raises(AssertionError, match="done already"):
            convert(run)
    assert len(list((tmp_path / "work").glob("convert-*/.convert"))) == 1
    assert sum(convert(run).splits.values()) == 42
    assert not list((tmp_path / "work").glob("convert-*/*"))


def broken(*_: Any, **__: Any) -> Any:
    raise AssertionError("this was done already")


# --- the base model -------------------------------------------------------------------------------------------------


def test_a_conversion_stopped_on_its_way_to_being_published_is_published_whole(resolve, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_GRPO_WORK", str(tmp_path / "work"))
    run = resolve()
    validate(run)
    rename, moved = Path.rename, []

    def stopped(path: Path, target: Path) -> Path:
        if "convert-" in str(path):
            moved.append(path)
        if len(moved) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as broken, contextlib.suppress(KeyboardInterrupt):
        broken.setattr(Path, "rename", stopped)
        convert(run)
    converted = convert(run)
    assert moved
    folder = dataset_folder(converted.dataset_uri)
    assert {split: len(list(read_records(folder, split))) for split in converted.splits} == converted.splits


def test_what_a_person_should_know_about_the_base_model_is_said(resolve, monkeypatch, capsys):
    monkeypatch.setattr("vqa_grpo.steps.model.pinned", lambda name: (name, "the hub does not answer"))
    run = resolve("model.base=org/name")
    assert steps.prepare_model(run.config, "", run.root).base == "org/name"
    assert "prepare: note (why the hub does not answer)" in capsys.readouterr().err.splitlines()


def test_a_base_model_is_a_hub_name_a_folder_or_a_published_place(resolve, tmp_path, monkeypatch):
    monkeypatch.setattr("vqa_grpo.steps.model.pinned", lambda name: (f"{name}@0123abc", ""))  # what the hub has now
    run = resolve("model.base=Qwen/Qwen2.5-VL-3B-Instruct")
    assert steps.prepare_model(run.config, "", run.root).base == "Qwen/Qwen2.5-VL-3B-Instruct@0123abc"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    here = steps.prepare_model(resolve(f"model.base={tmp_path / 'folder'}").config, "", run.root)
    published = publish.publish_folder(str(tmp_path / "published"), tmp_path / "folder")
    there = steps.prepare_model(resolve(f"model.base={published.uri}").config, "", run.root)
    assert here.base == str(tmp_path / "folder")
    assert there.base == published.uri
    with pytest.raises(ConfigurationError, match="not built in: the one that is, is builtin:tiny"):
        steps.prepare_model(resolve("model.base=builtin:huge").config, "", run.root)


# --- training -------------------------------------------------------------------------------------------------------


def publish_model(uri: str, work: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "training.json").write_text('{"steps": 7}')
        return {}

    publish.publish(uri, build, work)


def left_word_at(run: Any, place: str) -> str:
    """As a launcher does that lost sight of its job."""
    uri = step_uri(run.root, "r", place)
    record.leave(uri, record.Record("hash", "w", "", 0.0, False, FailureReason.RETRY, "no API server"))
    return uri


def test_training_is_launched_once_and_a_model_that_is_there_is_taken(resolve, tmp_path, monkeypatch):
    run = resolve(run_id="r")
    launched = []

    def launch(config: Any, run_id: str, root: str, *_: Any) -> None:
        launched.append(run_id)
        publish_model(step_uri(root, run_id, "model"), tmp_path)

    monkeypatch.setattr(train, "launch_training", launch)
    first = steps.train_model(run.config, "r", run.root, "data", "base")
    assert first.steps == 7
    assert steps.train_model(run.config, "r", run.root, "data", "base") == first
    # A step that was killed after its job had published the model launches no second job, and its failure is none.
    shutil.rmtree(Path(run.root) / "r" / "train")
    place = left_word_at(run, "status")
    assert steps.train_model(run.config, "r", run.root, "data", "base") == first
    assert record.read(place) is None
    assert launched == ["r"]


def test_a_job_that_fails_publishes_nothing_and_leaves_no_scratch(resolve, tmp_path, monkeypatch):
    def launch(*_: Any) -> None:
        raise JobError("out of memory", FailureReason.OUT_OF_MEMORY)

    monkeypatch.setattr(train, "launch_training", launch)
    run = resolve(run_id="r")
    with pytest.raises(JobError):
        steps.train_model(run.config, "r", run.root, "data", "base")
    assert not list((tmp_path / "out").rglob("READY"))
    assert list((tmp_path / "work").iterdir()) == []


@pytest.fixture
def launched(monkeypatch) -> list[tuple[Any, bool]]:
    """The jobs that a launcher was given, and whether each one's output folder was there then."""
    from vqa_grpo import jobs

    found: list[tuple[Any, bool]] = []

    def launch(spec: Any, launcher: str) -> None:
        found.append((spec, Path(output_of(spec)).is_dir()))
        raise JobError("stopped", FailureReason.CANCELLED)

    monkeypatch.setattr(jobs, "launch", launch)
    return found


def output_of(spec: Any) -> str:
    return spec.arguments[spec.arguments.index("--output_dir") + 1]


def test_a_retried_step_recognises_its_job_on_a_cluster(resolve, launched, monkeypatch):
    """By what the job runs: a scratch folder's name in it would make each attempt another job."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    run = resolve(run_id="r")
    for _ in range(2):
        with pytest.raises(JobError):
            steps.train_model(run.config, "r", run.root, "data", "base", "trainer@sha256:0")
    (first, _), (second, _) = launched
    assert (first.name, first.spec_hash) == (second.name, second.spec_hash)
    assert output_of(first) == train.POD_OUTPUT


@pytest.fixture
def opened(monkeypatch) -> list[tuple[str, ...]]:
    """What MLflow was asked to open, by a registry that is away at first."""
    from vqa_grpo import registry

    asked: list[tuple[str, ...]] = []

    def open_run(*what: str) -> str:
        asked.append(what)
        if len(asked) == 1:
            raise RetryError("MLflow at http://mlflow.example does not answer")
        return "id"

    monkeypatch.setattr(registry, "open_run", open_run)
    return asked


def test_a_training_finds_its_parent_in_mlflow_and_goes_on_without_one(resolve, launched, opened, monkeypatch, capsys):
    """By the run's id, which is known whether MLflow answers or not: the job must be the same in each attempt."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    run = resolve("registry.experiment=nights", run_id="r")
    for _ in range(2):
        with pytest.raises(JobError):
            steps.train_model(run.config, "r", run.root, "data", "base")
    assert opened == [("", "nights", "r")] * 2
    assert "does not answer" in "".join(capsys.readouterr())
    (first, _), (second, _) = launched
    assert first.environment == {"MLFLOW_EXPERIMENT_NAME": "nights", "VQA_GRPO_RUN_ID": "r"} == second.environment
    assert first.arguments[first.arguments.index("--report_to") + 1] == "mlflow"


def test_without_mlflow_nothing_is_reported_to_it(resolve, launched, opened, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = resolve(run_id="r")
    with pytest.raises(JobError):
        steps.train_model(run.config, "r", run.root, "data", "base")
    ((spec, _),) = launched
    assert "--report_to" not in spec.arguments
    assert (spec.environment, opened) == ({}, [])


def test_training_on_this_machine_writes_to_scratch_that_goes_with_it(resolve, launched, tmp_path):
    run = resolve(run_id="r")
    for _ in range(2):
        with pytest.raises(JobError):
            steps.train_model(run.config, "r", run.root, "data", "base")
    assert [there for _, there in launched] == [True, True]
    outputs = {output_of(spec) for spec, _ in launched}
    assert len(outputs) == 2
    assert all(Path(output).is_relative_to(tmp_path / "work") for output in outputs)
    assert list((tmp_path / "work").iterdir()) == []


def test_evaluation_is_a_job_of_its_own_on_one_node_of_those_that_train(resolve, monkeypatch):
    from vqa_grpo import jobs

    found: list[Any] = []

    def launch(spec: Any, launcher: str) -> None:
        found.append((spec, launcher))
        raise JobError("stopped", FailureReason.CANCELLED)

    monkeypatch.setattr(jobs, "launch", launch)
    shape = ("job.num_nodes=4", "job.gpus_per_node=8", "job.launcher=trainjob")
    for settings in (shape, (*shape, "job.timeout_seconds=9")):
        run = resolve(*settings, run_id="r")
        with pytest.raises(JobError):
            steps.evaluate_models(run.config, "r", run.root, "data", "base", "tuned", "trainer@sha256:0")
    (first, launcher), (second, _) = found
    assert (first.num_nodes, first.processes_per_node, first.image) == (1, 8, "trainer@sha256:0")
    assert (first.module, launcher) == ("vqa_grpo.evaluation", "trainjob")
    assert first.spec_hash == second.spec_hash  # more patience is no other job
    train = steps.training_job(config_of(run.config), "r", run.root, "data", "base", "i")
    assert first.name != train.name
    assert (first.run_id, first.status_uri != train.status_uri) == (train.run_id, True)


def test_predictions_that_are_there_are_scored_with_neither_a_job_nor_the_data_nor_torch(
    evaluated, tmp_path, monkeypatch
):
    run = evaluated("o")
    shutil.rmtree(Path(run.root) / "r" / "evaluate")
    monkeypatch.setattr(evaluate, "launch_evaluation", broken)
    uri, dataset_uri = f"{run.root}/r/model", convert(run).dataset_uri
    for shard in Path(publish.get(dataset_uri).root).rglob("*.arrow"):
        shard.unlink()  # they may be larger than this machine's disk
    place = left_word_at(run, "status-evaluate")
    again = steps.evaluate_models(run.config, "r", run.root, dataset_uri, "base", uri)
    assert record.read(place) is None
    assert again.metrics["tuned"]["accuracy"] == 1.0
    assert again.metrics["blind"]["accuracy"] is not None
    rooms = ("ask", "compare", "questions", "score")
    code = f"import sys, datasets; from vqa_grpo.evaluation import {', '.join(rooms)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, []),
        ([], []),
        (True, ["--x", "true"]),
        (False, ["--x", "false"]),
        (0, ["--x", "0"]),
        ("", ["--x", ""]),
        ({"a": 1.5, "b": "it's"}, ["--x", '{"a": 1.5, "b": "it\'s"}']),
        (["a", "b c"], ["--x", "a", "b c"]),
    ],
)
def test_an_option_is_written_as_the_trainer_reads_it(value, words):
    assert train._option("x", value) == words


def test_the_arguments_of_training_are_read_back_as_they_were_meant(resolve):
    from vqa_grpo.training import arguments

    settings = [
        "rewards.functions=[format, accuracy, reasoning]",
        "rewards.weights=[0.5, 1, 2.5]",
        "train.learning_rate=2e-5",
        "train.extra.max_grad_norm=0.7",
        "train.extra.use_peft=true",
        "train.extra.lora_target_modules=[q_proj, v_proj]",
        "train.extra.bf16=false",
        "seed=11",
    ]
    run = config_of(resolve(*settings).config)
    words = steps.training_arguments(run, "/data set/o'brien", "/models/base", "/out put", "s3://bucket/model")
    values = arguments.read(words).values
    expected = {
        "dataset_name": "/data set/o'brien",
        "model_name_or_path": "/models/base",
        "output_dir": "/out put",
        "publish_uri": "s3://bucket/model",
        "prompt_template": "short",
        "reward_funcs": ["format", "accuracy", "reasoning"],
        "reward_weights": [0.5, 1.0, 2.5],
        "min_pixels": 1024,
        "max_pixels": 4096,
        "max_steps": 40,
        "per_device_train_batch_size": 128,
        "num_generations": 8,
        "max_completion_length": 56,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "linear",
        "warmup_steps": 5,
        "adam_beta2": 0.99,
        "top_k": 0,
        "max_grad_norm": 0.7,
        "use_peft": True,
        "lora_target_modules": ["q_proj", "v_proj"],
        "bf16": False,
        "seed": 11,
    }
    assert {name: values[name] for name in expected} == expected


def test_every_setting_of_the_train_section_reaches_training(resolve):
    """A field that is added to the configuration and forgotten here would change nothing."""
    run = config_of(resolve("train.deepspeed=zero2", "train.num_generations=4").config)
    words = steps.training_arguments(run, "d", "b", "o", "p")
    fields = set(type(run.train).model_fields) - {"extra"}
    assert {f"--{name}" for name in fields} <= set(words)


def test_every_attempt_of_a_job_has_the_same_command_and_goes_on_from_storage(resolve):
    from vqa_grpo.training import arguments

    run = config_of(resolve("train.save_steps=20", "train.save_total_limit=3").config)
    words = steps.training_arguments(run, "d", "b", "o", "s3://b/run/model", "s3://b/run/checkpoints")
    values = arguments.read(words).values
    assert values["checkpoint_uri"] == "s3://b/run/checkpoints"
    assert (values["save_strategy"], values["save_steps"], values["save_total_limit"]) == ("steps", 20, 3)
    assert values["resume_from_checkpoint"] == "true"
    without = config_of(resolve("train.save_steps=0").config)
    values = arguments.read(steps.training_arguments(without, "d", "b", "o", "p", "s3://b/run/checkpoints")).values
    assert (values["save_strategy"], values["checkpoint_uri"]) == ("no", None)


# --- decisions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(resolve, monkeypatch, tmp_path) -> Callable[[str], steps.Resolved]:
    """A run up to its evaluation, with answers that a letter stands for (see tests/stand_in)."""
    import importlib.util

    folder = Path(__file__).parents[1] / "stand_in" / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("stand_in", folder)
    assert spec is not None
    assert spec.loader is not None
    stand_in = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    from vqa_grpo import registry

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    for owner, name in [(steps, "prepare_model"), (train, "launch_training"), (evaluate, "launch_evaluation")]:
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    for name in ("record_run", "register"):
        monkeypatch.setattr(registry, name, getattr(registry, name))

    def up_to_evaluation(tuned: str) -> steps.Resolved:
        stand_in.WANTED = {"letters": {"base": "-", "tuned": tuned}, "registry": str(tmp_path)}
        stand_in.install()
        run = resolve(run_id="r")
        dataset_uri = convert(run).dataset_uri
        trained = steps.train_model(run.config, "r", run.root, dataset_uri, "base")
        steps.evaluate_models(run.config, "r", run.root, dataset_uri, "base", trained.model_uri)
        return run

    return up_to_evaluation


def decide(run: steps.Resolved, run_id: str = "r") -> steps.Decided:
    uri = step_uri(run.root, "r", "evaluate")
    return steps.decide_promotion(run.config, run_id, run.root, run.fingerprint, run.code, uri)


@pytest.mark.parametrize(("tuned", "promote"), [("o", True), ("-", False)])
def test_after_a_decision_there_is_nothing_to_train_on_whatever_it_was(evaluated, resolve, tuned, promote):
    run = evaluated(tuned)
    question = (run.config, run.root, run.fingerprint, run.code)
    assert steps.needs_training(*question) is True
    assert decide(run).promote is promote
    if promote:
        steps.register_model(run.config, "r", run.root)
    assert steps.needs_training(*question) is False
    # The same settings in another order are the same settings.
    shuffled = json.dumps(dict(reversed(json.loads(run.config).items())))
    assert steps.needs_training(shuffled, *question[1:]) is False
    assert steps.needs_training(run.config, run.root, "new data", run.code) is True
    assert steps.needs_training(run.config, run.root, run.fingerprint, "new code") is True
    assert steps.needs_training(resolve("seed=5").config, *question[1:]) is True


def test_a_model_that_was_to_be_registered_and_was_not_is_trained_again(evaluated):
    """A night on which MLflow was away is not the last word."""
    run = evaluated("o")
    question = (run.config, run.root, run.fingerprint, run.code)
    assert decide(run).promote is True
    assert steps.needs_training(*question) is True
    steps.register_model(run.config, "r", run.root)
    assert steps.needs_training(*question) is False


def test_data_that_goes_back_to_what_it_was_is_new_data(evaluated):
    """Only the last decision counts: the model in use is that of the data in between."""
    run = evaluated("-")
    question = (run.config, run.root, run.fingerprint, run.code)
    decide(run)
    decide(dataclasses.replace(run, fingerprint="other data"), "r2")
    assert steps.needs_training(*question) is True
    assert steps.needs_training(run.config, run.root, "other data", run.code) is False


def test_without_an_mlflow_the_model_is_held_and_says_why_and_nothing_is_remembered(evaluated, tmp_path, monkeypatch):
    """MLflow's own default would be a file in a pod that is about to go."""
    run = evaluated("o")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    decided = decide(run)
    assert (decided.promote, decided.decision) == (False, "hold")
    assert decided.reasons[0].startswith("No MLflow is configured (registry.tracking_uri or MLFLOW_TRACKING_URI)")
    assert len(decided.reasons) > 1  # what the gate says is there to read all the same
    assert not (tmp_path / "record.json").exists()
    assert steps.needs_training(run.config, run.root, run.fingerprint, run.code) is True


def test_a_model_is_registered_where_it_lies_with_its_lineage(evaluated, tmp_path):
    run = evaluated("o")
    decide(run)
    done = steps.register_model(run.config, "r", run.root)
    assert done == steps.register_model(run.config, "r", run.root)
    told = json.loads((tmp_path / "register.json").read_text())
    model = publish.get(step_uri(run.root, "r", "model"))
    assert (told["source"], told["digest"]) == (model.root, model.digest)
    assert told["mlflow_run_id"] == "an MLflow run"
    assert set(told["tags"]) >= {"dataset_digest", "base_model", "model_digest", "prompt_digest", "rewards", "run_id"}
    assert all(isinstance(value, str) and value for value in told["tags"].values())


# --- the end of a run -----------------------------------------------------------------------------------------------

PARTS = ("base", "tuned", "comparison", "blind", "gate", "model", "dataset")


def summary_of(root: Path | str, run_id: str = "r") -> dict[str, Any]:
    return json.loads((Path(root) / run_id / "summary" / "summary.json").read_text())


def test_a_run_that_failed_at_once_still_has_a_summary(tmp_path):
    root = tmp_path / "out"
    assert steps.finish_run("r", str(root), "FAILED") == ""
    assert summary_of(root) == {"run_id": "r", "status": "FAILED", "seconds": {}, **dict.fromkeys(PARTS)}
    assert not (root / "r" / "summary" / "report.html").exists()


def test_a_run_that_failed_after_training_says_where_its_model_is(resolve, tmp_path, monkeypatch):
    monkeypatch.setattr(
        train, "launch_training", lambda run, run_id, root, *_: publish_model(step_uri(root, run_id, "model"), tmp_path)
    )
    run = resolve(run_id="r")
    trained = steps.train_model(run.config, "r", run.root, "data", "base")
    assert steps.finish_run("r", run.root, "FAILED") == ""
    summary = summary_of(run.root)
    assert summary["model"]["uri"] == trained.model_uri
    assert summary["model"]["version"] is None
    assert [part for part in PARTS if summary[part] is not None] == ["model"]


@pytest.mark.parametrize(("state", "status"), [("FAILED", "FAILED"), ("CANCELLED", "KILLED")])
def test_a_run_that_ends_before_its_decision_leaves_no_run_open_in_mlflow(
    resolve, tmp_path, monkeypatch, state, status
):
    import mlflow

    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = resolve(f"registry.tracking_uri={tracking}", run_id="r")
    train.open_mlflow_run(config_of(run.config), "r", step_uri(run.root, "r", "mlflow"))

    def open_runs() -> list[str]:
        return [found.info.status for found in mlflow.MlflowClient(tracking).search_runs(["1"])]

    assert open_runs() == ["RUNNING"]
    steps.finish_run("r", run.root, state)
    assert open_runs() == [status]
    monkeypatch.setattr("vqa_grpo.registry.end_run", broken)
    assert steps.finish_run("other", run.root, "FAILED") == ""  # one that opened none asks nobody


def test_an_mlflow_that_is_away_at_the_end_costs_a_run_no_summary(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VQA_GRPO_PROGRESS", "lines")
    note = {"tracking_uri": f"sqlite:///{tmp_path / 'gone' / 'mlflow.db'}", "mlflow_run_id": "1"}
    place = tmp_path / "r" / "mlflow"
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps(note))

    def away(*_: object) -> None:
        raise RetryError("MLflow does not answer")

    monkeypatch.setattr("vqa_grpo.registry.end_run", away)
    steps.finish_run("r", str(tmp_path), "FAILED")
    assert summary_of(tmp_path)["status"] == "FAILED"
    assert "MLflow does not answer" in capsys.readouterr().out


@pytest.mark.parametrize("publishes", [True, False])
def test_checkpoints_stay_until_the_model_is_published(resolve, tmp_path, monkeypatch, publishes):
    run = resolve(run_id="r")
    checkpoints = Path(step_uri(run.root, "r", "checkpoints"))

    def launch(config: Any, run_id: str, root: str, *_: Any) -> None:
        (checkpoints / "step-000002").mkdir(parents=True)
        (checkpoints / "step-000002" / "READY").write_text("{}")
        if not publishes:
            raise JobError("no memory", FailureReason.OUT_OF_MEMORY)
        publish_model(step_uri(root, run_id, "model"), tmp_path)

    monkeypatch.setattr(train, "launch_training", launch)
    with contextlib.nullcontext() if publishes else pytest.raises(JobError):
        steps.train_model(run.config, "r", run.root, "data", "base")
    assert bool(list(checkpoints.rglob("READY"))) != publishes


def test_a_run_that_was_evaluated_and_not_decided_on_has_a_report(evaluated):
    run = evaluated("o")
    report = steps.finish_run("r", run.root, "FAILED")
    summary = summary_of(run.root)
    assert summary["gate"] is None
    assert summary["tuned"]["accuracy"] == 1.0
    assert summary["dataset"]["splits"]["test"] == 12
    assert "vqa-grpo r" in report
    assert (Path(run.root) / "r" / "summary" / "report.html").read_text() == report
    assert steps.finish_run("r", run.root, "FAILED") == report  # and once more, as after a retry
    assert summary_of(run.root) == summary


def test_a_cluster_that_does_not_answer_costs_a_run_no_summary(tmp_path, monkeypatch):
    from vqa_grpo import jobs

    def sweep(run_id: str) -> None:
        raise RetryError("the API server does not answer")

    monkeypatch.setattr(jobs, "sweep", sweep)
    with pytest.raises(RetryError):
        steps.finish_run("r", str(tmp_path), "FAILED")
    assert summary_of(tmp_path)["status"] == "FAILED"


def test_jobs_are_stopped_though_the_summary_cannot_be_written(tmp_path, monkeypatch):
    from vqa_grpo import jobs

    swept: list[str] = []
    monkeypatch.setattr(jobs, "sweep", swept.append)
    (tmp_path / "file").write_text("x")
    with pytest.raises((StepError, OSError)):
        steps.finish_run("r", str(tmp_path / "file"), "FAILED")
    assert swept == ["r"]


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("a setting is wrong"), 78),
        (DataError("rows are bad"), 65),
        (RetryError("S3 does not answer"), 75),
        (JobError("no memory", FailureReason.OUT_OF_MEMORY), 137),
    ],
)
def test_an_error_that_a_person_can_act_on_is_one_line_and_its_exit_code(error, code, capsys):
    def step() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        steps.guarded(step)()
    assert ended.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == [f"error: {error}"]


def test_a_mistake_of_ours_keeps_its_traceback_and_is_announced_in_one_line(capsys, monkeypatch):
    monkeypatch.setenv("VQA_GRPO_PROGRESS", "lines")

    def step() -> None:
        raise KeyError("first line\nsecond line")

    with pytest.raises(KeyError):
        steps.guarded(step)()
    (line,) = capsys.readouterr().out.splitlines()
    event = json.loads(re.sub("^@step ", "", line))
    assert (event["step"], event["event"], event["reason"]) == ("step", "failed", "internal")
    assert "second line" in event["error"]


def test_the_steps_can_be_imported_without_anything_heavy():
    """Each step's container imports this module, also the smallest."""
    code = (
        "import sys, vqa_grpo.steps; print(*{'torch', 'transformers', 'kfp', 'mlflow', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
