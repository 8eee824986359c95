"""What the report counts, in a form that can be added up: the parts of a scan give what one scan would.

Memory does not grow with the rows: histograms have fixed edges, and counters know so many different values.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vqa_grpo.contract.record import Record
from vqa_grpo.data.checks import Problem, storable
from vqa_grpo.data.pictures import Look
from vqa_grpo.report.data import Histogram

OTHER = "(other)"
MAX_VALUES = 20_000
MAX_VALUE_LENGTH = 80
TOP = 30
_SIDES: list[float] = [0, 28, 64, 128, 224, 336, 448, 640, 800, 1024, 1280, 1600, 2048, 3072, 4096, 8192]
_FEW: list[float] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30]
_WORDS: list[float] = [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100, 200]
EDGES: dict[str, list[float]] = {
    "image_width": _SIDES,
    "image_height": _SIDES,
    "visual_tokens": [0, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 2048, 4096, 8192, 16384],
    "question_words": _WORDS,
    "answer_words": _FEW,
    "steps": _FEW,
    "step_words": [0, 3, 5, 7, 9, 11, 13, 15, 17, 20, 25, 30, 50],
}
COUNTED = ("answer_type", "image_format", "image_mode", "answers", "options")


class Counts:
    """How often each value came. Beyond `MAX_VALUES` different ones, new ones count as other."""

    def __init__(self, known: Mapping[str, int] | None = None, other: int = 0) -> None:
        self.known, self.other = Counter(known or {}), other

    def add(self, value: str, times: int = 1) -> None:
        if value in self.known or len(self.known) < MAX_VALUES:
            self.known[value] += times
        else:
            self.other += times

    def merge(self, more: Counts) -> None:
        self.known.update(more.known)
        self.other += more.other

    def top(self, count: int = TOP) -> dict[str, int]:
        """The commonest values, and the others together; equally common ones by name, whatever came first."""
        ranked = sorted(self.known.items(), key=lambda item: (-item[1], item[0]))
        rest = self.other + sum(times for _, times in ranked[count:])
        return dict(ranked[:count]) | ({OTHER: rest} if rest else {})


@dataclass
class Stats:
    """`invalid` counts rows; `fatal` and `warnings` count rows for each code."""

    rows: Counter[str] = field(default_factory=Counter)
    invalid: int = 0
    fatal: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    sources: Counts = field(default_factory=Counts)
    counts: dict[str, Counts] = field(default_factory=lambda: {name: Counts() for name in COUNTED})
    histograms: dict[str, list[int]] = field(
        default_factory=lambda: {name: [0] * (len(edges) - 1) for name, edges in EDGES.items()}
    )

    def add_problems(self, split: str, problems: Sequence[Problem]) -> None:
        """One row and what is wrong with it."""
        self.rows[split] += 1
        self.invalid += any(problem.fatal for problem in problems)
        for code, fatal in {(problem.code, problem.fatal) for problem in problems}:
            (self.fatal if fatal else self.warnings)[code] += 1

    def add_record(self, record: Record, look: Look, answer_type: str) -> None:
        """What a row that could be read holds."""
        self.sources.add(_value(record.source))
        self.counts["answer_type"].add(answer_type)
        self.counts["answers"].add(_value(record.answer))
        self.counts["options"].add(str(len(record.offered())))
        if look.width:
            self.counts["image_format"].add(look.format)
            self.counts["image_mode"].add(look.mode)
            self._measure("image_width", look.width)
            self._measure("image_height", look.height)
            if look.visual_tokens:
                self._measure("visual_tokens", look.visual_tokens)
        self._measure("question_words", len(record.question.split()))
        self._measure("answer_words", len(record.answer.split()))
        self._measure("steps", len(record.reference_steps))
        for step in record.reference_steps:
            self._measure("step_words", len(step.split()))

    def _measure(self, name: str, value: int) -> None:
        counts = self.histograms[name]
        counts[min(bisect_right(EDGES[name], value), len(counts)) - 1] += 1

    def merge(self, more: Stats) -> None:
        """Add what another part of the same source counted."""
        self.rows.update(more.rows)
        self.invalid += more.invalid
        self.fatal.update(more.fatal)
        self.warnings.update(more.warnings)
        self.sources.merge(more.sources)
        for name, counts in self.counts.items():
            counts.merge(more.counts[name])
        for name, sums in self.histograms.items():
            self.histograms[name] = [a + b for a, b in zip(sums, more.histograms[name], strict=True)]

    def report_histograms(self) -> dict[str, Histogram]:
        return {name: Histogram(list(EDGES[name]), list(counts)) for name, counts in self.histograms.items()}

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` is the opposite."""
        return {
            "rows": self.rows,
            "invalid": self.invalid,
            "fatal": self.fatal,
            "warnings": self.warnings,
            "sources": vars(self.sources),
            "counts": {name: vars(counts) for name, counts in self.counts.items()},
            "histograms": self.histograms,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Stats:
        return cls(
            rows=Counter(values["rows"]),
            invalid=values["invalid"],
            fatal=Counter(values["fatal"]),
            warnings=Counter(values["warnings"]),
            sources=Counts(**values["sources"]),
            counts={name: Counts(**counts) for name, counts in values["counts"].items()},
            histograms=values["histograms"],
        )


def _value(text: str) -> str:
    """A text as a row of a table: on one line and short."""
    return storable(" ".join(text[: 4 * MAX_VALUE_LENGTH].split())[:MAX_VALUE_LENGTH])
