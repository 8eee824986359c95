"""The verbs. Each imports what it needs when it runs, so that help answers at once."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from vqa_grpo import __version__
from vqa_grpo.contract.failure import ConfigurationError, FailureReason, StepError

app = typer.Typer(
    name="vqa-grpo",
    help="Post-train vision-language models on visual question answering with GRPO.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Print it.")] = False,
) -> None:
    """Post-train vision-language models on visual question answering with GRPO."""


Config = Annotated[str, typer.Option(help="A shipped configuration (quickstart, quick) or a YAML file.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be given many times.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON for programs.")]
TrackingUri = Annotated[str, typer.Option(help="MLflow; by default MLFLOW_TRACKING_URI, or that of the runs here.")]
ModelName = Annotated[str, typer.Option("--name", help="The registered model.")]
Alias = Annotated[str, typer.Option(help="The alias that says which version is in use.")]


def main() -> None:
    """Run a verb; every error that a person can act on is one line and a non-zero exit code."""
    try:
        app(prog_name="vqa-grpo")
    except StepError as error:
        _fail(str(error), error.reason)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        from vqa_grpo.storage.store import explain_os_error

        explained = explain_os_error(error)
        _fail(str(explained), explained.reason)


def _fail(message: str, reason: FailureReason) -> NoReturn:
    # A message may quote what stands in data: it stays one line, and steers no terminal.
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
    print(f"error: {line}", file=sys.stderr)
    sys.exit(reason.exit_code)


def _later(verb: str, instead: str) -> NoReturn:
    print(f"error: vqa-grpo {verb} is not in this version yet; {instead}", file=sys.stderr)
    sys.exit(2)


def _mlflow(tracking_uri: str) -> str:
    """Where MLflow is: as told, or what `vqa-grpo run` left in this folder."""
    own = Path("runs/mlflow.db")
    if tracking_uri or "MLFLOW_TRACKING_URI" in os.environ or not own.is_file():
        return tracking_uri
    return f"sqlite:///{own.absolute()}"


def _say(result: Any, as_json: bool, text: str) -> None:
    print(json.dumps(result, sort_keys=True, allow_nan=False) if as_json else text)


# --- the whole run ----------------------------------------------------------------------------------------------


@app.command()
def run(
    config: Config = "quickstart",
    settings: Settings = None,
    quick: Annotated[bool, typer.Option("--quick", help="Prove the plumbing in three minutes.")] = False,
    runs: Annotated[Path, typer.Option(help="Where runs, logs, MLflow and the embedded S3 live.")] = Path("runs"),
    storage: Annotated[str, typer.Option(help="A folder or s3://… instead of the embedded S3.")] = "",
    s3_port: Annotated[int, typer.Option(min=0, max=55535, help="Port of the embedded S3; 0 takes a free one.")] = 0,
    run_id: Annotated[str, typer.Option(help="Name of the run; by default made from what decides its result.")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Keep Kubeflow's own lines in the log.")] = False,
    as_json: Json = False,
) -> None:
    """Run the pipeline on this machine: resolve, validate, convert, train, evaluate, decide, register."""
    from vqa_grpo.cli.run import run as run_pipeline

    if quick and config != "quickstart":
        raise ConfigurationError(f"--quick is a configuration of its own: leave it out, or leave out --config {config}")
    name = "quick" if quick else config
    sys.exit(run_pipeline(name, settings or [], runs, storage, s3_port, run_id, verbose, as_json))


@app.command()
def plan(config: Config = "quickstart", settings: Settings = None, as_json: Json = False) -> None:
    """Check a configuration and show it whole, without starting anything."""
    import yaml

    from vqa_grpo.steps import checked

    loaded = checked(config, settings or [])
    tree = loaded.model_dump(mode="json")
    _say(tree, as_json, yaml.safe_dump(tree, sort_keys=False).rstrip())


@app.command()
def storage(runs: Annotated[Path, typer.Option(help="The folder that the runs used.")] = Path("runs")) -> None:
    """Serve the embedded S3 of earlier runs until Ctrl-C, to look at models and predictions."""
    from vqa_grpo.cli.run import serve_storage

    sys.exit(serve_storage(runs))


@app.command()
def cleanup(
    uri: Annotated[str, typer.Argument(help="Everything below it is looked at: s3://bucket/prefix or a folder.")],
    older_than_hours: Annotated[
        float | None, typer.Option(help="What was written or used since then stays: 24, of a cache 336.")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="It is a cache (VQA_GRPO_CACHE): what nobody has fetched from it since.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is found, instead of only listing it.")] = False,
    as_json: Json = False,
) -> None:
    """Find, and with --delete remove, what writers that were killed left in storage; nothing published is touched.

    With --cache, find what no run has used for long of what runs have fetched.
    """
    from vqa_grpo.storage.cache import HOURS as UNUSED_HOURS
    from vqa_grpo.storage.cache import prune
    from vqa_grpo.storage.cleanup import HOURS, clean_up

    if cache:
        found = prune(Path(uri), UNUSED_HOURS if older_than_hours is None else older_than_hours, delete)
    else:
        found = clean_up(uri, HOURS if older_than_hours is None else older_than_hours, delete)
    lines = [f"{left.kind}  {left.name}  {left.objects} objects, {left.size:,} bytes, {left.hours} h" for left in found]
    lines.append(
        f"{len(found)} {'deleted' if delete else 'found; --delete removes them'}" if found else "nothing to do"
    )
    _say([left._asdict() for left in found], as_json, "\n".join(lines))


# --- data -------------------------------------------------------------------------------------------------------


@app.command()
def resolve(config: Config = "quickstart", settings: Settings = None, as_json: Json = False) -> None:
    """Look at the source: its fingerprint and how many rows it has."""
    from vqa_grpo.config import load as configuration_of
    from vqa_grpo.steps import open_source

    source = open_source(configuration_of(config, settings or []).data)
    result = {"source": source.name, "fingerprint": source.fingerprint, "rows": source.rows, "exact": source.exact}
    about = "" if source.exact else "about "
    rows = ", ".join(f"{split} {about}{count:,}" for split, count in source.rows.items())
    _say(result, as_json, f"{source.name}: {rows} rows, fingerprint {source.fingerprint[:16]}")


SourceName = Annotated[
    str,
    typer.Argument(
        help="builtin:easy-vqa, hub:org/name, or a folder, file or s3://… of save_to_disk, Parquet, JSONL, CSV or tars."
    ),
]
DataConfig = Annotated[str, typer.Option("--config", help="A configuration whose data and model sections count.")]
Limit = Annotated[int, typer.Option(min=0, help="Only about this many rows of each split.")]
Shard = Annotated[str, typer.Option(help="Only part i of n, as i/n; put together with --merge n.")]
Merge = Annotated[int, typer.Option(min=0, help="Put the n parts together that were made with --shard.")]
MaxInvalid = Annotated[float | None, typer.Option(min=0, max=1, help="More unusable rows than this share fail.")]


@app.command()
def validate(
    source: SourceName = "",
    out: Annotated[Path | None, typer.Option(help="A folder for report, problems and quarantine.")] = None,
    config: DataConfig = "",
    settings: Settings = None,
    limit: Limit = 0,
    max_invalid_fraction: MaxInvalid = None,
    shard: Shard = "",
    merge: Merge = 0,
    as_json: Json = False,
) -> None:
    """Check every row of a data set."""
    from vqa_grpo.cli import data
    from vqa_grpo.data.validate import refuse_if_bad

    given = {"limit": limit or None, "max_invalid_fraction": max_invalid_fraction}
    plan = data.plan_of(source, config, [*_data_settings(given), *(settings or [])])
    report = data.validate(plan, out, shard, merge)
    if report is None:
        _say({"shard": shard}, as_json, f"part {shard} is checked; put all parts together with --merge")
        return
    _say(report.figures(), as_json, report.markdown().rstrip())
    refuse_if_bad(report, plan.rules)


@app.command()
def convert(
    source: SourceName,
    out: Annotated[Path, typer.Argument(help="A new folder for the converted data set.")],
    config: DataConfig = "",
    settings: Settings = None,
    limit: Limit = 0,
    validation: Annotated[float | None, typer.Option(min=0, max=1, help="Share of pictures for validation.")] = None,
    test: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of pictures for test, if the source has no test split.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Which pictures go where.")] = None,
    max_invalid_fraction: MaxInvalid = None,
    resize: Annotated[bool, typer.Option("--resize", help="Scale pictures down to model.max_pixels, once.")] = False,
    report: Annotated[Path | None, typer.Option(help="The --out of an earlier validation of this source.")] = None,
    shard: Shard = "",
    merge: Merge = 0,
    as_json: Json = False,
) -> None:
    """Write a data set as train, validation and test in the guide's schema, after checking it."""
    from vqa_grpo.cli import data

    given = {
        "limit": limit or None,
        "validation_fraction": validation,
        "test_fraction": test,
        "split_seed": seed,
        "max_invalid_fraction": max_invalid_fraction,
        "resize": resize or None,
    }
    plan = data.plan_of(source, config, [*_data_settings(given), *(settings or [])])
    made, found = data.convert(plan, out, shard, merge, report)
    splits = ", ".join(f"{split} {count:,}" for split, count in made.splits.items())
    lost = sum(made.left_out.values())
    note = f"; {lost:,} unusable rows left out: {out}/report/quarantine.jsonl" if lost else ""
    _say(data.figures(made, found), as_json, f"{out}: {splits}; digest {made.digest[:16]}{note}")


def _data_settings(given: dict[str, Any]) -> list[str]:
    return [f"data.{name}={json.dumps(value)}" for name, value in given.items() if value is not None]


@app.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(help="A converted data set, or any save_to_disk folder.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("inspect.html"),
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 200,
    split: Annotated[str, typer.Option(help="Only this split.")] = "",
) -> None:
    """Look at a data set's rows, pictures and statistics in an HTML file."""
    from vqa_grpo.data.inspect import inspect as write_page

    write_page(dataset, out, rows, split)
    print(out)


# --- models -----------------------------------------------------------------------------------------------------


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(context: typer.Context) -> None:
    """Train: the guide's command. All flags go to `python -m vqa_grpo.training`; try `vqa-grpo train --help`."""
    from vqa_grpo.training.__main__ import main as train_main

    sys.exit(train_main(context.args))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, a published URI, or a hub name.")],
    dataset: Annotated[Path, typer.Argument(help="A converted data set.")],
    out: Annotated[Path, typer.Option(help="The prediction file, Parquet.")] = Path("predictions.parquet"),
    config: Config = "quickstart",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Ask a model the held-out questions and grade its answers."""
    from vqa_grpo.config import load as configuration_of
    from vqa_grpo.evaluation.ask import predict_to
    from vqa_grpo.evaluation.score import score

    run_config = configuration_of(config, settings or [])
    predict_to(run_config, model, dataset, out)
    scores = asdict(score(out))
    text = f"accuracy {scores['accuracy']} {scores['accuracy_ci']}, format {scores['format_rate']}"
    _say(scores, as_json, f"{text}, {scores['n']} questions\npredictions: {out}")


@app.command()
def compare(base: Path, tuned: Path, as_json: Json = False) -> None:
    """Compare two prediction files on the same questions."""
    from vqa_grpo.evaluation.compare import compare as compare_files

    result = asdict(compare_files(base, tuned))
    text = f"accuracy gain {result['gain']} {result['gain_ci']}: {result['from_format']} from format, "
    _say(result, as_json, text + f"{result['from_answers']} from better answers; McNemar p {result['p_value']}")


@app.command()
def register(
    uri: Annotated[str, typer.Argument(help="Where the model is published.")],
    name: ModelName = "vqa-grpo",
    alias: Alias = "champion",
    tracking_uri: TrackingUri = "",
) -> None:
    """Register a published model by reference and point the alias at it."""
    from vqa_grpo import registry
    from vqa_grpo.storage import publish

    model = publish.get(uri)
    done = registry.register(_mlflow(tracking_uri), name, alias, model.root, model.digest, "", {"model_uri": uri})
    print(f"{done.name} version {done.version} is @{done.alias}")


@app.command()
def models(name: ModelName = "vqa-grpo", tracking_uri: TrackingUri = "", as_json: Json = False) -> None:
    """List the registered versions, newest first."""
    from vqa_grpo import registry

    found = registry.models(_mlflow(tracking_uri), name)
    lines = [
        f"{v['version']:>4} {','.join('@' + a for a in v['aliases']):<14} {v['digest'][:16]} {v['uri']}" for v in found
    ]
    _say(found, as_json, "\n".join(lines) or f"no versions of {name}")


@app.command()
def promote(
    version: str, name: ModelName = "vqa-grpo", alias: Alias = "champion", tracking_uri: TrackingUri = ""
) -> None:
    """Point the alias at a version."""
    from vqa_grpo import registry

    print(f"{name} version {registry.promote(_mlflow(tracking_uri), name, alias, version).version} is @{alias}")


@app.command()
def rollback(name: ModelName = "vqa-grpo", alias: Alias = "champion", tracking_uri: TrackingUri = "") -> None:
    """Point the alias back at the version it left last."""
    from vqa_grpo import registry

    print(f"{name} version {registry.rollback(_mlflow(tracking_uri), name, alias).version} is @{alias} again")


# --- grading ----------------------------------------------------------------------------------------------------


@app.command()
def grade(
    gold: Annotated[list[str] | None, typer.Option(help="A right answer; may be given many times.")] = None,
    prediction: Annotated[str | None, typer.Option(help="The answer to grade.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An answer option; give all, in order.")] = None,
    source: Annotated[str, typer.Option(help="The row's source; one that ends in /TYPE fixes the gold type.")] = "",
    metric: Annotated[str, typer.Option(help="A standard metric instead of the grader.")] = "",
    file: Annotated[
        str, typer.Option(help="JSONL with gold, prediction, options, source, metric; - reads stdin.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Grade one answer, or with --file many."""
    from vqa_grpo.cli import grading
    from vqa_grpo.scoring.answer import grade as grade_answer

    if file:
        if gold or prediction is not None or option or source or metric:
            raise ConfigurationError("--file brings its own golds and predictions: give either it or the others")
        grading.each_line(file, grading.graded)
        return
    if not gold or prediction is None:
        raise ConfigurationError("grade needs --gold and --prediction, or --file")
    verdict = grading.verdict_row(grade_answer(prediction, gold, option or [], source, metric))
    text = f"{'right' if verdict['correct'] else 'wrong'} ({verdict['rule']}): {verdict['explanation']}"
    _say(verdict, as_json, text)


@app.command()
def parse(
    completion: Annotated[str | None, typer.Option(help="A model's completion.")] = None,
    file: Annotated[str, typer.Option(help="JSONL with the key completion; - reads stdin.")] = "",
    as_json: Json = False,
) -> None:
    """Say what a completion turned out to be, or with --file many."""
    from vqa_grpo.cli import grading
    from vqa_grpo.contract.completion import parse as parse_completion

    if file:
        if completion is not None:
            raise ConfigurationError("--file brings its own completions: give either it or --completion")
        grading.each_line(file, grading.parsed)
        return
    if completion is None:
        raise ConfigurationError("parse needs --completion or --file")
    parsed = parse_completion(completion)
    reasons = "; ".join(parsed.reasons) or "nothing to object to"
    _say(
        grading.completion_row(parsed),
        as_json,
        f"{parsed.outcome.value}, format reward {parsed.format_reward}: {reasons}",
    )


@app.command("score-steps")
def score_steps(
    step: Annotated[list[str] | None, typer.Option(help="A model's reasoning step; may be given many times.")] = None,
    reference: Annotated[list[str] | None, typer.Option(help="A reference step; may be given many times.")] = None,
    question: Annotated[str, typer.Option(help="The question; a step that only repeats it earns nothing.")] = "",
    mode: Annotated[
        str, typer.Option(help="semantic, lexical (no model), or crystal (the published one).")
    ] = "semantic",
    encoder: Annotated[str, typer.Option(help="A sentence-transformers name or folder instead of the default.")] = "",
    order: Annotated[bool, typer.Option("--order", help="Also say how far the steps keep the order.")] = False,
    file: Annotated[str, typer.Option(help="JSONL of steps, references, question; - reads stdin.")] = "",
    as_json: Json = False,
) -> None:
    """Match reasoning steps with reference steps."""
    from vqa_grpo.cli.score_steps import score_file, score_one

    if file:
        if step or reference or question:
            raise ConfigurationError("score-steps: give --file, or --step and --reference, not both")
        for line in score_file(file, mode, encoder, order):
            print(json.dumps(line, sort_keys=True, allow_nan=False))
        return
    result, text = score_one(step or [], reference or [], question, mode, encoder, order)
    _say(result, as_json, text)


# --- the cluster ------------------------------------------------------------------------------------------------


@app.command("compile")
def compile_pipelines(
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for train.yaml, retrain.yaml and data.yaml.")],
    steps_image: Annotated[str, typer.Option(help="Image of the CPU steps, best by digest.")] = "",
    trainer_image: Annotated[str, typer.Option(help="Image of training and evaluation, best by digest.")] = "",
) -> None:
    """Write the pipelines for Kubeflow; `kfp run create -f train.yaml` with no parameters does a CPU smoke run."""
    from vqa_grpo.pipelines.package import package

    for path in package(out, steps_image, trainer_image):
        print(path)


@app.command("render-job")
def render_job(
    config: Config = "quickstart",
    settings: Settings = None,
    num_nodes: Annotated[int, typer.Option(help="Pods of the job.")] = 2,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of each pod; 0 trains on CPU.")] = 0,
    kind: Annotated[str, typer.Option(help="pytorchjob or trainjob; by default what job.launcher says.")] = "",
    run_id: Annotated[str, typer.Option(help="The run's name.")] = "example",
    image: Annotated[str, typer.Option(help="The trainer image.")] = "",
) -> None:
    """Print the training job's manifest, as a run would submit it."""
    import yaml

    from vqa_grpo import jobs
    from vqa_grpo.components.images import TRAINER
    from vqa_grpo.config import load as configuration_of
    from vqa_grpo.jobs.spec import KINDS
    from vqa_grpo.steps import training_job

    if not run_id:
        raise ConfigurationError("render-job: --run-id is empty: give the run's name, or leave it out")
    if kind in ("auto", "local"):
        raise ConfigurationError(f"--kind {kind} is no job of a cluster: use {' or '.join(KINDS)}")
    changes = [*(settings or []), f"job.num_nodes={num_nodes}", f"job.gpus_per_node={gpus_per_node}"]
    loaded = configuration_of(config, [*changes, *([f"job.launcher={kind}"] if kind else [])])
    job = training_job(loaded, run_id, "s3://BUCKET/PREFIX", "s3://BUCKET/DATA", loaded.model.base, image or TRAINER)
    print(yaml.safe_dump(jobs.build(job), sort_keys=False), end="")


@app.command()
def sweep(
    run_id: Annotated[str, typer.Option(help="Delete the jobs of this pipeline run that still run.")] = "",
    orphans: Annotated[bool, typer.Option("--orphans", help="Delete jobs whose pipeline run is gone or over.")] = False,
    namespace: Annotated[str, typer.Option(help="By default that of the pod this runs in.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --orphans: only name them.")] = False,
) -> None:
    """Delete jobs on the cluster that nobody follows any more, and name them."""
    from vqa_grpo.jobs import janitor

    if bool(run_id) == orphans or (run_id and dry_run):
        raise ConfigurationError("sweep: give either --run-id ID, or --orphans with or without --dry-run")
    names = janitor.sweep_orphans(namespace, dry_run) if orphans else janitor.sweep(run_id, namespace)
    for name in names:
        print(name)


@app.command()
def submit() -> None:
    """(Not yet.) Submit a run to Kubeflow Pipelines and wait for it."""
    _later("submit", "compile, then `kfp run create -f train.yaml` (which exits 0 even when the run fails)")


@app.command()
def schedule() -> None:
    """(Not yet.) Create or update a recurring run."""
    _later("schedule", "compile, then create a recurring run of retrain.yaml in the Kubeflow Pipelines UI")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at this machine: what is installed, what is missing, what to do about it."""
    from vqa_grpo.cli.doctor import examine

    findings = examine()
    lines = [f"{'ok ' if finding.ok else 'BAD'} {finding.name:<14} {finding.detail}" for finding in findings]
    _say([asdict(finding) for finding in findings], as_json, "\n".join(lines))
    if not all(finding.ok for finding in findings):
        sys.exit(1)
