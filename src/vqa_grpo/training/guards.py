"""What can go wrong with a run while its reward rises: pure functions over the history of its metrics.

Each guard looks at the log's rows and gives nothing, a warning or a reason to stop. None of them ever raises, whatever
the rows hold. A run is held against its own beginning, because what is normal differs from model to model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

History = Sequence[Mapping[str, Any]]

VALIDATIONS = 2  # so many validations in a row tell as much as `patience` logged rounds of sampled completions
CLIPPED = 0.99
LESS = "lower --learning_rate, or train in bf16 in the place of fp16"
STEPS = ("reasoning/steps", "eval_steps")
LENGTHS = ("completions/mean_length", "eval_mean_length")
ENDLESS = ("completions/clipped_ratio", "eval_clipped_ratio")
FORMATS = ("format/outcome/valid", "eval_format_rate")
ACCURACIES = ("rewards/accuracy/mean", "eval_accuracy")


@dataclass(frozen=True)
class Limits:
    """`patience`: logged rounds in a row; the falls and the factor are shares of what the run began with.

    `scaled`: training is in fp16, whose scale is found by gradients that overflow; such steps are left out.
    """

    patience: int = 25
    fall: float = 0.2
    entropy_fall: float = 0.05
    steps_factor: float = 2.0
    scaled: bool = False


@dataclass(frozen=True)
class Finding:
    """What a guard says. `usable`: whether the weights are worth a checkpoint."""

    guard: str
    stop: bool
    sentence: str
    usable: bool = True


def examine(history: History, limits: Limits) -> list[Finding]:
    """What there is to say of a run so far, reasons to stop first."""
    guards = (not_finite, no_spread, format_collapse, too_short, all_clipped, step_count, entropy_collapse)
    found = [finding for guard in guards if (finding := guard(history, limits))]
    return sorted(found, key=lambda finding: not finding.stop)


def not_finite(history: History, limits: Limits) -> Finding | None:
    """Loss, reward or gradient is NaN or infinite in the newest row; in fp16 the gradient for long."""
    newest: Mapping[str, Any] = next((row for row in reversed(history) if "loss" in row), {})
    rewards = "look at --reward_weights and at what the reward functions return"
    for name, cure in (("reward", rewards), ("reward_std", rewards), ("loss", LESS), ("grad_norm", LESS)):
        rounds = limits.patience if name == "grad_norm" and limits.scaled else 1
        values = [row[name] for row in history if name in row]
        if name in newest and _lasts(values, rounds, _broken):
            return Finding("not_finite", True, f"{name} is {newest[name]}: {cure}", usable=False)
    return None


def no_spread(history: History, limits: Limits) -> Finding | None:
    """All completions of every question get the same reward, so that nothing can be learned."""
    spread = _numbers(history, "frac_reward_zero_std")
    if not _lasts(spread, limits.patience, lambda share: share >= 1):
        return None
    if min(spread) >= 1:
        sentence = (
            f"in all {len(spread)} rounds every completion of a question got the same reward, so that nothing can be "
            "learned: the model never does what the rewards ask, or always; try a higher --temperature, more "
            "--num_generations, or a base that follows the prompt now and then"
        )
        return Finding("no_spread", True, sentence)
    sentence = (
        f"for {limits.patience} rounds every completion of a question got the same reward: nothing more is learned"
    )
    return Finding("no_spread", False, sentence)


def format_collapse(history: History, limits: Limits) -> Finding | None:
    """Completions had the prompt's form and have lost it."""
    for key, window in zip(FORMATS, _windows(limits), strict=True):
        rates = _numbers(history, key)
        if not 0 < window < len(rates):
            continue
        best = max(rates[:-window])
        if best >= 0.5 and _lasts(rates, window, lambda rate, best=best: rate < limits.fall * best):
            sentence = (
                f"the share of completions in the prompt's form fell from {best:.0%} to {rates[-1]:.0%}: "
                "lower --learning_rate, or give the reward format more weight"
            )
            return Finding("format_collapse", True, sentence)
    return None


def too_short(history: History, limits: Limits) -> Finding | None:
    """Completions shrank to nearly nothing, and their answers are no better for it."""
    for key, accuracy, window in zip(LENGTHS, ACCURACIES, _windows(limits), strict=True):
        lengths = _numbers(history, key)
        start = _start(lengths, window)
        if start is None or _risen(history, accuracy, window):
            continue
        if _lasts(lengths, window, lambda length, start=start: length < limits.fall * start):
            sentence = (
                f"completions shrank from {start:.0f} tokens to {lengths[-1]:.0f} and are no more often right: "
                "lower --learning_rate, or look at what the rewards pay for"
            )
            return Finding("too_short", True, sentence)
    return None


def all_clipped(history: History, limits: Limits) -> Finding | None:
    """No completion ends by itself any more; a warning where none ever did."""
    for key, window in zip(ENDLESS, _windows(limits), strict=True):
        shares = _numbers(history, key)
        if not _lasts(shares, window, lambda share: share >= CLIPPED):
            continue
        start = _start(shares, window)
        if start is not None and start < 0.5:
            sentence = (
                f"completions that are cut off at the limit rose from {start:.0%} to {shares[-1]:.0%}: "
                "lower --learning_rate, or look at whether a reward pays for length"
            )
            return Finding("all_clipped", True, sentence)
        sentence = "all completions are cut off at the limit: raise --max_completion_length"
        return Finding("all_clipped", False, sentence)
    return None


def step_count(history: History, limits: Limits) -> Finding | None:
    """Completions write many more or many fewer reasoning steps than at first, and are no more often right."""
    for key, accuracy, window in zip(STEPS, ACCURACIES, _windows(limits), strict=True):
        counts = _numbers(history, key)
        start = _start(counts, window)
        if start is None or start < 0.5 or limits.steps_factor <= 1 or _risen(history, accuracy, window):
            continue
        low, high = start / limits.steps_factor, start * limits.steps_factor
        for word, far in (
            ("rose", lambda count, high=high: count > high),
            ("fell", lambda count, low=low: count < low),
        ):
            if _lasts(counts, window, far):
                sentence = (
                    f"reasoning steps {word} from {start:.1f} a completion to {counts[-1]:.1f} while no more answers "
                    "are right: the reward reasoning may be gamed; look at completions, or combine rewards as gated"
                )
                return Finding("step_count", False, sentence)
    return None


def entropy_collapse(history: History, limits: Limits) -> Finding | None:
    """Sampling gives the same tokens every time, so that hardly anything new is tried."""
    entropies = _numbers(history, "entropy")
    start = _start(entropies, limits.patience)
    if start is None or not _lasts(entropies, limits.patience, lambda value: value < limits.entropy_fall * start):
        return None
    sentence = (
        f"the entropy of the completions fell from {start:.3g} to {entropies[-1]:.3g}: hardly anything new is tried; "
        "lower --learning_rate, or raise --temperature or --beta"
    )
    return Finding("entropy_collapse", False, sentence)


def _windows(limits: Limits) -> tuple[int, int]:
    """How many values in a row count, of a training figure and of a validation figure."""
    return limits.patience, VALIDATIONS


def _numbers(history: History, key: str) -> list[float]:
    """The finite numbers that were logged under a name; whatever else is there is passed over."""
    values = (row.get(key) for row in history)
    return [
        float(value)
        for value in values
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    ]


def _broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _lasts(values: Sequence[Any], window: int, test: Any) -> bool:
    """Whether each of the last `window` values passes the test."""
    return 0 < window <= len(values) and all(map(test, values[-window:]))


def _start(values: Sequence[float], window: int) -> float | None:
    """The mean of the first `window` values; None until there are as many newer ones."""
    return fmean(values[:window]) if window > 0 and len(values) >= 2 * window else None


def _risen(history: History, accuracy: str, window: int) -> bool:
    """Whether more answers are right than at first; by the whole reward where accuracy is not logged."""
    values = _numbers(history, accuracy) or _numbers(history, "reward")
    start = _start(values, window)
    return start is not None and fmean(values[-window:]) > start
