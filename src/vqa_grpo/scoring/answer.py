"""Grade one answer. The kind of question is read off the gold answer and the options, never off the prediction."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from vqa_grpo.contract.verdict import Verdict

_YES_NO = ("yes", "no")
_NUMBER = re.compile(r"[+-]?(\d+(,\d{3})*(\.\d+)?|\.\d+)")


def grade(prediction: str | None, golds: Sequence[str], options: Sequence[str] = ()) -> Verdict:
    """Compare a prediction with one or several gold answers; any match is right, and the reward is 0 or 1.

    `prediction` is None when the completion held no usable answer: always wrong, under its own rule.
    """
    gold_type = type_of(golds[0], options)
    if prediction is None:
        return Verdict(False, 0.0, gold_type, "no_answer", "the completion holds no answer that can be read")
    normalise = {"choice": lambda text: _choice(text, options), "number": _number}.get(gold_type, _plain)
    seen = normalise(prediction)
    expected = [normalise(gold) for gold in golds]
    correct = seen is not None and seen in expected
    rule = f"{gold_type}_exact"
    relation = "equals" if correct else "differs from"
    return Verdict(correct, float(correct), gold_type, rule, f"{seen!r} {relation} {' or '.join(map(repr, expected))}")


def type_of(gold: str, options: Sequence[str] = ()) -> str:
    """ "choice", "yes_no", "number" or "text", decided by the gold answer and the options alone."""
    if options:
        return "choice"
    if _plain(gold) in _YES_NO:
        return "yes_no"
    return "number" if _NUMBER.fullmatch(gold.strip()) else "text"


def _plain(text: str) -> str:
    return " ".join(text.casefold().strip().strip(string.punctuation).split())


def _number(text: str) -> str | None:
    text = text.strip()
    return f"{float(text.replace(',', '')):.12g}" if _NUMBER.fullmatch(text) else None


def _choice(text: str, options: Sequence[str]) -> str | None:
    """The letter an answer names: the letter itself, or the text of exactly one option."""
    plain = _plain(text)
    if len(plain) == 1 and plain in string.ascii_lowercase[: len(options)]:
        return plain
    hits = [letter for letter, option in zip(string.ascii_lowercase, options, strict=False) if _plain(option) == plain]
    return hits[0] if len(hits) == 1 else None
