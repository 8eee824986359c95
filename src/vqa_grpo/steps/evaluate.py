"""The evaluation step: base and tuned model on the same held-out questions."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.config import RunConfig
from vqa_grpo.contract import prompt as prompts
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.layout import step_uri
from vqa_grpo.report.progress import emit
from vqa_grpo.steps.shared import MEASURED, config_of, dataset_folder, model_folder, once, result_of
from vqa_grpo.storage import publish


@dataclass(frozen=True)
class Evaluated:
    evaluation_uri: str
    metrics: dict[str, Any]  # nested, None where something could not be measured


def evaluate_models(config: str, run_id: str, root: str, dataset_uri: str, base: str, model_uri: str) -> Evaluated:
    """Ask base and tuned model the same held-out questions, grade both by the rules that the rewards use.

    The judge is left out: one that changes its mind, or its version, would make two runs incomparable.
    """
    run = config_of(config)

    def build(folder: Path) -> dict[str, Any]:
        return _evaluate(run, folder, dataset_uri, base, model_uri)

    uri = step_uri(root, run_id, "evaluate")
    result = once("evaluate", uri, build)
    return Evaluated(uri, {name: result[name] for name in MEASURED})


def _evaluate(run: RunConfig, folder: Path, dataset_uri: str, base: str, model_uri: str) -> dict[str, Any]:
    import datasets

    from vqa_grpo.evaluation.compare import compare
    from vqa_grpo.evaluation.present import pick_examples
    from vqa_grpo.evaluation.score import blind_level, score

    dataset = dataset_folder(dataset_uri)
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
            "dataset_digest": result_of(dataset_uri)["digest"],
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
        Path(model_folder(model)),
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
