"""The evaluation step: base and tuned model on the same held-out questions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.config import RunConfig
from vqa_grpo.contract import prompt as prompts
from vqa_grpo.contract.layout import EVALUATION_STATUS, step_uri
from vqa_grpo.steps.shared import MEASURED, config_of, forget_failure, once, result_of
from vqa_grpo.storage import publish

PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Evaluated:
    evaluation_uri: str
    metrics: dict[str, Any]  # nested, None where something could not be measured


def evaluate_models(
    config: str, run_id: str, root: str, dataset_uri: str, base: str, model_uri: str, image: str = ""
) -> Evaluated:
    """Ask base and tuned model the same held-out questions, grade both by the rules that the rewards use.

    A job asks, on this machine or where training ran, and publishes the predictions; they are scored here, without
    the data set. The judge is left out: one that changes its mind, or its version, would make two runs incomparable.
    """
    from vqa_grpo.evaluation.questions import FOLDER

    run = config_of(config)
    models = {"base": base, "tuned": model_uri}

    def build(folder: Path) -> dict[str, Any]:
        uris = [step_uri(root, run_id, f"{PREDICTIONS}/{name}") for name in (*models, FOLDER)]
        if not all(publish.is_published(uri) for uri in uris):
            launch_evaluation(run, run_id, root, dataset_uri, models, image)
        forget_failure("evaluate", step_uri(root, run_id, EVALUATION_STATUS))
        return _compared(run, uris, dataset_uri, base, model_uri)

    uri = step_uri(root, run_id, "evaluate")
    result = once("evaluate", uri, build)
    return Evaluated(uri, {name: result[name] for name in MEASURED})


def evaluation_job(
    run: RunConfig, run_id: str, root: str, dataset_uri: str, models: dict[str, str], image: str = ""
) -> Any:
    """The job that asks: one node of those that train, with all of its GPUs. The same in every attempt."""
    from vqa_grpo.jobs import JobSpec, job_name

    arguments = [
        *("--config", run.deciding(), "--dataset_uri", dataset_uri),
        *("--models", *(f"{name}={model}" for name, model in models.items())),
        *("--publish_uri", step_uri(root, run_id, PREDICTIONS)),
    ]
    name, status = job_name(run_id, prefix="vqa-eval"), step_uri(root, run_id, EVALUATION_STATUS)
    more = {"num_nodes": 1, "arguments": tuple(arguments), "image": image, "status_uri": status}
    return JobSpec.from_config(name, run_id, "vqa_grpo.evaluation", run.job, **more)


def launch_evaluation(
    run: RunConfig, run_id: str, root: str, dataset_uri: str, models: dict[str, str], image: str
) -> None:
    from vqa_grpo import jobs

    jobs.launch(evaluation_job(run, run_id, root, dataset_uri, models, image), run.job.launcher)


def _compared(run: RunConfig, uris: list[str], dataset_uri: str, base: str, model_uri: str) -> dict[str, Any]:
    from vqa_grpo.evaluation.ask import FILE
    from vqa_grpo.evaluation.compare import compare
    from vqa_grpo.evaluation.questions import read_questions
    from vqa_grpo.evaluation.score import score

    base_folder, tuned_folder, questions = (publish.fetch(uri, publish.cache_folder()) for uri in uris)
    before, after = base_folder / FILE, tuned_folder / FILE
    return {
        **read_questions(questions),
        "base": asdict(score(before)),
        "tuned": asdict(score(after)),
        "comparison": asdict(compare(before, after)),
        "split": run.evaluate.split,
        "dataset_uri": dataset_uri,
        "model_uri": model_uri,
        "config": run.model_dump(mode="json"),
        "lineage": {
            "dataset_digest": result_of(dataset_uri)["digest"],
            "base_model": base,
            "model_uri": model_uri,
            "model_digest": publish.get(model_uri).digest,
            "prompt_digest": prompts.load(run.model.prompt).digest,
            "rewards": ", ".join(run.rewards.functions),
        },
    }
