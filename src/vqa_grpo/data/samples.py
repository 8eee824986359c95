"""Which rows the contact sheet shows: some usable ones and some unusable ones, the same whatever the order of reading.

The rows with the smallest content digests are chosen: as good as by chance, and the choices of parts can be merged.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from typing import Any

from vqa_grpo.contract.record import Record
from vqa_grpo.data.checks import Problem, storable
from vqa_grpo.data.pictures import Look
from vqa_grpo.report.data import Sample
from vqa_grpo.report.pictures import thumbnail

USABLE, UNUSABLE = 16, 8
MAX_TEXT = 600
MAX_TEXTS = 26
HELD_BYTES = 2_000_000  # a larger picture is made small at once: two dozen of them are kept until the end


@dataclass(frozen=True)
class Candidate:
    content: bytes
    split: str
    number: int
    record: Record
    look: Look
    problems: Sequence[Problem]

    @property
    def usable(self) -> bool:
        return not any(problem.fatal for problem in self.problems)


class Choice:
    """Takes candidates one after the other and keeps the first few by digest; of equal rows the earliest."""

    def __init__(self) -> None:
        self._kept: dict[bool, dict[bytes, Candidate]] = {True: {}, False: {}}
        self._bound: dict[bool, bytes] = {}

    def offer(self, candidate: Candidate) -> None:
        usable, content = candidate.usable, candidate.content
        kept = self._kept[usable]
        if content in kept or (usable in self._bound and content > self._bound[usable]):
            return
        kept[content] = _light(candidate)
        if len(kept) > (USABLE if usable else UNUSABLE):
            del kept[max(kept)]
            self._bound[usable] = max(kept)

    def samples(self, pool: Executor) -> list[dict[str, Any]]:
        """What `read` takes; thumbnails are drawn in the pool."""
        chosen = [candidate for kept in self._kept.values() for candidate in kept.values()]
        return [
            {
                "content": candidate.content.hex(),
                "usable": candidate.usable,
                "split": candidate.split,
                "number": candidate.number,
                "sample": asdict(sample),
            }
            for candidate, sample in zip(chosen, pool.map(_sample, chosen), strict=True)
        ]


def merged(splits: Sequence[str], parts: Iterable[Sequence[dict[str, Any]]]) -> list[Sample]:
    """The choice among all parts' choices, in the rows' order; unusable rows last."""
    found = sorted(
        (entry for part in parts for entry in part),
        key=lambda entry: (entry["content"], splits.index(entry["split"]), entry["number"]),
    )
    shown = []
    for usable, count in ((True, USABLE), (False, UNUSABLE)):
        first: dict[str, dict[str, Any]] = {}
        for entry in found:
            if entry["usable"] == usable:
                first.setdefault(entry["content"], entry)
        chosen = list(first.values())[:count]
        shown += sorted(chosen, key=lambda entry: (splits.index(entry["split"]), entry["number"]))
    return [Sample(**entry["sample"]) for entry in shown]


def _light(candidate: Candidate) -> Candidate:
    if len(candidate.record.image) <= HELD_BYTES:
        return candidate
    return replace(candidate, record=replace(candidate.record, image=_small_picture(candidate)))


def _small_picture(candidate: Candidate) -> bytes:
    """Empty where the checks found the picture bad: nobody decodes a bomb for its looks."""
    if any(problem.fatal for problem in candidate.look.problems):
        return b""
    return thumbnail(candidate.record.image) or b""


def _sample(candidate: Candidate) -> Sample:
    record, look = candidate.record, candidate.look
    return Sample(
        id=_short(record.id),
        split=candidate.split,
        question=_short(record.question),
        answer=_short(record.answer),
        options=[_short(option) for option in record.offered()[:MAX_TEXTS]],
        steps=[_short(step) for step in record.reference_steps[:MAX_TEXTS]],
        width=look.width,
        height=look.height,
        picture=base64.b64encode(_small_picture(candidate)).decode(),
        problems=[f"{problem.code}: {storable(problem.sentence)}" for problem in candidate.problems],
    )


def _short(text: str) -> str:
    return storable(text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…")
