"""What a model's completion turned out to be. One parser serves every reward and the evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """The named results of parsing; `Completion.reasons` says more in words."""

    VALID = "valid"  # exactly the prompt's contract, nothing else in the completion
    WRAPPED = "wrapped"  # a valid object with other text or a code fence around it
    FIELDS = "fields"  # a JSON object, but keys or types are not the contract's
    TRUNCATED = "truncated"  # the object never ends
    NO_JSON = "no_json"  # no object at all


FORMAT_REWARD = {
    Outcome.VALID: 1.0,
    Outcome.WRAPPED: 0.5,
    Outcome.FIELDS: 0.25,
    Outcome.TRUNCATED: 0.0,
    Outcome.NO_JSON: 0.0,
}
MAX_CHARACTERS = 65_536
KEYS = {"reasoning_steps", "answer"}


@dataclass(frozen=True)
class Completion:
    """A parsed completion; `answer` is None and `steps` is empty unless the object can be used."""

    outcome: Outcome
    answer: str | None = None
    steps: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def format_reward(self) -> float:
        return FORMAT_REWARD[self.outcome]


def parse(text: str) -> Completion:
    """Read a completion. Never raises; the time is linear in the text's length.

    >>> parse('{"reasoning_steps": ["A red circle is shown."], "answer": "red"}').outcome.value
    'valid'
    >>> parse("It looks red.").outcome.value
    'no_json'
    """
    if len(text) > MAX_CHARACTERS:
        return Completion(Outcome.NO_JSON, reasons=(f"longer than {MAX_CHARACTERS} characters",))
    body = text.strip()
    start = body.find("{")
    if start < 0:
        return Completion(Outcome.NO_JSON, reasons=("no JSON object in the completion",))
    try:
        value, end = _DECODER.raw_decode(body, start)
    except (ValueError, RecursionError) as error:
        return Completion(_unreadable(body[start:]), reasons=(f"not readable as JSON: {str(error)[:120]}",))
    wrapped = start > 0 or end < len(body)
    problems = _field_problems(value)
    if problems:
        return Completion(Outcome.FIELDS, reasons=tuple(problems))
    outcome, reasons = (Outcome.WRAPPED, ("text around the JSON object",)) if wrapped else (Outcome.VALID, ())
    return Completion(outcome, value["answer"], tuple(value["reasoning_steps"]), reasons)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_constant)


def _unreadable(text: str) -> Outcome:
    """An object that never closes was cut off; one that closes is just not JSON."""
    return Outcome.NO_JSON if text.rstrip().endswith("}") else Outcome.TRUNCATED


def _field_problems(value: dict[str, Any]) -> list[str]:
    problems = []
    if extra := set(value) - KEYS:
        problems.append(f"keys beyond the contract: {', '.join(sorted(extra))[:120]}")
    steps, answer = value.get("reasoning_steps"), value.get("answer")
    if not isinstance(steps, list) or not steps:
        problems.append("reasoning_steps is not a list with at least one step")
    elif not all(isinstance(step, str) and step.strip() for step in steps):
        problems.append("a reasoning step is empty or no string")
    if not isinstance(answer, str) or not answer.strip():
        problems.append("answer is empty or no string")
    if not problems and not all(_is_text(part) for part in (*value["reasoning_steps"], value["answer"])):
        problems.append("a lone surrogate, which no UTF-8 file can hold")
    return problems


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
