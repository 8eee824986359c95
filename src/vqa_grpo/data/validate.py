"""Conclude from one or several scans whether a source can be trained on, and say it in a report."""

from __future__ import annotations

import difflib
import hashlib
import heapq
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.data.across import Across, look_across
from vqa_grpo.data.checks import CODES, named
from vqa_grpo.data.index import schema
from vqa_grpo.data.rules import Rules
from vqa_grpo.data.samples import merged
from vqa_grpo.data.scan import (
    INDEX,
    PROBLEMS,
    QUARANTINE,
    SAMPLES,
    STATS,
    looking,
    problem_note,
    scan,
    whole,
    write_json,
)
from vqa_grpo.data.source import BLOCK, Part, Source
from vqa_grpo.data.stats import Stats
from vqa_grpo.report.data import DataReport
from vqa_grpo.report.metrics import clean_metrics

REPORT, MARKDOWN, HTML, METRICS = "report.json", "report.md", "report.html", "metrics.json"
SCAN = ".scan"  # a fixed name, so that what a killed run left is found and cleared away
SHOWN_PER_CODE = 5
_PLACE = itemgetter(0)  # of a line or a piece: split and number, or split and block


def validate(source: Source, rules: Rules, folder: Path, limit: int = 0, workers: int = 0) -> DataReport:
    """Check every row of a source, or the first `limit` of each split, and write what `conclude` writes."""
    check_codes(rules)
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / SCAN
    shutil.rmtree(work, ignore_errors=True)
    try:
        scan(source, rules, work, Part(limit=limit), workers)
        return conclude(source.name, [work], rules, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def conclude(source_name: str, scans: Sequence[Path], rules: Rules, folder: Path) -> DataReport:
    """Put the scans of all parts of a source together, look across the rows, and write the result into `folder`.

    `report.json`, `report.md`, `report.html` and `metrics.json` hold the figures; `index.parquet`, `problems.jsonl`
    and `quarantine.jsonl` the rows, in the source's order. Raises DataError where a part is missing, was not finished,
    or was scanned from another source or by other rules.
    """
    check_codes(rules)
    parts = _open(scans, rules)
    splits = parts[0].splits
    stats = Stats()
    for part in parts:
        stats.merge(part.stats)
    with whole(folder, last=REPORT) as work:
        digest = _merge_indexes(parts, work / INDEX)
        across = look_across(work / INDEX, splits)
        examples = _merge_problems(parts, across, work / PROBLEMS)
        with (work / QUARANTINE).open("w", encoding="utf-8") as file:
            file.writelines(line for _, line, _ in _merged_lines(parts, QUARANTINE))
        report = DataReport(
            source=source_name,
            rows={split: stats.rows[split] for split in splits},
            pictures=across.pictures,
            valid=stats.rows.total() - stats.invalid,
            invalid=stats.invalid,
            invalid_by_code=_sorted(stats.fatal),
            warnings_by_code=_sorted(stats.warnings + across.counts),
            by_source=stats.sources.top(),
            counts={name: counts.top() for name, counts in stats.counts.items()},
            histograms=stats.report_histograms(),
            examples=examples,
            pictures_in_several_splits=across.pictures_in_several_splits,
            duplicate_rows=across.counts["row_duplicate"],
            digest=digest,
        )
        _write(report, parts, refusal(report, rules), work)
    return report


def refuse_if_bad(report: DataReport, rules: Rules) -> None:
    """Raise DataError in one line when nothing of the source is usable, or less than the rules ask for."""
    check_codes(rules)
    if sentence := refusal(report, rules):
        raise DataError(sentence)


def refusal(report: DataReport, rules: Rules) -> str:
    """Why the rules refuse a source, in one line; empty where they accept it."""
    if not report.total:
        return f"{report.source} holds no rows"
    if not report.valid:
        return f"none of the {report.total:,} rows of {report.source} is usable; {_worst(report)}"
    if report.invalid > rules.max_invalid_fraction * report.total:
        return (
            f"{report.invalid:,} of {report.total:,} rows of {report.source} are unusable, more than "
            f"data.max_invalid_fraction {rules.max_invalid_fraction:g} allows; {_worst(report)}"
        )
    by_code = report.invalid_by_code | report.warnings_by_code
    for code, largest in rules.max_fractions.items():
        rows = by_code.get(code, 0)
        if rows > largest * report.total:
            return (
                f"{rows:,} of {report.total:,} rows of {report.source} have {code}, more than "
                f"data.max_fractions.{code} {largest:g} allows, {_example(report, code)}"
            )
    return ""


def check_codes(rules: Rules) -> None:
    """Raise ConfigurationError for a threshold on a code that does not exist."""
    for code in rules.max_fractions:
        if code not in CODES:
            near = difflib.get_close_matches(code, CODES, 1, 0.5)
            hint = f", did you mean {near[0]}?" if near else f": {', '.join(CODES)}"
            raise ConfigurationError(f"data.max_fractions: there is no code {code!r}{hint}")


def _worst(report: DataReport) -> str:
    worst = max(report.invalid_by_code, key=lambda code: report.invalid_by_code[code])
    return f"most often {worst}, {_example(report, worst)}"


def _example(report: DataReport, code: str) -> str:
    example = next(example for example in report.examples if example["code"] == code)
    return f"e.g. row {example['id']}: {example['sentence']}"


# --- the parts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scanned:
    """What `scan` left of one part."""

    folder: Path
    splits: list[str]
    stats: Stats

    def lines(self, name: str) -> Iterator[tuple[tuple[int, int], str, dict[str, Any]]]:
        """The lines of one of its files, each with its row's place and what it says."""
        with (self.folder / name).open(encoding="utf-8") as file:
            for line in file:
                note = json.loads(line)
                yield (self.splits.index(note["split"]), note["number"]), line, note

    def blocks(self) -> Iterator[tuple[tuple[int, int], Any]]:
        """Pieces of its index as Arrow tables, each with the split and the block that its rows belong to."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.folder / INDEX) as file:
            for batch in file.iter_batches(BLOCK):
                split = np.array([self.splits.index(name) for name in batch.column("split").to_pylist()], np.int64)
                block = batch.column("number").to_numpy() // BLOCK
                ends = np.flatnonzero((np.diff(split) != 0) | (np.diff(block) != 0)) + 1
                for start, end in itertools.pairwise([0, *ends.tolist(), len(batch)]):
                    place = int(split[start]), int(block[start])
                    yield place, pa.Table.from_batches([batch.slice(start, end - start)])


def _open(scans: Sequence[Path], rules: Rules) -> list[_Scanned]:
    """The parts in their order, when they are all there and of one kind."""
    notes: dict[int, tuple[Path, dict[str, Any]]] = {}
    for folder in scans:
        try:
            note = json.loads((folder / STATS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(f"{folder} holds no finished scan: scan this part again") from None
        if note["part"] in notes:
            raise DataError(f"{folder} and {notes[note['part']][0]} are scans of the same part: leave one out")
        notes[note["part"]] = folder, note
    if not notes:
        raise DataError("no scan to conclude from: scan the source first")
    first_folder, first = notes[min(notes)]
    for folder, note in notes.values():
        if note["made_of"] != first["made_of"]:
            raise DataError(
                f"{folder} and {first_folder} are scans of different sources or rules: scan one of them again"
            )
    if first["made_of"]["rules"] != looking(rules):
        raise DataError(f"{first_folder} was scanned by other rules: scan it again")
    missing = sorted(set(range(first["made_of"]["parts"])) - set(notes))
    if missing:
        raise DataError(
            f"of {first['made_of']['parts']} parts {', '.join(map(str, missing))} is missing: scan it, then conclude"
        )
    splits = first["made_of"]["splits"]
    return [_Scanned(notes[part][0], splits, Stats.from_dict(notes[part][1]["stats"])) for part in sorted(notes)]


def _merged_lines(parts: Iterable[_Scanned], name: str) -> Iterator[tuple[tuple[int, int], str, dict[str, Any]]]:
    return heapq.merge(*(part.lines(name) for part in parts), key=_PLACE)


def _merge_indexes(parts: Sequence[_Scanned], path: Path) -> str:
    """Write one index in the rows' order, and give the digest of the usable rows' contents, in hex."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    contents = {split: hashlib.sha256() for split in parts[0].splits}
    with pq.ParquetWriter(path, schema(), compression="zstd") as writer:
        pieces = heapq.merge(*(part.blocks() for part in parts), key=_PLACE)
        for (split, _), group in itertools.groupby(pieces, key=_PLACE):
            table = pa.concat_tables([piece for _, piece in group]).combine_chunks()
            writer.write_table(table)
            usable = zip(table["content"].to_pylist(), table["fatal"].to_pylist(), strict=True)
            contents[parts[0].splits[split]].update(b"".join(content for content, fatal in usable if not fatal))
    lines = [json.dumps([split, contents[split].hexdigest()]) for split in sorted(contents)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _merge_problems(parts: Sequence[_Scanned], across: Across, path: Path) -> list[dict[str, Any]]:
    """Write the problems of rows and of the whole in the rows' order; gives the first few of each code."""
    seen: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    streams = [part.lines(PROBLEMS) for part in parts]
    with path.open("w", encoding="utf-8") as file:
        for _, line, note in heapq.merge(*streams, _lines_of(across, parts[0].splits), key=_PLACE):
            file.write(line)
            seen[note["code"]] += 1
            if seen[note["code"]] <= SHOWN_PER_CODE:
                examples.append(
                    {key: note[key] for key in ("split", "code", "sentence", "fatal")} | {"id": named(note["id"])}
                )
    return examples


def _lines_of(across: Across, splits: Sequence[str]) -> Iterator[tuple[tuple[int, int], str, dict[str, Any]]]:
    for noted in across.problems():
        note = problem_note(noted.split, noted.number, noted.id, noted.problem)
        yield (splits.index(noted.split), noted.number), json.dumps(note) + "\n", note


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# --- the report's files -----------------------------------------------------------------------------------------


def _write(report: DataReport, parts: Sequence[_Scanned], refused: str, folder: Path) -> None:
    from vqa_grpo.report.data_html import render_data_report

    chosen = (json.loads((part.folder / SAMPLES).read_text(encoding="utf-8")) for part in parts)
    samples = merged(parts[0].splits, chosen)
    metrics, _ = clean_metrics(
        {**report.figures(), "duplicate_rows": report.duplicate_rows, "pictures": report.pictures}
    )
    write_json(folder / METRICS, metrics)
    (folder / MARKDOWN).write_text(report.markdown(), encoding="utf-8")
    (folder / HTML).write_text(render_data_report(report, samples, CODES, refused), encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
