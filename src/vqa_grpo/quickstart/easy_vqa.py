"""The PyPI package `easy-vqa` (MIT) as a data source: 5,000 small pictures of one shape, 48,248 questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import WHOLE, Part, Row, Source, rows_of
from vqa_grpo.quickstart.facts import Facts, gather, kind_of, question_sentence

Split = Literal["train", "test"]

ROWS = {"train": 38_575, "test": 9_673}


def records(split: Split) -> Iterator[Record]:
    """The rows of a split in the package's order, with the PNG bytes as the package ships them.

    Train rows carry reference steps made from the other answers about the same picture. Test rows
    carry none, so nothing that is trained or scored can come from a test answer.
    """
    return (record for _, record in _rows(split, WHOLE))


def _rows(split: Split, part: Part) -> Iterator[tuple[int, Record]]:
    folder = _data() / split
    rows = [tuple(row) for row in json.loads((folder / "questions.json").read_text(encoding="utf-8"))]
    facts: dict[object, Facts] = {}
    if split == "train":
        facts = gather((picture, question, answer) for question, answer, picture in rows)
    last, image = None, b""
    for number, (question, answer, picture) in rows_of(iter(rows), part):
        if picture != last:  # the questions about one picture stand together
            last, image = picture, (folder / "images" / f"{picture}.png").read_bytes()
        record = Record(
            image=image,
            question=question,
            answer=answer,
            reference_steps=(facts[picture].sentence(), question_sentence(question)) if split == "train" else (),
            source=f"easy-vqa/{kind_of(question)}",
            id=f"easy-vqa/{split}/{number:05d}",
        )
        yield number, record


def source() -> Source:
    """The package as a source; a part of a split costs about its own pictures only."""

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        return _rows("train" if split == "train" else "test", part)

    return Source("builtin:easy-vqa", fingerprint(), dict(ROWS), read)


def fingerprint() -> str:
    """A digest of the names and sizes of the package's data files: cheap, and another release changes it."""
    data = _data()
    listing = sorted((str(path.relative_to(data)), path.stat().st_size) for path in data.rglob("*") if path.is_file())
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _data() -> Path:
    spec = find_spec("easy_vqa")  # finds the package without running it
    if spec is None or spec.origin is None:
        raise ConfigurationError("the package easy-vqa is not installed: pip install 'vqa-grpo[quickstart]'")
    return Path(spec.origin).parent / "data"
