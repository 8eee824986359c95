"""The pipeline's steps as plain functions: strings and numbers in, a dataclass out, no Kubeflow.

A step's result is a folder published once, with a `result.json` of its figures. A step that finds its result
published returns it, so that a retried step, a resumed run and a second run all do only what is missing.
Results that depend on their inputs alone (the converted data, the embedded base model) are keyed on those inputs.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vqa_grpo import config as configuration
from vqa_grpo.config import RunConfig
from vqa_grpo.contract import prompt as prompts
from vqa_grpo.contract.failure import ConfigurationError, FailureReason, StepError
from vqa_grpo.contract.layout import key_of, step_uri
from vqa_grpo.report.progress import announce, emit
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import explain_os_error, is_about_the_disk, normalise, open_store

RESULT = "result.json"
EASY_VQA = "builtin:easy-vqa"
TINY = "builtin:tiny"
POD_OUTPUT = "/tmp/vqa-grpo/output"  # noqa: S108 - a training pod's own disk
MEASURED = ("base", "tuned", "comparison", "blind")
UNRECORDED = "decide-without-mlflow"
LAST_DECISION = "decisions/last.json"
WIRING = ("cli", "components", "pipelines")  # how steps are called, not what they do
P = ParamSpec("P")
R = TypeVar("R")


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Turn an error that a person can act on into one line and its exit code, as every pod and shell expects."""

    step = function.__name__.split("_")[0]  # train_model announces itself as train

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except StepError as error:
            raise SystemExit(_tell(step, error)) from None
        except Exception as error:
            if isinstance(error, OSError) and is_about_the_disk(error):
                raise SystemExit(_tell(step, explain_os_error(error))) from None
            # A mistake of ours: the traceback goes to the log, one line to the person.
            announce(step, "failed", error=_one_line(error), reason=str(FailureReason.INTERNAL))
            raise

    return run


def _tell(step: str, error: StepError) -> int:
    announce(step, "failed", error=str(error), reason=str(error.reason))
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.reason.exit_code


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


# --- resolve ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resolved:
    """What a run will do: its checked configuration, where it writes, and what its source looks like now.

    `data_config` is what decides the converted data, `checks` what decides whether it is good enough: the data
    steps get these instead of the configuration, so that other settings do not undo their cache.
    """

    config: str
    data_config: str
    checks: str
    run_id: str
    root: str
    fingerprint: str
    code: str


def resolve(
    config: str = "", settings: list[str] | None = None, root: str = "", run_id: str = "", code: str = ""
) -> Resolved:
    """Check the configuration, look at the source, and name the run.

    Without a `run_id` the run is named after everything that decides its result, so that the same run started
    again goes on instead of starting over. `code` is the image's digest; empty takes this package's own.
    """
    run = checked(config, settings or [])
    if not root:
        raise ConfigurationError("no place to write to: give an output root, s3://bucket/prefix or a folder")
    _check_run_id(run_id)
    source = open_source(run.data.source)
    code = code or code_digest()
    run_id = run_id or "run-" + key_of(run.canonical(), source.fingerprint, code, _local_inputs(run))[:12]
    data = run.data.model_dump(mode="json")
    checks = {"max_invalid_fraction": data.pop("max_invalid_fraction"), "wants_steps": _wants_steps(run)}
    return Resolved(
        run.canonical(), json.dumps(data), json.dumps(checks), run_id, normalise(root), source.fingerprint, code
    )


def checked(config: str, settings: list[str]) -> RunConfig:
    """A configuration with everything about it that can be known before anything starts found to be right."""
    run = configuration.load(config, settings)
    _check_rewards(run)
    _check_metrics(run)
    return _self_contained(run)


def _self_contained(run: RunConfig) -> RunConfig:
    """The configuration with a prompt file's text in the place of its name: pods have no such file."""
    template = prompts.load(run.model.prompt)
    if template.name == run.model.prompt:
        return run
    return run.model_copy(update={"model": run.model.model_copy(update={"prompt": template.text})})


def _wants_steps(run: RunConfig) -> bool:
    return "reasoning" in run.rewards.functions


def _check_rewards(run: RunConfig) -> None:
    """Refuse a misspelt reward before anything is converted; a function of the user's own is found by the trainer."""
    from vqa_grpo.rewards.vqa import NAMES

    for name in run.rewards.functions:
        if "." not in name and ":" not in name and name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1, 0.5)
            hint = f", did you mean {near[0]}?" if near else f": {', '.join(NAMES)}, or package.module:function"
            raise ConfigurationError(f"rewards.functions: there is no reward {name!r}{hint}")


def _check_metrics(run: RunConfig) -> None:
    from vqa_grpo.scoring.metrics import METRICS

    for source, metric in run.evaluate.metrics.items():
        if metric not in METRICS:
            raise ConfigurationError(f"evaluate.metrics.{source}: there is no metric {metric!r}: {', '.join(METRICS)}")


def _local_inputs(run: RunConfig) -> list[Any]:
    """What else decides a result: files that the configuration names, and the libraries that train."""
    named = [run.model.base, run.train.deepspeed]
    files = [_facts(Path(name).expanduser()) for name in named if name and Path(name).expanduser().exists()]
    return [files, [_version(package) for package in ("torch", "transformers", "trl")]]


def _facts(path: Path) -> list[Any]:
    """Names, sizes and times, not contents: a model folder holds gigabytes."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in found if p.is_file()]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def run_folder(artifact_uri: str, task: str) -> str:
    """The folder of a Kubeflow run, from the address of one of its artifacts: `…/<run>/<task>/…/<artifact>`.

    The pipeline root itself cannot be asked for: Kubeflow's placeholder for it is resolved by its local runner only.
    """
    folder, found, _ = artifact_uri.partition(f"/{task}/")
    if not found:
        raise ConfigurationError(f"cannot tell the run's folder from {artifact_uri!r}: give output_root")
    return folder


def _check_run_id(run_id: str) -> None:
    """A run's name is a folder's name in storage, and text in a URI and in MLflow's filters."""
    if run_id.startswith(".") or len(run_id) > 100 or re.search(r'[/\\"\x00-\x1f]', run_id):
        raise ConfigurationError(
            f"run id {run_id[:120]!r} cannot name a folder: leave out / \\ and double quotes, "
            "a dot at its beginning, and what is beyond 100 characters"
        )


def code_digest() -> str:
    """A digest of this package's own files: results made by other code are not taken for this code's."""
    here = Path(__file__).parent
    files = sorted(
        path
        for path in here.rglob("*")
        if path.suffix in (".py", ".yaml", ".txt", ".json") and path.relative_to(here).parts[0] not in WIRING
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(here).as_posix()} {publish.sha256_of(path)}\n".encode())
    return digest.hexdigest()[:16]


def open_source(name: str) -> Any:
    from vqa_grpo.data.sources import open_place

    if name == EASY_VQA:
        from vqa_grpo.quickstart import easy_vqa

        return easy_vqa.source()
    if name.startswith("builtin:"):
        raise ConfigurationError(f"data.source {name!r} is not built in: the one that is, is {EASY_VQA}")
    return open_place(name)


# --- the data steps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Validated:
    report_uri: str
    rows: int
    invalid: int
    markdown: str


def validate_dataset(data_config: str, checks: str, fingerprint: str, root: str, code: str) -> Validated:
    """Check every row of the source; DataError when too many are unusable."""
    from vqa_grpo.data import validate

    data, wanted = configuration.Data(**json.loads(data_config)), json.loads(checks)

    def build(folder: Path) -> dict[str, Any]:
        source = _unchanged_source(data.source, fingerprint)
        report = validate.validate(source, wanted["wants_steps"], data.limit, folder / "quarantine.jsonl")
        validate.write_report(report, folder)
        return {"rows": report.total, "invalid": report.invalid, "by_code": report.by_code}

    uri = validation_uri(_data_uri(data_config, fingerprint, root, code), wanted["wants_steps"])
    result = _once("validate", uri, build)
    validate.refuse_if_bad(_read_report(result["root"]), wanted["max_invalid_fraction"])
    markdown = (open_store(result["root"]).read("report.md") or b"").decode()
    return Validated(uri, result["rows"], result["invalid"], markdown)


@dataclass(frozen=True)
class Converted:
    dataset_uri: str
    digest: str
    splits: dict[str, int]


def convert_dataset(data_config: str, fingerprint: str, root: str, code: str) -> Converted:
    """Write the source as train, validation and test in the guide's schema."""
    from vqa_grpo.data import convert

    data = configuration.Data(**json.loads(data_config))

    def build(folder: Path) -> dict[str, Any]:
        source = _unchanged_source(data.source, fingerprint)
        rule = convert.SplitRule(data.split_seed, data.validation_fraction, data.test_fraction)
        return asdict(convert.convert(source, rule, folder, data.limit))

    uri = f"{_data_uri(data_config, fingerprint, root, code)}/convert"
    result = _once("convert", uri, build)
    return Converted(uri, result["digest"], result["splits"])


def _data_uri(data_config: str, fingerprint: str, root: str, code: str) -> str:
    """The folder of what depends on the data alone."""
    return step_uri(root, "data-" + key_of(json.loads(data_config), fingerprint, code), "").rstrip("/")


def validation_uri(data_uri: str, wants_steps: bool) -> str:
    return f"{data_uri}/{'validate-with-steps' if wants_steps else 'validate'}"


def _unchanged_source(name: str, fingerprint: str) -> Any:
    source = open_source(name)
    if source.fingerprint != fingerprint:
        raise ConfigurationError(f"{name} changed since this run looked at it: start the run again")
    return source


def _read_report(root: str) -> Any:
    from vqa_grpo.data.validate import DataReport

    return DataReport(**json.loads(open_store(root).read("report.json") or b"{}"))


# --- the model steps --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """The base model as training and evaluation name it: a published URI, a folder, or a hub name."""

    base: str


def prepare_model(config: str, dataset_uri: str, root: str) -> Prepared:
    """Make sure that there is a base model; `builtin:tiny` is built here, from the training split alone."""
    run = _config(config)
    base = run.model.base
    if base == TINY:
        return _build_tiny(run, dataset_uri, root)
    if base.startswith("builtin:"):
        raise ConfigurationError(f"model.base {base!r} is not built in: the one that is, is {TINY}")
    announce("prepare", "started")
    if publish.looks_published(base):
        base = publish.get(base).uri
    elif Path(base).expanduser().is_dir():
        base = str(Path(base).expanduser().absolute())
    announce("prepare", "finished", base=base)
    return Prepared(base)


def _build_tiny(run: RunConfig, dataset_uri: str, root: str) -> Prepared:
    """The embedded base model, built once for each set of rows, recipe, prompt and seed.

    It knows the world of easy-VQA only: on other data it is a stand-in that shows the pipeline at work.
    """
    from vqa_grpo.quickstart.recipes import RECIPES, recipe_key

    recipe, template = RECIPES[run.model.recipe], prompts.load(run.model.prompt)
    own_rows = run.data.source == EASY_VQA
    rows_key = _result(dataset_uri)["digest"] if own_rows else open_source(EASY_VQA).fingerprint

    def build(folder: Path) -> dict[str, Any]:
        from vqa_grpo.data.convert import read_records
        from vqa_grpo.quickstart.base import build_base

        # The converted split, because its validation pictures must stay unseen.
        found = (
            read_records(_dataset_folder(dataset_uri), "train") if own_rows else open_source(EASY_VQA).records("train")
        )
        return build_base(list(found), folder, recipe, template, run.seed, _stages("prepare"))

    uri = step_uri(root, "base-" + key_of(recipe_key(recipe, template, run.seed), rows_key), "model")
    _once("prepare", uri, build)
    return Prepared(uri)


@dataclass(frozen=True)
class Trained:
    model_uri: str
    digest: str
    steps: int


def train_model(config: str, run_id: str, root: str, dataset_uri: str, base: str, image: str = "") -> Trained:
    """Run GRPO as a job, on this machine or on a cluster; the job itself publishes the model."""
    run = _config(config)
    model_uri = step_uri(root, run_id, "model")

    def build(folder: Path) -> dict[str, Any]:
        if not publish.is_published(model_uri):
            _launch_training(run, run_id, model_uri, dataset_uri, base, image)
        model = publish.get(model_uri)
        facts = json.loads(open_store(model.root).read("training.json") or b"{}")
        return {"model_uri": model_uri, "digest": model.digest, "steps": facts["steps"], "base": base}

    result = _once("train", step_uri(root, run_id, "train"), build)
    return Trained(model_uri, result["digest"], result["steps"])


def training_arguments(run: RunConfig, dataset: str, base: str, output_dir: str, publish_uri: str) -> list[str]:
    """The command line of `python -m vqa_grpo.training` for a run configuration."""
    train = run.train.model_dump(exclude={"extra", "num_generations", "deepspeed"})
    options: dict[str, Any] = {
        "model_name_or_path": base,
        "dataset_name": dataset,
        "output_dir": output_dir,
        "publish_uri": publish_uri,
        "prompt_template": run.model.prompt,
        "min_pixels": run.model.min_pixels,
        "max_pixels": run.model.max_pixels,
        "reward_funcs": list(run.rewards.functions),
        "reward_combination": run.rewards.combination,
        "format_reward": run.rewards.format_mode,
        "seed": run.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        **train,
    }
    if run.rewards.weights:
        options["reward_weights"] = list(run.rewards.weights)
    if run.rewards.step_encoder:
        options["step_encoder"] = run.rewards.step_encoder
    if run.judge.enabled:
        options |= {
            "use_judge": True,
            "judge_url": run.judge.url,
            "judge_model": run.judge.model,
            "judge_timeout": run.judge.timeout_seconds,
            "judge_retries": run.judge.max_retries,
            "judge_concurrency": run.judge.concurrency,
        }
        if run.judge.cache_dir:
            options["judge_cache_dir"] = run.judge.cache_dir
    if run.train.num_generations:
        options["num_generations"] = run.train.num_generations
    if run.train.deepspeed:
        options["deepspeed"] = run.train.deepspeed
    options |= run.train.extra
    return [word for key, value in options.items() for word in _option(key, value)]


def training_job(run: RunConfig, run_id: str, arguments: list[str], image: str) -> Any:
    """The job that trains: what `train` launches and `render-job` prints."""
    from vqa_grpo.jobs import JobSpec, job_name

    return JobSpec.from_config(
        job_name(run_id), run_id, "vqa_grpo.training", run.job, arguments=tuple(arguments), image=image
    )


def _launch_training(run: RunConfig, run_id: str, model_uri: str, dataset_uri: str, base: str, image: str) -> None:
    from vqa_grpo import jobs

    def launch(output: str) -> None:
        arguments = training_arguments(run, dataset_uri, base, output, model_uri)
        jobs.launch(training_job(run, run_id, arguments, image), run.job.launcher)

    if jobs.place(run.job.launcher) == "local":
        with publish.scratch(_work()) as output:
            launch(str(output))
    else:
        # The same in every attempt: a retried step recognises its job by what it runs.
        launch(POD_OUTPUT)


def _option(key: str, value: Any) -> list[str]:
    """One option as the trainer's command line takes it; None and an empty list leave its default."""
    if value is None or value == []:
        return []
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{key}", *(json.dumps(part) if isinstance(part, dict | bool) else str(part) for part in values)]


# --- evaluation and decision ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluated:
    evaluation_uri: str
    metrics: dict[str, Any]  # nested, None where something could not be measured


def evaluate_models(config: str, run_id: str, root: str, dataset_uri: str, base: str, model_uri: str) -> Evaluated:
    """Ask base and tuned model the same held-out questions, grade both with the rewards' own graders."""
    run = _config(config)

    def build(folder: Path) -> dict[str, Any]:
        return _evaluate(run, folder, dataset_uri, base, model_uri)

    uri = step_uri(root, run_id, "evaluate")
    result = _once("evaluate", uri, build)
    return Evaluated(uri, {name: result[name] for name in MEASURED})


def _evaluate(run: RunConfig, folder: Path, dataset_uri: str, base: str, model_uri: str) -> dict[str, Any]:
    import datasets

    from vqa_grpo.evaluation.compare import compare
    from vqa_grpo.evaluation.present import pick_examples
    from vqa_grpo.evaluation.score import blind_level, score

    dataset = _dataset_folder(dataset_uri)
    files = {"base": folder / "base.parquet", "tuned": folder / "tuned.parquet"}
    predict_to(run, base, dataset, files["base"], "evaluate base")
    predict_to(run, model_uri, dataset, files["tuned"], "evaluate tuned")
    rows = _held_out(run, dataset)
    return {
        "base": asdict(score(files["base"])),
        "tuned": asdict(score(files["tuned"])),
        "comparison": asdict(compare(files["base"], files["tuned"])),
        "blind": asdict(blind_level(datasets.load_from_disk(str(dataset / "train")), rows)),
        "examples": [example.as_dict() for example in pick_examples(files["base"], files["tuned"], rows)],
        "split": run.evaluate.split,
        "dataset_uri": dataset_uri,
        "model_uri": model_uri,
        "config": run.model_dump(mode="json"),
        "lineage": {
            "dataset_digest": _result(dataset_uri)["digest"],
            "base_model": base,
            "model_uri": model_uri,
            "model_digest": publish.get(model_uri).digest,
            "prompt_digest": prompts.load(run.model.prompt).digest,
            "rewards": ", ".join(run.rewards.functions),
        },
    }


def predict_to(run: RunConfig, model: str, dataset: Path, out: Path, task: str = "evaluate") -> None:
    """Ask one model the configuration's held-out questions and write its predictions as Parquet."""
    from vqa_grpo.evaluation.predict import predict, write_predictions

    predictions = predict(
        Path(_model_folder(model)),
        _held_out(run, dataset),
        prompts.load(run.model.prompt),
        batch_size=run.evaluate.batch_size,
        max_new_tokens=run.evaluate.max_new_tokens,
        min_pixels=run.model.min_pixels,
        max_pixels=run.model.max_pixels,
        metrics=run.evaluate.metrics,
        step_encoder=run.rewards.step_encoder,
        progress=functools.partial(emit, task),
    )
    write_predictions(out, predictions)


def _held_out(run: RunConfig, dataset: Path) -> Any:
    """The questions of the evaluation: the same for every model and every run with the same settings."""
    import datasets

    from vqa_grpo.evaluation.predict import sample_rows

    folder = dataset / run.evaluate.split
    if not (folder / "dataset_info.json").is_file():
        raise ConfigurationError(f"{dataset} is not a converted data set: make one with `vqa-grpo convert SRC OUT`")
    split = datasets.load_from_disk(str(folder))
    return sample_rows(split, run.evaluate.sample, run.evaluate.sample_seed)


@dataclass(frozen=True)
class Decided:
    promote: bool
    decision: str
    reasons: list[str]


def decide_promotion(config: str, run_id: str, root: str, fingerprint: str, code: str, evaluation_uri: str) -> Decided:
    """Compare with the gate's rules, and record the numbers in MLflow whatever the verdict."""
    from vqa_grpo import registry
    from vqa_grpo.evaluation import gate
    from vqa_grpo.evaluation.compare import Comparison
    from vqa_grpo.evaluation.score import Scores
    from vqa_grpo.report.metrics import clean_metrics

    run = _config(config)
    scores = _result(evaluation_uri)

    def build(folder: Path) -> dict[str, Any]:
        base, tuned = Scores.from_dict(scores["base"]), Scores.from_dict(scores["tuned"])
        verdict = gate.decide(base, tuned, Comparison.from_dict(scores["comparison"]), run.gate)
        if not registry.is_configured(run.registry.tracking_uri):
            # A smoke run on a cluster without MLflow: everything can be seen but registration.
            reason = (
                "No MLflow is configured (registry.tracking_uri or MLFLOW_TRACKING_URI): nothing can be registered."
            )
            return {"decision": "hold", "reasons": [reason, *verdict.reasons], "mlflow_run_id": ""}
        mlflow_run_id = registry.record_run(
            run.registry.tracking_uri,
            run.registry.experiment,
            run_id,
            metrics=clean_metrics({name: scores[name] for name in MEASURED})[0],
            params={"config": run.canonical()},
            tags=scores["lineage"] | {"decision": verdict.decision, "code": code, "source": fingerprint},
        )
        return {**asdict(verdict), "mlflow_run_id": mlflow_run_id}

    # A verdict without MLflow lies apart, so that the same run can be decided on once there is one.
    place = "decide" if registry.is_configured(run.registry.tracking_uri) else UNRECORDED
    result = _once("decide", step_uri(root, run_id, place), build)
    if result["mlflow_run_id"]:
        last = {"key": _decision_key(config, fingerprint, code), "run_id": run_id, "decision": result["decision"]}
        open_store(root).write(LAST_DECISION, json.dumps(last).encode())
    return Decided(result["decision"] == "promote", result["decision"], result["reasons"])


def needs_training(config: str, root: str, fingerprint: str, code: str) -> bool:
    """False when the last decision was on the same source, code and configuration, whatever it was.

    A promotion counts only once its model is registered: a night on which MLflow was away is not the last word.
    """
    data = open_store(root).read(LAST_DECISION)
    last = json.loads(data) if data else {}
    if last.get("key") != _decision_key(config, fingerprint, code):
        return True
    return last["decision"] == "promote" and not publish.is_published(step_uri(root, last["run_id"], "register"))


def _decision_key(config: str, fingerprint: str, code: str) -> str:
    return key_of(json.loads(config), fingerprint, code)


def register_model(config: str, run_id: str, root: str) -> Any:
    """Register the published model by reference and move the alias; a retry returns the same version."""
    from vqa_grpo import registry

    run = _config(config)
    decided = _result(step_uri(root, run_id, "decide"))
    scores = _result(step_uri(root, run_id, "evaluate"))

    def build(folder: Path) -> dict[str, Any]:
        model = publish.get(scores["model_uri"])
        registered = registry.register(
            run.registry.tracking_uri,
            run.registry.model_name,
            run.registry.alias,
            source=model.root,
            digest=model.digest,
            mlflow_run_id=decided["mlflow_run_id"],
            tags=scores["lineage"] | {"run_id": run_id},
        )
        return asdict(registered)

    result = _once("register", step_uri(root, run_id, "register"), build)
    fields = ("name", "version", "alias", "digest", "uri")
    return registry.Registered(**{field: result[field] for field in fields})


# --- the end of a run -------------------------------------------------------------------------------------------


def finish_run(run_id: str, root: str, status: str) -> str:
    """Write summary and report from what the run's steps published, and stop what is left of its jobs.

    Runs after a failure too. Both files are derived from published results, so they may be written again. Returns
    the report's HTML, empty for a run that was not evaluated.
    """
    from vqa_grpo import jobs
    from vqa_grpo.report.summary import summarise

    _check_run_id(run_id)
    announce("finish", "started")
    try:
        results = {step: _found(step_uri(root, run_id, step)) for step in ("train", "evaluate", "decide", "register")}
        results["decide"] = results["decide"] or _found(step_uri(root, run_id, UNRECORDED))
        results |= _inputs_of(results["evaluate"])
        summary = summarise(run_id, status, results)
        store = open_store(step_uri(root, run_id, "summary"))
        store.write("summary.json", json.dumps(summary, indent=1, sort_keys=True, allow_nan=False).encode())
        report = _report(run_id, results, summary["seconds"]) if results["evaluate"] else ""
        if report:
            store.write("report.html", report.encode())
    finally:
        jobs.sweep(run_id)
    announce("finish", "finished")
    return report


def _inputs_of(evaluation: dict[str, Any] | None) -> dict[str, dict[str, Any] | None]:
    """The results that lie under their inputs' keys and not under the run's id, found through lineage."""
    if evaluation is None:
        return {"convert": None, "validate": None, "prepare": None}
    config = evaluation["config"]  # as it was stored: it may be of older code, or name a folder that is gone
    data_uri = evaluation["dataset_uri"].rpartition("/")[0]
    base = evaluation["lineage"]["base_model"]
    return {
        "convert": _result(evaluation["dataset_uri"]),
        "validate": _found(validation_uri(data_uri, "reasoning" in config["rewards"]["functions"])),
        "prepare": _found(base) if config["model"]["base"] == TINY else None,
    }


def _report(run_id: str, results: dict[str, dict[str, Any] | None], seconds: dict[str, float]) -> str:
    """The HTML report of a run that was evaluated, whether or not it was decided on."""
    from vqa_grpo.evaluation.compare import Comparison
    from vqa_grpo.evaluation.gate import Decision
    from vqa_grpo.evaluation.present import run_report
    from vqa_grpo.evaluation.score import BlindLevel, Scores
    from vqa_grpo.report.html import render_run_report
    from vqa_grpo.report.run import Example

    evaluation, decided = results["evaluate"] or {}, results["decide"]
    history = open_store(publish.get(evaluation["model_uri"]).root).read("history.json")
    report = run_report(
        f"vqa-grpo {run_id}",
        Scores.from_dict(evaluation["base"]),
        Scores.from_dict(evaluation["tuned"]),
        Comparison.from_dict(evaluation["comparison"]),
        blind=BlindLevel(**evaluation["blind"]),
        decision=Decision(decided["decision"], decided["reasons"]) if decided else None,
        examples=[Example.from_dict(example) for example in evaluation["examples"]],
        history=json.loads(history or b"[]"),
        lineage=evaluation["lineage"],
        config=evaluation["config"],
        timings=seconds,
    )
    return render_run_report(report)


# --- shared -----------------------------------------------------------------------------------------------------


def _once(step: str, uri: str, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Publish what `build` makes, unless it is there already; returns its result with `root` and `seconds`."""
    announce(step, "started")
    reused = publish.is_published(uri)

    def timed(folder: Path) -> dict[str, Any]:
        began = time.monotonic()
        figures = build(folder)
        result = {**figures, "seconds": round(time.monotonic() - began, 2)}
        (folder / RESULT).write_text(json.dumps(result, indent=1, sort_keys=True, allow_nan=False))
        return {"step": step}

    publish.publish(uri, timed, _work())
    result = _result(uri)
    announce(step, "reused" if reused else "finished", seconds=result["seconds"])
    return result


def _result(uri: str) -> dict[str, Any]:
    published = publish.get(uri)
    result = json.loads(open_store(published.root).read(RESULT) or b"{}")
    return {**result, "root": published.root}


def _found(uri: str) -> dict[str, Any] | None:
    return _result(uri) if publish.is_published(uri) else None


def _config(text: str) -> RunConfig:
    return configuration.from_tree(json.loads(text), "of the run")


def _work() -> Path:
    """Scratch space: VQA_GRPO_WORK, or the system's temporary folder."""
    return Path(os.environ.get("VQA_GRPO_WORK") or Path(tempfile.gettempdir()) / "vqa-grpo")


def _dataset_folder(uri: str) -> Path:
    return publish.fetch(uri, publish.cache_folder())


def _model_folder(name: str) -> str:
    """A local folder for a model that is published; a folder or hub name stays as it is."""
    return str(publish.fetch(name, publish.cache_folder())) if publish.looks_published(name) else name


def _stages(step: str) -> Callable[[str, int, int], None]:
    return lambda stage, done, total: emit(f"{step} {stage}", done, total)
