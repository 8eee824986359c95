"""What is known of a data set after it was checked: the report's figures, and the rows that stand for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vqa_grpo.report.markdown import escape

SHOWN_VALUES = 12


@dataclass
class Histogram:
    """`counts[i]` values lie in edges[i] ≤ value < edges[i + 1]; the first and the last also hold what is beyond."""

    edges: list[float]
    counts: list[int]


@dataclass
class Sample:
    """A row to look at. `picture` is a small PNG in base64, empty where there is none to show."""

    id: str
    split: str
    question: str
    answer: str
    options: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    width: int = 0
    height: int = 0
    picture: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass
class DataReport:
    """The figures of a whole data set. `invalid_by_code` and `warnings_by_code` count rows, once for each code.

    `digest` is over pictures and texts of all usable rows in order, not over their ids; in hex.
    """

    source: str
    rows: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, int] = field(default_factory=dict)  # different ones in each split
    valid: int = 0
    invalid: int = 0
    invalid_by_code: dict[str, int] = field(default_factory=dict)
    warnings_by_code: dict[str, int] = field(default_factory=dict)
    by_source: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)  # id, split, code, sentence, fatal; a few of each code
    pictures_in_several_splits: int = 0
    duplicate_rows: int = 0
    digest: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataReport:
        """The opposite of `dataclasses.asdict`."""
        histograms = {name: Histogram(**histogram) for name, histogram in values["histograms"].items()}
        return cls(**{**values, "histograms": histograms})

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    def figures(self) -> dict[str, Any]:
        """What a program wants to know."""
        return {
            "rows": self.total,
            "valid": self.valid,
            "invalid": self.invalid,
            "invalid_by_code": self.invalid_by_code,
            "warnings_by_code": self.warnings_by_code,
            "digest": self.digest,
            "splits": self.rows,
        }

    def markdown(self) -> str:
        lines = [f"# Data report: {escape(self.source)}", ""]
        lines += [f"{self.total:,} rows, {self.invalid:,} unusable. Digest `{self.digest[:16]}`.", ""]
        lines += ["| split | rows | pictures |", "|:--|--:|--:|"]
        lines += [
            f"| {escape(split)} | {rows:,} | {self.pictures.get(split, 0):,} |" for split, rows in self.rows.items()
        ]
        lines += self._problems("what keeps rows out", self.invalid_by_code)
        lines += self._problems("worth a look", self.warnings_by_code)
        if self.pictures_in_several_splits:
            lines += ["", f"{self.pictures_in_several_splits:,} pictures stand in more than one split."]
        if self.duplicate_rows:
            lines += ["", f"{self.duplicate_rows:,} rows repeat an earlier one."]
        for name, counts in {"source": self.by_source, **self.counts}.items():
            lines += _counted(name.replace("_", " "), counts)
        return "\n".join(lines) + "\n"

    def _problems(self, title: str, by_code: Mapping[str, int]) -> list[str]:
        if not by_code:
            return []
        first = {example["code"]: example for example in reversed(self.examples)}
        lines = ["", f"| {title} | rows | for example |", "|:--|--:|:--|"]
        for code, rows in sorted(by_code.items(), key=lambda item: (-item[1], item[0])):
            example = first.get(code)
            shown = f"{escape(example['id'])}: {escape(example['sentence'])}" if example else ""
            lines.append(f"| {escape(code)} | {rows:,} | {shown} |")
        return lines


def _counted(name: str, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    lines = ["", f"| {escape(name)} | rows |", "|:--|--:|"]
    lines += [f"| {escape(value) or '–'} | {rows:,} |" for value, rows in list(counts.items())[:SHOWN_VALUES]]
    if len(counts) > SHOWN_VALUES:
        lines.append(f"| … and {len(counts) - SHOWN_VALUES} more | |")
    return lines
