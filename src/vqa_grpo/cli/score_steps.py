"""The verb score-steps: one completion's steps, or a file of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import islice
from typing import Any, get_args

from vqa_grpo.cli.grading import Row, read_rows
from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.scoring.steps import Mode, StepScore, check, match_many
from vqa_grpo.scoring.steps.match import Item

ROWS_PER_ROUND = 256
NAMES = tuple(field.name for field in fields(StepScore))


def score_one(
    steps: list[str], references: list[str], question: str, mode: str, encoder: str, order: bool
) -> tuple[dict[str, Any], str]:
    """The figures as a dictionary, and as a line for people."""
    if not references:
        raise ConfigurationError("score-steps: give at least one --reference, or --file")
    _check(mode, encoder)
    (score,) = match_many([(steps, references, question)], mode=_mode(mode), encoder=encoder or None, order=order)
    if score is None:
        raise ConfigurationError("score-steps: every --reference is empty")
    text = (
        f"precision {score.precision:.3f}, recall {score.recall:.3f}, F1 {score.f1:.3f} "
        f"({score.length_controlled:+.3f} against its value at full precision): "
        f"{score.matched} of {score.steps} steps match, of {score.references} references; "
        f"{score.duplicates} duplicates, {score.echoes} echoes, {score.conflicts} in conflict"
    )
    return _figures(score), text if score.order is None else f"{text}; order {score.order:.3f}"


def score_file(file: str, mode: str, encoder: str, order: bool) -> Iterator[Row]:
    """The figures of each row of a JSONL file, or of stdin for "-", with its `id` if it has one; null for a row without
    references. Raises as `read_rows` does, and DataError for a row that holds something else than texts."""
    _check(mode, encoder)
    rows = ((row, _item(row, where)) for where, row in read_rows(file))
    while chunk := list(islice(rows, ROWS_PER_ROUND)):
        scores = match_many([item for _, item in chunk], mode=_mode(mode), encoder=encoder or None, order=order)
        for (row, _), score in zip(chunk, scores, strict=True):
            named = {"id": row["id"]} if "id" in row else {}
            yield named | (dict.fromkeys(NAMES) if score is None else _figures(score))


def _figures(score: StepScore) -> dict[str, Any]:
    return asdict(score) | ({} if score.order is None else {"ordered_f1": score.ordered_f1})


def _check(mode: str, encoder: str) -> None:
    """Also where no text needs the encoder, so that a wrong name is not found out by the first one that does."""
    if encoder and _mode(mode) == "lexical":
        raise ConfigurationError("--mode lexical compares words: leave --encoder out")
    check(_mode(mode), encoder or None)


def _mode(name: str) -> Mode:
    for mode in get_args(Mode):
        if mode == name:
            return mode
    raise ConfigurationError(f"--mode {name}: use one of {', '.join(get_args(Mode))}")


def _item(row: Row, where: str) -> Item:
    question = row.get("question") or ""
    if not isinstance(question, str):
        raise DataError(f"{where}: question must be a string")
    if not isinstance(row.get("id"), str | int | None):  # NaN, say, could not be printed as JSON
        raise DataError(f"{where}: id must be a string or a whole number")
    return _texts(row, "steps", where), _texts(row, "references", where), question


def _texts(row: Row, key: str, where: str) -> list[str]:
    texts = row.get(key) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: {key} must be a list of strings")
    return texts
