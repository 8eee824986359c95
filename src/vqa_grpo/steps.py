"""The pipeline's steps as plain functions: strings and numbers in, a dataclass out, no Kubeflow.

A step's result is a folder published once, with a `result.json` of its figures. A step that finds its result
published returns it, so that a retried step, a resumed run and a second run all do only what is missing.
Results that depend on their inputs alone (the converted data, the embedded base model) are keyed on those inputs.
"""

from __future__ import annotations

import functools
import hashlib
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
WIRING = ("cli", "components", "pipelines")  # how steps are called, not what they do
P = ParamSpec("P")
R = TypeVar("R")


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Turn an error that a person can act on into one line and its exit code, as every pod and shell expects."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except StepError as error:
            raise SystemExit(_tell(function.__name__, error)) from None
        except Exception as error:
            if isinstance(error, OSError) and is_about_the_disk(error):
                raise SystemExit(_tell(function.__name__, explain_os_error(error))) from None
            # A mistake of ours: the traceback goes to the log, one line to the person.
            announce(function.__name__, "failed", error=_one_line(error), reason=str(FailureReason.INTERNAL))
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
    """What a run will do: its checked configuration, where it writes, and what its source looks like now."""

    config: str
    data_config: str
    run_id: str
    root: str
    fingerprint: str
    code: str
    rows: dict[str, int]


def resolve(
    config: str = "", settings: list[str] | None = None, root: str = "", run_id: str = "", code: str = ""
) -> Resolved:
    """Check the configuration, look at the source, and name the run.

    Without a `run_id` the run is named after everything that decides its result, so that the same run started
    again goes on instead of starting over. `code` is the image's digest; empty takes this package's own.
    """
    run = configuration.load(config, settings or [])
    if not root:
        raise ConfigurationError("no place to write to: give an output root, s3://bucket/prefix or a folder")
    _check_run_id(run_id)
    prompts.load(run.model.prompt)
    source = open_source(run.data.source)
    code = code or code_digest()
    run_id = run_id or "run-" + key_of(run.canonical(), source.fingerprint, code)[:12]
    # Only what decides the converted data goes to the data steps, so that other settings do not undo their cache.
    data = json.dumps(run.data.model_dump(mode="json") | {"wants_steps": "reasoning" in run.rewards.functions})
    return Resolved(run.canonical(), data, run_id, normalise(root), source.fingerprint, code, source.rows)


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
    from vqa_grpo.data.sources import Source, open_folder

    if name == EASY_VQA:
        from vqa_grpo.quickstart import easy_vqa

        return Source(name, easy_vqa.fingerprint(), dict(easy_vqa.ROWS), easy_vqa.records)  # type: ignore[arg-type]
    if name.startswith("builtin:"):
        raise ConfigurationError(f"data.source {name!r} is not built in: the one that is, is {EASY_VQA}")
    return open_folder(name)


# --- the data steps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Validated:
    report_uri: str
    rows: int
    invalid: int
    markdown: str


def validate_dataset(data_config: str, fingerprint: str, root: str, code: str) -> Validated:
    """Check every row of the source; DataError when too many are unusable."""
    from vqa_grpo.data import validate

    data = _data_section(data_config)

    def build(folder: Path) -> dict[str, Any]:
        source = _unchanged_source(data.source, fingerprint)
        report = validate.validate(source, _wants_steps(data_config), data.limit, folder / "quarantine.jsonl")
        validate.write_report(report, folder)
        return {"rows": report.total, "invalid": report.invalid, "by_code": report.by_code}

    uri = step_uri(root, _data_key(data_config, fingerprint, code), "validate")
    result = _once("validate", uri, build)
    validate.refuse_if_bad(_read_report(result["root"]), data.max_invalid_fraction)
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

    data = _data_section(data_config)

    def build(folder: Path) -> dict[str, Any]:
        source = _unchanged_source(data.source, fingerprint)
        rule = convert.SplitRule(data.split_seed, data.validation_fraction, data.test_fraction)
        return asdict(convert.convert(source, rule, folder, data.limit))

    uri = step_uri(root, _data_key(data_config, fingerprint, code), "convert")
    result = _once("convert", uri, build)
    return Converted(uri, result["digest"], result["splits"])


def _data_section(data_config: str) -> configuration.Data:
    values = json.loads(data_config)
    values.pop("wants_steps")
    return configuration.Data(**values)


def _wants_steps(data_config: str) -> bool:
    return bool(json.loads(data_config)["wants_steps"])


def _data_key(data_config: str, fingerprint: str, code: str) -> str:
    return "data-" + key_of(json.loads(data_config), fingerprint, code)


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
    digest: str


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
        prepared = Prepared(normalise(base), publish.get(base).digest)
    elif Path(base).is_dir():
        prepared = Prepared(str(Path(base).absolute()), publish.digest_of(publish.describe(Path(base))))
    else:
        prepared = Prepared(base, f"hub:{base}")
    announce("prepare", "finished", base=base)
    return prepared


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
    result = _once("prepare", uri, build)
    return Prepared(uri, result["folder_digest"])


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

    with publish.scratch(_work()) as output:
        arguments = training_arguments(run, dataset_uri, base, str(output), model_uri)
        jobs.launch(training_job(run, run_id, arguments, image), run.job.launcher)


def _option(key: str, value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{key}", *(str(part) for part in values)]


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
    return Evaluated(uri, {name: result[name] for name in ("base", "tuned", "comparison", "blind")})


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
    mlflow_run_id: str


def decide_promotion(config: str, run_id: str, root: str, fingerprint: str, code: str, evaluation_uri: str) -> Decided:
    """Compare with the gate's rules, and record the numbers in MLflow whatever the verdict."""
    from vqa_grpo import registry
    from vqa_grpo.evaluation import gate
    from vqa_grpo.evaluation.compare import compare
    from vqa_grpo.evaluation.score import score
    from vqa_grpo.report.metrics import clean_metrics

    run = _config(config)
    scores = _result(evaluation_uri)

    def build(folder: Path) -> dict[str, Any]:
        predictions = publish.fetch(evaluation_uri, publish.cache_folder())
        base, tuned = predictions / "base.parquet", predictions / "tuned.parquet"
        rules = gate.GateRules(**run.gate.model_dump())
        verdict = gate.decide(score(base), score(tuned), compare(base, tuned), rules)
        metrics = {name: scores[name] for name in ("base", "tuned", "comparison", "blind")}
        mlflow_run_id = registry.record_run(
            run.registry.tracking_uri,
            run.registry.experiment,
            run_id,
            metrics=clean_metrics(metrics)[0],
            params={"config": run.canonical()},
            tags=scores["lineage"] | {"decision": verdict.decision, "code": code, "source": fingerprint},
        )
        return {**asdict(verdict), "mlflow_run_id": mlflow_run_id}

    result = _once("decide", step_uri(root, run_id, "decide"), build)
    decision = {"run_id": run_id, "decision": result["decision"]}
    open_store(root).write(_decision_name(config, fingerprint, code), json.dumps(decision).encode())
    promoted = result["decision"] == "promote"
    return Decided(promoted, result["decision"], result["reasons"], result["mlflow_run_id"])


def needs_training(config: str, root: str, fingerprint: str, code: str) -> bool:
    """False when the same source, code and configuration were decided on before, whatever the verdict was."""
    return open_store(root).read(_decision_name(config, fingerprint, code)) is None


def _decision_name(config: str, fingerprint: str, code: str) -> str:
    return f"decisions/{key_of(json.loads(config), fingerprint, code)}.json"


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


def finish_run(run_id: str, root: str, status: str) -> dict[str, Any]:
    """Stop what is left of the run's jobs, and write summary and report from what its steps published.

    Runs after a failure too. Both files are derived from published results, so they may be written again.
    """
    from vqa_grpo import jobs
    from vqa_grpo.report.summary import summarise

    _check_run_id(run_id)
    announce("finish", "started")
    jobs.sweep(run_id)
    results = {step: _found(step_uri(root, run_id, step)) for step in ("train", "evaluate", "decide", "register")}
    evaluation = results["evaluate"]
    summary = summarise(run_id, status, results, _result(evaluation["dataset_uri"]) if evaluation else None)
    store = open_store(step_uri(root, run_id, "summary"))
    store.write("summary.json", json.dumps(summary, indent=1, sort_keys=True, allow_nan=False).encode())
    if evaluation:
        store.write("report.html", _report(run_id, results, summary["seconds"]).encode())
    announce("finish", "finished")
    return summary


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
    return {**result, "root": published.root, "folder_digest": published.digest}


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
