"""Read a whole source, check every row, and say in a report whether it can be trained on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.checks import Problem, image_problem, problems
from vqa_grpo.data.sources import Source
from vqa_grpo.report.progress import track

SHOWN_PER_CODE = 5


@dataclass
class DataReport:
    """Counts of what was read; `examples` holds a few rows for each code."""

    source: str
    rows: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, int] = field(default_factory=dict)
    by_code: dict[str, int] = field(default_factory=dict)
    by_source: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, str]] = field(default_factory=list)
    invalid: int = 0
    pictures_in_several_splits: int = 0

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    def markdown(self) -> str:
        lines = [f"# Data report: {self.source}", "", f"{self.total:,} rows, {self.invalid:,} unusable.", ""]
        lines += ["| split | rows | pictures |", "| --- | ---: | ---: |"]
        lines += [f"| {split} | {rows:,} | {self.pictures[split]:,} |" for split, rows in self.rows.items()]
        if self.by_code:
            lines += ["", "| problem | rows |", "| --- | ---: |"]
            lines += [f"| {code} | {count:,} |" for code, count in sorted(self.by_code.items())]
        if self.pictures_in_several_splits:
            lines += ["", f"{self.pictures_in_several_splits:,} pictures stand in more than one split."]
        return "\n".join(lines) + "\n"


class PictureJudge:
    """Judges each distinct picture once, by content: questions about one picture share the verdict."""

    def __init__(self) -> None:
        self._seen: dict[str, Problem | None] = {}

    def judge(self, data: bytes) -> tuple[str, Problem | None]:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._seen:
            self._seen[digest] = image_problem(data)
        return digest, self._seen[digest]


def limited(records: Iterable[Record], limit: int) -> Iterator[Record]:
    return itertools.islice(records, limit) if limit else iter(records)


def validate(source: Source, wants_steps: bool, limit: int = 0, quarantine: Path | None = None) -> DataReport:
    """Check every row; unusable ones are written to `quarantine`, a JSONL file of id, code and sentence."""
    report = DataReport(source.name)
    by_code: Counter[str] = Counter()
    by_source: Counter[str] = Counter()
    pictures: dict[str, set[str]] = {}
    judge = PictureJudge()
    bad: list[dict[str, str]] = []
    for split, count in source.rows.items():
        total = min(limit, count) if limit else count
        pictures[split] = set()
        for record in track(limited(source.records(split), limit), f"validate {split}", total):
            digest, picture = judge.judge(record.image)
            pictures[split].add(digest)
            by_source[record.source] += 1
            found = list(problems(record, picture, wants_steps and split == "train"))
            report.invalid += any(problem.fatal for problem in found)
            for problem in found:
                by_code[problem.code] += 1
                note = {"id": record.id, "code": problem.code, "sentence": problem.sentence}
                if problem.fatal:
                    bad.append(note)
                if by_code[problem.code] <= SHOWN_PER_CODE:
                    report.examples.append(note)
        report.rows[split] = total
        report.pictures[split] = len(pictures[split])
    everywhere = Counter(digest for found_in in pictures.values() for digest in found_in)
    report.pictures_in_several_splits = sum(count > 1 for count in everywhere.values())
    report.by_code, report.by_source = dict(by_code), dict(by_source)
    if quarantine is not None and bad:
        quarantine.write_text("".join(json.dumps(note, ensure_ascii=False) + "\n" for note in bad), encoding="utf-8")
    return report


def refuse_if_bad(report: DataReport, max_invalid_fraction: float) -> None:
    """Raise DataError when too much of the source is unusable."""
    if report.invalid > max_invalid_fraction * report.total:
        worst = max(report.by_code, key=lambda code: report.by_code[code])
        example = next((e for e in report.examples if e["code"] == worst), {"id": "?", "sentence": "?"})
        raise DataError(
            f"{report.invalid:,} of {report.total:,} rows of {report.source} are unusable, more than "
            f"data.max_invalid_fraction {max_invalid_fraction:g} allows; most often {worst}, "
            f"e.g. row {example['id']}: {example['sentence']}"
        )


def write_report(report: DataReport, folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(asdict(report), indent=1, sort_keys=True), encoding="utf-8")
    (folder / "report.md").write_text(report.markdown(), encoding="utf-8")
