"""What a run report is made of: plain data, so that whoever has the numbers can fill it in."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

Interval = Sequence[float] | None


@dataclass(frozen=True)
class Rates:
    """One model on one group of questions; None where a rate does not exist."""

    accuracy: float | None = None
    accuracy_ci: Interval = None
    format_rate: float | None = None
    accuracy_given_format: float | None = None


@dataclass(frozen=True)
class Group:
    """A group of questions, before and after: one type, or all of them. `blind` needs no picture."""

    name: str
    n: int
    base: Rates
    tuned: Rates
    blind: float | None = None
    gain: float | None = None
    gain_ci: Interval = None
    from_format: float | None = None
    from_answers: float | None = None


@dataclass(frozen=True)
class Example:
    """One question with both completions. `kind` is a word such as "fixed"; `image` is a small PNG."""

    kind: str
    question: str
    gold: str
    base_completion: str
    tuned_completion: str
    base_note: str = ""
    tuned_note: str = ""
    image: bytes | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the picture as base64."""
        return asdict(self) | {"image": base64.b64encode(self.image).decode() if self.image else None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Example:
        return cls(**{**values, "image": base64.b64decode(values["image"]) if values["image"] else None})


@dataclass(frozen=True)
class RunReport:
    """`history` is a trainer's log: one dictionary for each logged step, as TRL writes it.

    `lineage` says what the run was made from, `timings` how many seconds each step took. `notes` are sentences that
    a reader of the numbers should know, shown under the table.
    """

    title: str
    overall: Group
    types: Sequence[Group] = ()
    decision: str = ""
    reasons: Sequence[str] = ()
    history: Sequence[Mapping[str, Any]] = ()
    examples: Sequence[Example] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def headline(report: RunReport) -> str:
    """The run in one sentence.

    >>> rates = Rates(accuracy=0.452), Rates(accuracy=0.861)
    >>> group = Group("all", 2000, *rates, gain=0.409, gain_ci=[0.38, 0.437], from_format=0.33, from_answers=0.079)
    >>> headline(RunReport("a run", group))
    'accuracy 45.2 % → 86.1 %, +40.9 points [38.0, 43.7]; 33.0 of the 40.9 points are format'
    """
    group = report.overall
    text = f"accuracy {percent(group.base.accuracy)} → {percent(group.tuned.accuracy)}"
    if is_number(group.gain):
        text += f", {points(group.gain)} points"
        text += f" {interval(group.gain_ci)}" if is_interval(group.gain_ci) else ""
        text += _split(group)
    return text


def _split(group: Group) -> str:
    if not (is_number(group.gain) and is_number(group.from_format) and is_number(group.from_answers)):
        return ""
    if min(group.from_format, group.from_answers) >= 0 and group.gain > 0:
        return f"; {100 * group.from_format:.1f} of the {100 * group.gain:.1f} points are format"
    return f"; format {points(group.from_format)}, answers {points(group.from_answers)} points"


def is_number(value: Any) -> TypeGuard[float]:
    """A finite number; NaN and None both read as "not there"."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def is_interval(value: Any) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))


def percent(rate: float | None) -> str:
    return f"{100 * rate:.1f} %" if is_number(rate) else "–"


def points(difference: float | None) -> str:
    return f"{100 * difference:+.1f}" if is_number(difference) else "–"


def interval(bounds: Interval) -> str:
    return f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if is_interval(bounds) else "–"


def duration(seconds: float) -> str:
    """
    >>> duration(12.34), duration(754), duration(7300)
    ('12.3 s', '12 min 34 s', '2 h 1 min')
    """
    if not is_number(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
