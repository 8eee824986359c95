"""Look at some rows of a data set on disk: pictures, texts, what is wrong with them, and figures, on one page."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.checks import CODES, Problem, text_problems
from vqa_grpo.data.pictures import Look, look
from vqa_grpo.data.rules import Rules
from vqa_grpo.data.stats import Stats
from vqa_grpo.report.data import DataReport, Sample
from vqa_grpo.report.data_html import render_rows
from vqa_grpo.report.pictures import small_thumbnail
from vqa_grpo.scoring.answer import type_of

if TYPE_CHECKING:
    from datasets import Dataset

SEED = 0
NEEDED = ("image", "question", "answer")
PICTURE_BYTES = 360_000  # of all pictures together: the page has 1 MB, and base64 makes four of three
LARGEST_PICTURE = 12_000


def inspect(folder: Path, out: Path, rows: int = 200, split: str = "") -> None:
    """Write a page about `rows` rows of a save_to_disk folder, the same ones each time, as `out`.

    The rows are spread evenly over the splits, or are of `split` alone. Raises ConfigurationError for a folder that
    is no data set, a split that it lacks or rows < 1, and DataError for one that cannot be read, lacks a column or
    has no rows.
    """
    if rows < 1:
        raise ConfigurationError(f"--rows {rows} shows nothing: give 1 or more")
    splits = _open(folder, split)
    chosen = _choose({name: len(dataset) for name, dataset in splits.items()}, rows)
    allowed = min(LARGEST_PICTURE, PICTURE_BYTES // sum(map(len, chosen.values())))
    stats, samples = Stats(), []
    examples: list[dict[str, Any]] = []
    for name, numbers in chosen.items():
        for record in _records(splits[name], name, numbers, str(folder)):
            seen = look(record.image, Rules())
            problems = [*seen.problems, *text_problems(record, False)]
            stats.add_problems(name, problems)
            stats.add_record(record, seen, type_of(record.answer, record.offered(), record.source))
            samples.append(_sample(record, name, seen, problems, allowed))
            examples += [{"id": record.id, "split": name, **asdict(problem)} for problem in problems]
    report = DataReport(
        source=str(folder),
        rows={name: len(dataset) for name, dataset in splits.items()},
        valid=stats.rows.total() - stats.invalid,
        invalid=stats.invalid,
        invalid_by_code=dict(stats.fatal),
        warnings_by_code=dict(stats.warnings),
        by_source=stats.sources.top(),
        counts={name: counts.top() for name, counts in stats.counts.items()},
        histograms=stats.report_histograms(),
        examples=examples,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render_rows(f"Rows of {folder}", samples, report, CODES), encoding="utf-8")


def _open(folder: Path, split: str) -> dict[str, Dataset]:
    """The splits that are asked for, pictures still encoded. A lone Dataset is the split "train"."""
    import datasets

    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: give one that convert or datasets.save_to_disk wrote")
    try:
        found = datasets.load_from_disk(str(folder))
    except FileNotFoundError:
        raise ConfigurationError(f"{folder} was not made by convert or datasets.save_to_disk") from None
    except IndexError:  # what datasets says of a data set saved without a single row
        raise DataError(f"{folder} holds no rows") from None
    except Exception as error:  # Arrow raises many kinds of error on a damaged file
        raise DataError(f"{folder} cannot be read: {_words(error)}") from error
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
    if split and split not in splits:
        raise ConfigurationError(f"{folder} has no split {split!r}, only {', '.join(splits)}")
    splits = {split: splits[split]} if split else splits
    if not any(map(len, splits.values())):
        raise DataError(f"{folder}{f' ({split})' if split else ''} holds no rows")
    return {name: _encoded(dataset, f"{folder} ({name})") for name, dataset in splits.items()}


def _encoded(dataset: Dataset, name: str) -> Dataset:
    import datasets

    missing = [column for column in NEEDED if column not in dataset.column_names]
    if missing:
        raise DataError(f"{name} lacks the column {', '.join(missing)}; it has {', '.join(dataset.column_names)}")
    try:
        return dataset.cast_column("image", datasets.Image(decode=False))
    except Exception as error:
        raise DataError(f"the column image of {name} holds no pictures: {_words(error)}") from error


def _choose(sizes: Mapping[str, int], rows: int) -> dict[str, list[int]]:
    """Numbers of rows of each split, ascending; what a small split cannot give, the larger ones do.

    >>> {name: len(numbers) for name, numbers in _choose({"train": 1000, "validation": 3, "test": 50}, 30).items()}
    {'train': 14, 'validation': 3, 'test': 13}
    """
    quotas: dict[str, int] = {}
    for left, name in zip(range(len(sizes), 0, -1), sorted(sizes, key=lambda name: sizes[name]), strict=True):
        quotas[name] = min(sizes[name], (rows - sum(quotas.values())) // left)
    return {name: sorted(random.Random(SEED).sample(range(sizes[name]), quotas[name])) for name in sizes}


def _records(dataset: Dataset, split: str, numbers: list[int], name: str) -> Iterator[Record]:
    try:
        for number, row in zip(numbers, dataset.select(numbers), strict=True):
            yield Record(
                image=_bytes(row["image"]),
                question=_text(row["question"]),
                answer=_text(row["answer"]),
                reference_steps=_texts(row.get("reference_steps")),
                choices=_texts(row.get("choices")),
                options=_texts(row.get("options")),
                source=_text(row.get("source")),
                id=_text(row.get("id")) or f"{split}/{number:08d}",
            )
    except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise DataError(f"{name} ({split}) cannot be read: {_words(error)}") from error


def _sample(record: Record, split: str, seen: Look, problems: Sequence[Problem], allowed: int) -> Sample:
    return Sample(
        id=record.id,
        split=split,
        question=record.question,
        answer=record.answer,
        options=list(record.offered()),
        steps=list(record.reference_steps),
        width=seen.width,
        height=seen.height,
        picture=_picture(record.image, seen, allowed),
        problems=[f"{problem.code}: {problem.sentence}" for problem in problems],
    )


def _picture(image: bytes, seen: Look, allowed: int) -> str:
    """Empty where the checks found the picture bad: nobody decodes a bomb for its looks."""
    if any(problem.fatal for problem in seen.problems):
        return ""
    return base64.b64encode(small_thumbnail(image, allowed) or b"").decode()


def _bytes(image: dict[str, Any] | None) -> bytes:
    """The encoded picture; empty when there is none, which the checks then report."""
    if not image:
        return b""
    if image.get("bytes"):
        return image["bytes"]
    try:
        return Path(image["path"]).read_bytes() if image.get("path") else b""
    except OSError:
        return b""


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _texts(value: Any) -> tuple[str, ...]:
    """A list of texts, of which a column of another kind may hold just one."""
    if isinstance(value, list | tuple):
        return tuple(map(_text, value))
    return (_text(value),) if value else ()


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
