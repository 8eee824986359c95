"""The weights with the best held-out score: kept beside the run, in each of its checkpoints, and published.

    OUTPUT_DIR/best/                  the best so far, with best.json; LoRA's adapter lies in best/adapter/
    OUTPUT_DIR/checkpoint-10/best/    the best as of step 10: hard links, so it takes no space on this disk

A run that goes on from a checkpoint has the best of then back, on whatever machine, and finds any later one again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.training import policy
from vqa_grpo.training.checkpoints import PICKLED_ARGUMENTS, gather
from vqa_grpo.training.output import link

FOLDER = "best"
UNFINISHED = ".best"
RECORD = "best.json"


@dataclass(frozen=True)
class Best:
    """`score`: the share of the validation sample that was answered right after `step`."""

    step: int
    score: float

    def beaten_by(self, score: float) -> bool:
        """Among equals the later step wins: a sample that cannot tell them apart is no reason to drop training."""
        return score >= self.score


def keep(trainer: Any, output_dir: Path, best: Best, adapted: bool) -> str:
    """Write the weights in place of the best before; every rank calls this. Returns what went wrong, or nothing.

    The folder gets its name last, and its files are new ones: the old ones may be linked from checkpoints.
    """
    part, final = output_dir / UNFINISHED, output_dir / FOLDER
    problem = ""
    if trainer.layout.leads:
        shutil.rmtree(part, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    try:
        policy.save_weights(trainer, part, adapted)
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if problems := [other for other in gather(problem) if other]:
        return str(problems[0])
    if trainer.layout.leads:
        try:
            for pickled in part.rglob(PICKLED_ARGUMENTS):
                pickled.unlink()
            (part / RECORD).write_text(json.dumps(asdict(best)), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
        except OSError as error:
            problem = str(error)
    return next((other for other in gather(problem) if other), "")


def attach(output_dir: Path, checkpoint: Path) -> None:
    """Put the best so far into a checkpoint."""
    if (output_dir / FOLDER).is_dir():
        shutil.copytree(output_dir / FOLDER, checkpoint / FOLDER, copy_function=link)


def restore(checkpoint: Path | None, output_dir: Path) -> None:
    """Make the best of a checkpoint, or none, that of the run that starts from it."""
    for name in (FOLDER, UNFINISHED):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    if checkpoint is not None and (checkpoint / FOLDER / RECORD).is_file():
        shutil.copytree(checkpoint / FOLDER, output_dir / FOLDER, copy_function=link)


def read(output_dir: Path) -> Best | None:
    try:
        return Best(**json.loads((output_dir / FOLDER / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
