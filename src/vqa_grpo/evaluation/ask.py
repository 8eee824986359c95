"""Which held-out questions a run's models are asked, and the asking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqa_grpo.config import RunConfig
from vqa_grpo.contract import prompt as prompts
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.models.source import check_source, local_model
from vqa_grpo.report.progress import counting, transferring

FILE = "predictions.parquet"  # in a published folder of predictions


def predict_to(
    run: RunConfig, model: str, dataset: Path, out: Path, task: str = "evaluate", share: tuple[int, int] = (0, 1)
) -> None:
    """Ask one model the configuration's held-out questions and write its predictions as Parquet.

    `model` is a folder, s3://… or a hub name. `share` is (i, n): only every n-th question from the i-th on, for one
    of n processes.
    """
    from vqa_grpo.evaluation.predict import predict, write_predictions

    index, count = share
    rows = held_out(run, dataset).shard(count, index, contiguous=False)
    with transferring("download") as progress:
        folder = Path(local_model(model, progress=progress))
    check_source(str(folder), "model")
    with counting(task) as progress:
        predictions = predict(
            folder,
            rows,
            prompts.load(run.model.prompt),
            batch_size=run.evaluate.batch_size,
            max_new_tokens=run.evaluate.max_new_tokens,
            min_pixels=run.model.min_pixels,
            max_pixels=run.model.max_pixels,
            metrics=run.evaluate.metrics,
            step_encoder=run.rewards.step_encoder,
            **({} if index else {"progress": progress}),
        )
        write_predictions(out, predictions)


def held_out(run: RunConfig, dataset: Path) -> Any:
    """The questions of the evaluation: the same for every model and every run with the same settings."""
    import datasets

    from vqa_grpo.evaluation.predict import sample_rows

    folder = dataset / run.evaluate.split
    if not (folder / "dataset_info.json").is_file():
        raise ConfigurationError(f"{dataset} is not a converted data set: make one with `vqa-grpo convert SRC OUT`")
    split = datasets.load_from_disk(str(folder))
    return sample_rows(split, run.evaluate.sample, run.evaluate.sample_seed)
