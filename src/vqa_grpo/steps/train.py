"""The training step: a run configuration as the trainer's command line, and the job that runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_grpo import registry
from vqa_grpo.config import RunConfig
from vqa_grpo.contract.failure import StepError
from vqa_grpo.contract.layout import RUN_VARIABLE, TRAINING_STATUS, step_uri
from vqa_grpo.report.progress import announce
from vqa_grpo.steps.shared import OPENED, config_of, forget_failure, once
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import open_store

POD_OUTPUT = "/tmp/vqa-grpo/output"  # noqa: S108 - a training pod's own disk


@dataclass(frozen=True)
class Trained:
    model_uri: str
    digest: str
    steps: int


def train_model(config: str, run_id: str, root: str, dataset_uri: str, base: str, image: str = "") -> Trained:
    """Run GRPO as a job, on this machine or on a cluster; the job itself publishes the model."""
    run = config_of(config)
    model_uri = step_uri(root, run_id, "model")

    def build(folder: Path) -> dict[str, Any]:
        if not publish.is_published(model_uri):
            launch_training(run, run_id, root, dataset_uri, base, image)
        model = publish.get(model_uri)
        forget_failure("train", step_uri(root, run_id, TRAINING_STATUS))
        facts = json.loads(open_store(model.root).read("training.json") or b"{}")
        return {"model_uri": model_uri, "digest": model.digest, "steps": facts["steps"], "base": base}

    result = once("train", step_uri(root, run_id, "train"), build)
    forget_checkpoints(root, run_id)
    return Trained(model_uri, result["digest"], result["steps"])


def forget_checkpoints(root: str, run_id: str) -> None:
    """Checkpoints are for going on; a run whose model is published needs none, and they are several times its size."""
    try:
        open_store(root).delete(f"{run_id}/checkpoints/")
    except StepError as error:
        announce("train", "left its checkpoints", why=str(error))


def training_arguments(
    run: RunConfig, dataset: str, base: str, output_dir: str, publish_uri: str, checkpoint_uri: str = ""
) -> list[str]:
    """The command line of `python -m vqa_grpo.training` for a run configuration.

    It is the same in every attempt: the first finds no checkpoint at `checkpoint_uri`, and later ones go on from
    the newest.
    """
    train = run.train.model_dump(exclude={"extra", "num_generations", "deepspeed", "save_steps", "save_total_limit"})
    options: dict[str, Any] = {
        "model_name_or_path": base,
        "dataset_name": dataset,
        "output_dir": output_dir,
        "publish_uri": publish_uri,
        "prompt_template": run.model.prompt,
        "min_pixels": run.model.min_pixels,
        "max_pixels": run.model.max_pixels,
        **reward_options(run),
        "seed": run.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        **train,
    }
    if run.train.save_steps:
        options |= {
            "save_strategy": "steps",
            "save_steps": run.train.save_steps,
            "save_total_limit": run.train.save_total_limit,
            "resume_from_checkpoint": "true",
        }
        if checkpoint_uri:
            options["checkpoint_uri"] = checkpoint_uri
    if registry.is_configured(run.registry.tracking_uri):
        options["report_to"] = "mlflow"
    if run.train.num_generations:
        options["num_generations"] = run.train.num_generations
    if run.train.deepspeed:
        options["deepspeed"] = run.train.deepspeed
    options |= run.train.extra
    return [word for key, value in options.items() for word in _option(key, value)]


def reward_options(run: RunConfig) -> dict[str, Any]:
    """The rewards and the judge as the trainer's options."""
    rewards, judge = run.rewards, run.judge
    options: dict[str, Any] = {
        "reward_funcs": list(rewards.functions),
        "reward_weights": list(rewards.weights),
        "reward_combination": rewards.combination,
        "format_reward": rewards.format_mode,
        "step_encoder": rewards.step_encoder or None,
    }
    if not judge.enabled:
        return options
    return options | {
        "use_judge": True,
        "judge_url": judge.url,
        "judge_model": judge.model,
        "judge_timeout": judge.timeout_seconds,
        "judge_retries": judge.max_retries,
        "judge_concurrency": judge.concurrency,
        "judge_cache_dir": judge.cache_dir or None,
    }


def training_job(
    run: RunConfig, run_id: str, root: str, dataset_uri: str, base: str, image: str, output: str = POD_OUTPUT
) -> Any:
    """The job that trains: what `train` launches and `render-job` prints. `output` is a folder of each node's own.

    The same in every attempt, for a retried step recognises its job by what it runs.
    """
    from vqa_grpo.jobs import JobSpec, job_name

    uris = {name: step_uri(root, run_id, name) for name in ("model", "checkpoints")}
    more = {
        "arguments": tuple(training_arguments(run, dataset_uri, base, output, uris["model"], uris["checkpoints"])),
        "image": image,
        "status_uri": step_uri(root, run_id, TRAINING_STATUS),
        "environment": mlflow_environment(run, run_id),
    }
    return JobSpec.from_config(job_name(run_id), run_id, "vqa_grpo.training", run.job, **more)


def mlflow_environment(run: RunConfig, run_id: str) -> dict[str, str]:
    """How the trainer finds MLflow, and its parent's run there.

    The same in every attempt, whether MLflow answers or not: a job is recognised by it.
    """
    if not registry.is_configured(run.registry.tracking_uri):
        return {}
    named = {"MLFLOW_TRACKING_URI": run.registry.tracking_uri} if run.registry.tracking_uri else {}
    return {**named, "MLFLOW_EXPERIMENT_NAME": run.registry.experiment, RUN_VARIABLE: run_id}


def open_mlflow_run(run: RunConfig, run_id: str, place: str) -> None:
    """Make the run that training becomes a child of, and note it at `place` for whoever has to close it.

    Where MLflow does not answer, training goes on without a parent.
    """
    if not registry.is_configured(run.registry.tracking_uri):
        return
    try:
        opened = registry.open_run(run.registry.tracking_uri, run.registry.experiment, run_id)
    except (StepError, ImportError) as error:
        announce("train", "without a parent run", why=str(error))
        return
    note = {"tracking_uri": run.registry.tracking_uri, "mlflow_run_id": opened}
    open_store(place).write(OPENED, json.dumps(note).encode())


def launch_training(run: RunConfig, run_id: str, root: str, dataset_uri: str, base: str, image: str) -> None:
    from vqa_grpo import jobs

    open_mlflow_run(run, run_id, step_uri(root, run_id, "mlflow"))
    if jobs.place(run.job.launcher) == "local":
        with publish.scratch(publish.work_folder()) as output:
            jobs.launch(training_job(run, run_id, root, dataset_uri, base, image, str(output)), "local")
    else:
        jobs.launch(training_job(run, run_id, root, dataset_uri, base, image), run.job.launcher)


def _option(key: str, value: Any) -> list[str]:
    """One option as the trainer's command line takes it; None and an empty list leave its default."""
    if value is None or value == []:
        return []
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{key}", *(json.dumps(part) if isinstance(part, dict | bool) else str(part) for part in values)]
