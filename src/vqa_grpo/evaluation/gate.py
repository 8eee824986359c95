"""Decide whether a tuned model replaces the one before it. Pure: numbers in, a decision with its reasons out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from vqa_grpo.config import Gate
from vqa_grpo.evaluation.compare import Comparison
from vqa_grpo.evaluation.score import Scores


@dataclass(frozen=True)
class Decision:
    decision: Literal["promote", "hold"]
    reasons: list[str] = field(default_factory=list)


def decide(base: Scores, tuned: Scores, comparison: Comparison, rules: Gate | None = None) -> Decision:
    """Promote when every rule holds. A number that is missing, NaN or infinite holds the model; nothing raises.

    `rules.interval_above_zero` asks for a gain that is more than noise: the whole 95 % interval above zero. A question
    type may fall by `rules.max_type_drop`; a larger fall counts when its whole interval lies below zero.
    Each rule gives one sentence with its numbers. On "hold" the sentences of the broken rules come first.
    """
    rules = rules or Gate()
    checks = [
        _same_questions(base, tuned, comparison),
        _format_rate(tuned, rules),
        _accuracy_gain(base, tuned, comparison, rules),
        *([_interval(comparison)] if rules.interval_above_zero else []),
        _types(comparison, rules),
    ]
    held = [sentence for passed, sentence in checks if not passed]
    passed = [sentence for passed, sentence in checks if passed]
    return Decision("hold" if held else "promote", held + passed)


_Check = tuple[bool, str]


def _same_questions(base: Scores, tuned: Scores, comparison: Comparison) -> _Check:
    counts = [_number(_read(part, "n")) for part in (base, tuned, comparison)]
    if None in counts or counts[0] == 0:
        return False, "No questions were evaluated, or their number is missing."
    if len(set(counts)) > 1:
        shown = ", ".join(f"{count:g}" for count in counts if count is not None)
        return False, f"The scores and their comparison are about different numbers of questions ({shown})."
    return True, f"Both models answered the same {counts[0]:g} questions."


def _format_rate(tuned: Scores, rules: Gate) -> _Check:
    rate, least = _number(_read(tuned, "format_rate")), _number(rules.min_format_rate)
    if rate is None or least is None:
        return False, "The tuned model's format rate, or the least that is asked for, is missing or not a number."
    if rate < least:
        return False, f"The format rate of {_percent(rate)} is below the {_percent(least)} asked for."
    return True, f"The format rate of {_percent(rate)} reaches the {_percent(least)} asked for."


def _accuracy_gain(base: Scores, tuned: Scores, comparison: Comparison, rules: Gate) -> _Check:
    before, after = _number(_read(base, "accuracy")), _number(_read(tuned, "accuracy"))
    gain, least = _number(_read(comparison, "gain")), _number(rules.min_accuracy_gain)
    if before is None or after is None or gain is None or least is None:
        return False, "An accuracy, their difference, or the gain that is asked for is missing or not a number."
    if abs(after - before - gain) > 1e-6:
        return False, f"The accuracies ({before:.4f}, {after:.4f}) and their paired difference ({gain:.4f}) disagree."
    moved = f"Accuracy went from {_percent(before)} to {_percent(after)}, {_points(gain)}"
    if gain < least:
        return False, f"{moved}: less than the {100 * least:.1f} points asked for."
    return True, f"{moved}: at least the {100 * least:.1f} points asked for."


def _interval(comparison: Comparison) -> _Check:
    bounds = _bounds(_read(comparison, "gain_ci"))
    if bounds is None:
        return False, "The 95 % interval of the gain is missing or not a pair of numbers."
    if bounds[0] <= 0:
        return False, f"The 95 % interval of the gain, {_points(*bounds)}, is not wholly above zero."
    return True, f"The 95 % interval of the gain, {_points(*bounds)}, is wholly above zero."


def _types(comparison: Comparison, rules: Gate) -> _Check:
    by_type, most = _read(comparison, "by_type"), _number(rules.max_type_drop)
    if not isinstance(by_type, Mapping) or not by_type or most is None:
        return False, "The gains of the question types, or the largest drop allowed, are missing or not numbers."
    fallen = []
    for name, scores in by_type.items():
        gain, bounds = _number(_read(scores, "gain")), _bounds(_read(scores, "gain_ci"))
        if gain is None or bounds is None:
            return False, f"The gain of question type {name!r} or its interval is missing or not a number."
        # 1e-9: a fall of just the size allowed must not fail by a rounding error.
        if gain < -most - 1e-9 and bounds[1] < 0:
            fallen.append(f"{name!r} by {_points(gain)} {_points(*bounds)}")
    if fallen:
        return (
            False,
            f"Question types fell by more than the {100 * most:.1f} points allowed, beyond noise: {'; '.join(fallen)}.",
        )
    return True, f"No question type fell by more than the {100 * most:.1f} points allowed, beyond noise."


def _read(part: Any, name: str) -> Any:
    return getattr(part, name, None)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError, TypeError):
        return None
    return number if math.isfinite(number) else None


def _bounds(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = _number(value[0]), _number(value[1])
    return None if low is None or high is None or low > high else (low, high)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _points(*values: float) -> str:
    """ "+3.2 points" for one value, "[1.0, 5.4]" in points for an interval."""
    if len(values) == 1:
        return f"{100 * values[0]:+.1f} points"
    return f"[{', '.join(f'{100 * value:.1f}' for value in values)}] points"
