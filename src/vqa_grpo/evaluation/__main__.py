"""Ask models a run's held-out questions: `python -m vqa_grpo.evaluation --config JSON --dataset_uri … --models …`.

One process for each device, under torchrun where there are several: each asks its share of the questions. Every
model's predictions are published once, as PUBLISH_URI/NAME, and what else is to be known of the questions as
PUBLISH_URI/questions, so that a job that is run again does what is missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vqa_grpo import config as configuration
from vqa_grpo.config import RunConfig
from vqa_grpo.contract import vitals
from vqa_grpo.contract.failure import ConfigurationError, StepError
from vqa_grpo.evaluation import ask, questions
from vqa_grpo.models.source import local_model
from vqa_grpo.report.progress import transferring
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import explain_os_error, is_remote

_LONGEST_WAIT = datetime.timedelta(days=2)  # of the first process to end for the last
T = TypeVar("T")


class _Ranks:
    """The processes that share the work; one by itself needs no torch.distributed."""

    def __init__(self) -> None:
        self.index, self.count = vitals.rank(), int(os.environ.get("WORLD_SIZE") or 1)
        self.leads = self.index == 0
        if self.count > 1:
            import torch

            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            torch.distributed.init_process_group("gloo", timeout=_LONGEST_WAIT)

    def agreed(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, for all of them; they wait for it."""
        if self.count == 1:
            return make()
        import torch

        values: list[Any] = [make() if self.leads else None]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def meet(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            import torch

            torch.distributed.barrier()


def evaluate(run: RunConfig, dataset_uri: str, models: dict[str, str], publish_uri: str) -> None:
    ranks = _Ranks()
    dataset = ranks.agreed(lambda: _fetched(dataset_uri, publish.cache_folder()))
    rows = ask.held_out(run, dataset)
    for name, model in models.items():
        uri = f"{publish_uri}/{name}"
        if not ranks.agreed(partial(publish.is_published, uri)):
            _predict(ranks, run, model, dataset, name, uri)
    if ranks.leads:
        _publish_questions(dataset, rows, list(models), publish_uri)


def _predict(ranks: _Ranks, run: RunConfig, model: str, dataset: Path, name: str, uri: str) -> None:
    with ExitStack() as stack:
        folder = ranks.agreed(lambda: stack.enter_context(publish.scratch(publish.work_folder())))
        source = ranks.agreed(lambda: _model_folder(model, uri, folder))
        part = folder / f"part-{ranks.index}.parquet"
        ask.predict_to(run, source, dataset, part, f"evaluate {name}", (ranks.index, ranks.count))
        ranks.meet()
        if ranks.leads:
            parts = [folder / f"part-{index}.parquet" for index in range(ranks.count)]
            publish.publish_folder(uri, _joined(parts, folder / "whole"), {"kind": "predictions"})
        ranks.meet()


def _model_folder(model: str, uri: str, scratch: Path) -> str:
    """A local folder of the model whose predictions go to `uri`.

    The model that this run made, which lies in the run's folder as its predictions do, is asked here once: it stays
    out of the cache that all runs share, where one for every run would pile up.
    """
    run_folder = uri.rpartition("/")[0].rpartition("/")[0]
    if is_remote(model) and model.rpartition("/")[0] == run_folder:
        return str(_fetched(model, scratch))
    with transferring("download") as progress:
        return local_model(model, progress=progress)


def _fetched(uri: str, cache: Path) -> Path:
    with transferring("download") as progress:
        return publish.fetch(uri, cache, progress)


def _publish_questions(dataset: Path, rows: Any, names: Sequence[str], publish_uri: str) -> None:
    """The examples show what the first model says, and the last."""
    uri = f"{publish_uri}/{questions.FOLDER}"
    if publish.is_published(uri):
        return
    with publish.scratch(publish.work_folder()) as own:
        before, after = (publish.fetch(f"{publish_uri}/{name}", own) / ask.FILE for name in (names[0], names[-1]))
        questions.write_questions(own / questions.FOLDER, dataset, rows, before, after)
        publish.publish_folder(uri, own / questions.FOLDER, {"kind": "questions"})


def _joined(parts: Sequence[Path], folder: Path) -> Path:
    """A folder with one file in the place of the processes' own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    pq.write_table(pa.concat_tables(pq.read_table(part) for part in parts), folder / ask.FILE)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code; what a person can mend is one line on stderr."""
    options = _parser().parse_args(argv)
    try:
        models = dict(pair.split("=", 1) for pair in options.models if "=" in pair)
        if len(models) < len(options.models):
            raise ConfigurationError(f"--models {' '.join(options.models)}: give each as NAME=MODEL, and no name twice")
        run = configuration.from_tree(json.loads(options.config), "of the run")
        evaluate(run, options.dataset_uri, models, options.publish_uri)
    except (StepError, OSError) as raised:
        error = explain_os_error(raised) if isinstance(raised, OSError) else raised
        vitals.fail(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.reason.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vqa_grpo.evaluation", description="Ask models held-out questions.")
    parser.add_argument("--config", required=True, help="the run's configuration as JSON")
    parser.add_argument("--dataset_uri", required=True, help="the converted data set")
    parser.add_argument("--models", required=True, nargs="+", help="NAME=MODEL: a folder, s3://… or a hub name")
    parser.add_argument("--publish_uri", required=True, help="gets NAME/ for each model")
    return parser


if __name__ == "__main__":
    sys.exit(main())
