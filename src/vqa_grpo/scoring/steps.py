"""Match F1: how far a model's reasoning steps agree with the reference steps.

A first, lexical version: two steps match when they share most of their words. Each reference step is
matched at most once, and a repeated step earns nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

THRESHOLD = 0.6
MAX_STEPS = 32
MAX_STEP_CHARACTERS = 512
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class StepScore:
    precision: float
    recall: float
    f1: float


def match_f1(steps: Sequence[str], references: Sequence[str]) -> StepScore | None:
    """Precision, recall and F1 of the matched steps; None without references, since there is nothing to match.

    >>> match_f1(["The image shows a red circle."], ["The image shows a red circle.", "It is round."]).f1
    0.6666666666666666
    """
    if not references:
        return None
    wanted = [_words(step) for step in references[:MAX_STEPS]]
    given = [_words(step) for step in steps[:MAX_STEPS]]
    pairs = sorted(
        ((-_overlap(words, target), i, j) for i, words in enumerate(given) for j, target in enumerate(wanted)),
    )
    used_given: set[int] = set()
    used_wanted: set[int] = set()
    for negative, i, j in pairs:
        if -negative >= THRESHOLD and i not in used_given and j not in used_wanted:
            used_given.add(i)
            used_wanted.add(j)
    matched = len(used_given)
    precision = matched / len(steps) if steps else 0.0
    recall = matched / len(references)
    return StepScore(precision, recall, 2 * matched / (len(steps) + len(references)))


def _words(step: str) -> frozenset[str]:
    return frozenset(_WORD.findall(step[:MAX_STEP_CHARACTERS].casefold()))


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0
