"""ANLS, DocVQA's and InfographicVQA's measure, and ANLS*, its extension to lists and records.

Rules: the Robust Reading Competition's evaluation script as lmms-eval carries it (`api/metrics.py`, `anls`), except
that lengths are those of the normalised texts, as in PyPI `anls` and `anls-star`: see README.md. ANLS* is PyPI
`anls-star` (arXiv 2402.03848), asked only when the gold answer is a JSON list or object.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vqa_grpo.scoring.metrics.shape import Scored, metric, shown

THRESHOLD = 0.5
# Edit distance is quadratic: texts of like length are compared in their first 512 characters.
MAX_CHARACTERS = 512
# `anls-star` compares each item with each in plain Python; beyond these it would take seconds.
MAX_STRUCTURE_CHARACTERS = 512
MAX_ITEMS = 32
MAX_DEPTH = 3


def levenshtein(a: str, b: str) -> int:
    """Edit distance, one column of the table held in the bits of one integer (Myers 1999, Hyyrö 2003).

    >>> levenshtein("kitten", "sitting")
    3
    """
    if len(a) < len(b):
        a, b = b, a
    if not b:
        return len(a)
    where: dict[str, int] = {}
    for row, character in enumerate(b):
        where[character] = where.get(character, 0) | 1 << row
    full, last = (1 << len(b)) - 1, 1 << (len(b) - 1)
    # A bit of `up` says that a cell is one more than the cell above it, a bit of `down` that it is one less.
    up, down, distance = full, 0, len(b)
    for character in a:
        same = where.get(character, 0)
        diagonal = (((same & up) + up) ^ up) | same
        right_up = down | (~(diagonal | up) & full)
        right_down = up & diagonal
        if right_up & last:
            distance += 1
        elif right_down & last:
            distance -= 1
        right_up = right_up << 1 | 1
        right_down <<= 1
        either = same | down
        up = (right_down | ~(either | right_up)) & full
        down = right_up & either & full
    return distance


def normalise(text: str) -> str:
    return " ".join(text.lower().split())


def similarity(prediction: str, gold: str) -> float:
    """Normalised Levenshtein similarity of two normalised texts; below one half it is nothing."""
    longest, shortest = max(len(prediction), len(gold)), min(len(prediction), len(gold))
    if longest == 0:
        return 1.0
    # The distance is at least the difference in length, which decides this without looking at the letters.
    if 2 * (longest - shortest) > longest:
        return 0.0
    prediction, gold = prediction[:MAX_CHARACTERS], gold[:MAX_CHARACTERS]
    value = 1 - levenshtein(prediction, gold) / max(len(prediction), len(gold))
    return value if value >= THRESHOLD else 0.0


def best(prediction: str, golds: Sequence[str]) -> Scored:
    answer = normalise(prediction)
    value, closest = max(((similarity(answer, normalise(gold)), gold) for gold in golds), key=lambda pair: pair[0])
    return Scored(value, "similarity", f"{shown(prediction)} is {value:.3g} like {shown(closest)}")


@metric("anls", lambda golds, options: "text")
def anls(prediction: str, golds: list[str], options: list[str]) -> Scored:
    """The best similarity with any gold, and 0 below one half; what is not 0 counts as correct."""
    return best(prediction, golds)


def _structure(text: str) -> Any:
    """The list or object that a text spells out in JSON, or None; and None for one that is too large to compare."""
    if len(text) > MAX_STRUCTURE_CHARACTERS or not text.lstrip().startswith(("[", "{")):
        return None
    try:
        # A whole number may have more digits than Python agrees to read; as text it can have any.
        value = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    return value if _size(value, MAX_DEPTH) <= MAX_ITEMS else None


def _size(value: Any, depth: int) -> int:
    """How many values there are, each empty list counting too; more than is allowed when nested too deeply."""
    if not isinstance(value, list | dict):
        return 1
    if depth == 0:
        return MAX_ITEMS + 1
    items = value.values() if isinstance(value, dict) else value
    return 1 + sum(_size(item, depth - 1) for item in items)


def _star_kind(golds: list[str], options: list[str]) -> str:
    structures = [_structure(gold) for gold in golds]
    if any(isinstance(value, dict) for value in structures):
        return "record"
    return "list" if any(isinstance(value, list) for value in structures) else "text"


@metric("anls_star", _star_kind)
def anls_star(prediction: str, golds: list[str], options: list[str]) -> Scored:
    """ANLS* where a gold is a JSON list or object, and plain ANLS everywhere else, to which it then amounts."""
    read = {gold: _structure(gold) for gold in golds}
    structures = [value for value in read.values() if value is not None]
    texts = [gold for gold, value in read.items() if value is None]
    why = f"{shown(prediction)} is no JSON list or object of a size that can be compared, and the gold is"
    plain = best(prediction, texts) if texts else Scored(0.0, "shape", why)
    answer = _structure(prediction)
    if not structures or answer is None:
        return plain
    try:
        from anls_star import anls_score
    except ImportError:
        return Scored(0.0, "library_missing", "ANLS* of lists and records needs the package anls-star")
    value = float(anls_score(tuple(structures), answer))  # type: ignore[arg-type]
    if value < plain.reward:
        return plain
    return Scored(value, "structure", f"{shown(prediction)} is {value:.3g} like the closest gold, item by item")
