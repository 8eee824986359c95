"""A row of somebody's columns becomes a Record, or a sentence that says why it cannot."""

from __future__ import annotations

import difflib
import math
import string
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.record import COLUMNS, Record
from vqa_grpo.data.source import Row, Unreadable
from vqa_grpo.data.sources.places import BadPicture

REQUIRED = ("image", "question", "answer")
LISTS = ("reference_steps", "choices", "options")
CONVERSATIONS = "conversations"  # VLM-R1's and LLaVA's form: a human turn and the answer to it
_HUMAN, _ANSWERING = ("human", "user"), ("gpt", "assistant")


class WrongCell(ValueError):
    """A cell that holds what it cannot mean, in a sentence about it."""


@dataclass(frozen=True)
class Columns:
    """What the data set calls our columns, where it has other names: ours → theirs."""

    given: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for ours in self.given:
            if ours not in COLUMNS:
                near = difflib.get_close_matches(ours, COLUMNS, 1, 0.5)
                hint = f", did you mean {near[0]}?" if near else f"; they are {', '.join(COLUMNS)}"
                raise ConfigurationError(f"data.columns.{ours} is no column of ours{hint}")

    def theirs(self, ours: str) -> str:
        return self.given.get(ours, ours)

    def used(self) -> set[str]:
        """Every column of theirs that may count."""
        return {self.theirs(ours) for ours in COLUMNS} | {CONVERSATIONS}

    def require(self, there: Collection[str], where: str, needed: Iterable[str] = REQUIRED) -> None:
        """Raise DataError where a needed column is missing; a conversation stands for question and answer."""
        told = ("question", "answer") if CONVERSATIONS in there else ()
        missing = [ours for ours in dict.fromkeys(needed) if self.theirs(ours) not in there and ours not in told]
        if missing:
            has = " ".join(", ".join(str(name)[:40] for name in list(there)[:30]).split())
            raise DataError(
                f"{where} lacks the column {', '.join(map(self.theirs, missing))}; it has {has or 'none'}: "
                f"say what it is called with --set data.columns.{missing[0]}=…, or add it"
            )


def record_of(row: Mapping[str, Any], columns: Columns, place: str, picture: Callable[[str], bytes]) -> Row:
    """The record of a row. `place` is its id where it has none of its own; `picture` opens a file that it names.

    Numbers count as the text that Python prints for them; a list of options may also be given as Hugging Face's
    multiple-choice sets do, {"text": [...], "label": [...]}.
    """
    name = place
    try:
        name = _text(row, columns, "id") or place
        question, answer = _asked(row, columns)
        choices, answer = _offered(row, columns, "choices", answer)
        options, answer = _offered(row, columns, "options", answer)
        return Record(
            image=_picture(row.get(columns.theirs("image")), picture),
            question=question,
            answer=answer,
            reference_steps=_texts(row.get(columns.theirs("reference_steps")), columns.theirs("reference_steps")),
            choices=choices,
            options=options,
            source=_text(row, columns, "source"),
            id=name,
        )
    except (WrongCell, BadPicture) as error:
        return Unreadable(name, str(error))


def place_id(split: str, number: int) -> str:
    return f"{split}/{number:08d}"


def kind_of(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "bytes" if isinstance(value, bytes) else type(value).__name__)


def _wrong(column: str, value: Any, expected: str) -> WrongCell:
    return WrongCell(f"the column {column} holds {kind_of(value)}, not {expected}")


def _text(row: Mapping[str, Any], columns: Columns, ours: str) -> str:
    value = row.get(columns.theirs(ours))
    return "" if value is None else _as_text(value, columns.theirs(ours))


def _as_text(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "" if math.isnan(value) else str(value)  # pandas writes nan where there is nothing
    raise _wrong(column, value, "text")


def _texts(value: Any, column: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise _wrong(column, value, "a list of text")
    return tuple(_as_text(item, f"{column}, in its list,") for item in value)


def _offered(row: Mapping[str, Any], columns: Columns, ours: str, answer: str) -> tuple[tuple[str, ...], str]:
    """The options, and the answer with a label other than A, B, C … replaced by what it stands for."""
    value, column = row.get(columns.theirs(ours)), columns.theirs(ours)
    if not isinstance(value, dict):
        return _texts(value, column), answer
    if "text" not in value:
        raise WrongCell(f'the column {column} holds an object without "text": give a list, or {{"text": [...]}}')
    texts, labels = _texts(value["text"], column), _texts(value.get("label"), column)
    if labels and len(labels) != len(texts):
        raise WrongCell(f"the column {column} has {len(labels)} labels for {len(texts)} options")
    if answer in labels and labels != tuple(string.ascii_uppercase[: len(labels)]):
        answer = texts[labels.index(answer)]
    return texts, answer


def _asked(row: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    question, answer = columns.theirs("question"), columns.theirs("answer")
    turns = row.get(CONVERSATIONS)
    if turns is None or question in row:
        return _text(row, columns, "question"), _text(row, columns, "answer")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _wrong(CONVERSATIONS, turns, "a list of turns")
    asked = [turn.get("value") for turn in turns if turn.get("from") in _HUMAN]
    answered = [turn.get("value") for turn in turns if turn.get("from") in _ANSWERING]
    if len(asked) != 1 or len(answered) != 1:
        raise WrongCell(
            f"the conversation has {len(asked)} human turns and {len(answered)} answers: give one row for each question"
        )
    text = "" if answered[0] is None else _as_text(answered[0], CONVERSATIONS)
    # VLM-R1 takes these tags off its answers too.
    text = text.replace("<answer>", "").replace("</answer>", "").strip()
    said = "" if asked[0] is None else _as_text(asked[0], CONVERSATIONS)
    return said.replace("<image>", "").strip(), text if answer not in row else _text(row, columns, "answer")


def _picture(value: Any, load: Callable[[str], bytes]) -> bytes:
    """The encoded picture; empty when the row has none, which the checks then report."""
    if isinstance(value, (list, tuple)):
        if len(value) > 1:
            raise WrongCell(f"the row has {len(value)} pictures: a question is about one")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return load(value)
    raise WrongCell(f"the picture is {kind_of(value)}: give the file's name or its bytes")
