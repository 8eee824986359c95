"""What is to be known of the held-out questions beside the answers to them; made where the data set is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.evaluation.present import pick_examples
from vqa_grpo.evaluation.score import blind_level

if TYPE_CHECKING:
    import datasets

FOLDER = "questions"  # beside the published folders of predictions
FILE = "questions.json"


def write_questions(folder: Path, dataset: Path, rows: datasets.Dataset, before: Path, after: Path) -> None:
    """Write the questions' blind level, and examples with what two files of predictions say.

    `rows` are the questions asked, of the converted data set in the folder `dataset`. Nobody who reads the file needs
    the data set, which may be too large for the machine that compares the models.
    """
    import datasets

    train = datasets.load_from_disk(str(dataset / "train"))
    facts: dict[str, Any] = {
        "blind": asdict(blind_level(train, rows)),
        "examples": [example.as_dict() for example in pick_examples(before, after, rows)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(facts, allow_nan=False), encoding="utf-8")


def read_questions(folder: Path) -> dict[str, Any]:
    """`blind` and `examples`, as JSON has them."""
    facts: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return facts
