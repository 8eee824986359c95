"""Gather two evaluations into the plain data that a report is rendered from."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.evaluation.compare import Comparison, TypeGain
from vqa_grpo.evaluation.gate import Decision
from vqa_grpo.evaluation.score import BlindLevel, Scores, TypeScores, read_predictions
from vqa_grpo.report.pictures import thumbnail
from vqa_grpo.report.run import Example, Group, Rates, RunReport

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

KINDS = ("fixed", "broken", "both right", "both wrong")
NOTES = (
    "Accuracy is strict: an answer that cannot be read is wrong. Format counts completions that are the asked-for "
    "JSON object and nothing else. Intervals are 95 %, over questions: Wilson's for a rate, a paired bootstrap for "
    "a gain.",
    "The blind level is the accuracy of always giving the commonest training answer to the same question text. "
    "What a model has above it comes from looking.",
)


def run_report(
    title: str,
    base: Scores,
    tuned: Scores,
    comparison: Comparison,
    *,
    blind: BlindLevel | None = None,
    decision: Decision | None = None,
    examples: Sequence[Example] = (),
    history: Sequence[Mapping[str, Any]] = (),
    lineage: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    timings: Mapping[str, float] | None = None,
) -> RunReport:
    names = sorted(base.by_type.keys() & tuned.by_type.keys() & comparison.by_type.keys())
    blind_types = blind.by_type if blind else {}
    return RunReport(
        title=title,
        overall=_group("all", base, tuned, comparison, blind.accuracy if blind else None),
        types=[
            _group(name, base.by_type[name], tuned.by_type[name], comparison.by_type[name], blind_types.get(name))
            for name in names
        ],
        decision=decision.decision if decision else "",
        reasons=decision.reasons if decision else [],
        history=history,
        examples=examples,
        lineage=lineage or {},
        config=config or {},
        timings=timings or {},
        notes=NOTES if blind else NOTES[:1],
    )


def pick_examples(
    base: Path | str | pa.Table, tuned: Path | str | pa.Table, dataset: datasets.Dataset, *, each: int = 3
) -> list[Example]:
    """A few questions of each kind, types mixed, with their pictures as thumbnails.

    Which ones is decided by a hash of the id, so nobody picks the flattering ones and a second run shows the same.
    """
    columns = ["id", "type", "question", "gold", "completion", "correct", "outcome", "explanation"]
    before = {row["id"]: row for row in read_predictions(base, columns)}
    after = {row["id"]: row for row in read_predictions(tuned, columns)}
    kinds: dict[str, list[str]] = defaultdict(list)
    for key in sorted(before.keys() & after.keys(), key=lambda key: hashlib.sha256(key.encode()).digest()):
        kinds[_kind(before[key]["correct"], after[key]["correct"])].append(key)
    chosen = [(kind, key) for kind in KINDS for key in _mixed(kinds[kind], before, each)]
    pictures = _encoded_pictures(dataset, {key for _, key in chosen})
    return [
        Example(
            kind=kind,
            question=before[key]["question"],
            gold=before[key]["gold"],
            base_completion=before[key]["completion"],
            tuned_completion=after[key]["completion"],
            base_note=_note(before[key]),
            tuned_note=_note(after[key]),
            image=thumbnail(pictures[key]) if key in pictures else None,
        )
        for kind, key in chosen
    ]


def _group(name: str, base: TypeScores, tuned: TypeScores, gain: TypeGain, blind: float | None) -> Group:
    return Group(
        name=name,
        n=gain.n,
        base=_rates(base),
        tuned=_rates(tuned),
        blind=blind,
        gain=gain.gain,
        gain_ci=gain.gain_ci,
        from_format=gain.from_format,
        from_answers=gain.from_answers,
    )


def _rates(scores: TypeScores) -> Rates:
    return Rates(scores.accuracy, scores.accuracy_ci, scores.format_rate, scores.accuracy_given_format)


def _kind(before: bool, after: bool) -> str:
    if before == after:
        return "both right" if after else "both wrong"
    return "fixed" if after else "broken"


def _mixed(keys: Sequence[str], rows: Mapping[str, Mapping[str, Any]], count: int) -> list[str]:
    """The first keys, one of each type before a second of any."""
    seen: dict[str, int] = defaultdict(int)
    ranked = []
    for position, key in enumerate(keys):
        kind = rows[key]["type"]
        ranked.append((seen[kind], position, key))
        seen[kind] += 1
    return [key for _, _, key in sorted(ranked)[:count]]


def _note(row: Mapping[str, Any]) -> str:
    return f"{'right' if row['correct'] else 'wrong'}, {row['outcome']}: {row['explanation']}"


def _encoded_pictures(dataset: datasets.Dataset, keys: Iterable[str]) -> dict[str, bytes]:
    import datasets

    wanted = set(keys)
    rows = [(index, key) for index, key in enumerate(dataset["id"]) if key in wanted]
    encoded = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    found = {}
    for index, key in rows:
        image = encoded[index]["image"]
        found[key] = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    return found
