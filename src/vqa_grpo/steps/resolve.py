"""The first step: check the configuration, look at the source, and name the run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vqa_grpo
from vqa_grpo import config as configuration
from vqa_grpo.config import RunConfig
from vqa_grpo.contract import prompt as prompts
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.layout import key_of
from vqa_grpo.steps.data_plan import DataPlan, open_source
from vqa_grpo.steps.shared import check_run_id
from vqa_grpo.steps.train import reward_options, training_job
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import normalise

WIRING = ("cli", "components", "images", "pipelines")  # how steps are called, not what they do


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
    from vqa_grpo.data.splits import shares

    run = checked(config, settings or [])
    if not root:
        raise ConfigurationError("no place to write to: give an output root, s3://bucket/prefix or a folder")
    check_run_id(run_id)
    source, plan = open_source(run.data), DataPlan.of(run)
    shares(plan.split_rule, [split for split, rows in source.rows.items() if rows])
    code = code or code_digest()
    run_id = run_id or "run-" + key_of(run.deciding(), source.fingerprint, code, _local_inputs(run))[:12]
    return Resolved(run.canonical(), plan.data_config, plan.checks, run_id, normalise(root), source.fingerprint, code)


def checked(config: str, settings: list[str]) -> RunConfig:
    """A configuration with everything about it that can be known before anything starts found to be right."""
    run = configuration.load(config, settings)
    _check_rewards(run)
    _check_metrics(run)
    _check_job(run)
    return _self_contained(run)


def _check_job(run: RunConfig) -> None:
    """Build the job as a cluster would get it, so that what its kind cannot do is said before anything is converted."""
    from vqa_grpo.jobs.kind import kind_named

    job = training_job(run, "check", "s3://bucket", "s3://bucket/data", run.model.base, "image")
    kind_named(job.kind).build_manifest(job)


def _self_contained(run: RunConfig) -> RunConfig:
    """The configuration with a prompt file's text in the place of its name: pods have no such file."""
    template = prompts.load(run.model.prompt)
    if template.name == run.model.prompt:
        return run
    return run.model_copy(update={"model": run.model.model_copy(update={"prompt": template.text})})


def _check_rewards(run: RunConfig) -> None:
    """Refuse what can be known to fail before anything is converted; only the trainer imports a user's own function."""
    from vqa_grpo import jobs
    from vqa_grpo.rewards import registry

    given = {name: value for name, value in reward_options(run).items() if value is not None}
    local = jobs.place(run.job.launcher) == "local"
    registry.check(given, local=local)
    for name in run.rewards.functions if local else ():
        package = re.split(r"[.:]", name)[0]
        if name not in registry.NAMES and not _is_found(package):
            raise ConfigurationError(
                f"rewards.functions: {name}: no module {package} is found here: check it and PYTHONPATH"
            )


def _is_found(package: str) -> bool:
    """Whether the trainer, which looks in the working folder too, will find something of this name to import."""
    try:
        found = importlib.util.find_spec(package) is not None
    except (ValueError, ImportError):  # loaded already, without saying from where
        found = True
    return found or Path(package).is_dir() or Path(f"{package}.py").is_file()


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


def code_digest() -> str:
    """A digest of this package's own files: results made by other code are not taken for this code's."""
    here = Path(vqa_grpo.__file__).parent
    files = sorted(
        path
        for path in here.rglob("*")
        if path.suffix in (".py", ".yaml", ".txt", ".json") and path.relative_to(here).parts[0] not in WIRING
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(here).as_posix()} {publish.sha256_of(path)}\n".encode())
    return digest.hexdigest()[:16]
