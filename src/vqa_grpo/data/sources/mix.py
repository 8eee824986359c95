"""Several sources as one: one after the other, or rows taken in turn by weight.

With weights the rows of train are taken by stride scheduling: row k of a source of weight w has the time (k+1)/w, and
rows come in order of time, until the first source has none left. Where a row lands thus follows from the
weights alone, and a part of the mixture asks each source for its own rows only. Rows held out for validation or
test are all taken, whatever the weights.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm
from typing import NamedTuple

from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import WHOLE, Part, Row, Source

FINEST = 10_000  # weights count to this fraction of each other


class Component(NamedTuple):
    name: str  # stands before its rows' ids
    source: Source
    weight: float = 0.0
    columns: Mapping[str, str] = {}


@dataclass(frozen=True)
class _Placed(Part):
    """A part of the mixture as one of its sources sees it: `place` gives a row's number in the mixture."""

    place: Callable[[int], int] = int

    def takes(self, number: int) -> bool:
        return super().takes(self.place(number))

    def is_over(self, number: int) -> bool:
        return super().is_over(self.place(number))


def mixed(components: Sequence[Component]) -> Source:
    """The mixture of sources with distinct names. All have a weight, or none has."""
    splits: dict[str, list[Component]] = {}
    for split in ("train", "validation", "test"):
        having = [component for component in components if component.source.rows.get(split)]
        if having:
            splits[split] = having

    def weighted(split: str) -> bool:
        return split == "train" and bool(splits[split][0].weight)

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        return (_in_turn if weighted(split) else _one_after_another)(splits[split], split, part)

    rows = {
        split: _length(having) if weighted(split) else sum(component.source.rows[split] for component in having)
        for split, having in splits.items()
    }
    name = " + ".join(component.name for component in components)
    return Source(name, _fingerprint(components), rows, read, all(component.source.exact for component in components))


def _fingerprint(components: Sequence[Component]) -> str:
    facts = [[part.name, part.source.fingerprint, part.weight, dict(part.columns)] for part in components]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _named(row: Row, component: Component) -> Row:
    """The row with an id of its own in the mixture."""
    name = f"{component.name}/{row.id}"
    if isinstance(row, Record):
        return replace(row, id=name, source=row.source or component.name)
    return replace(row, id=name)


# --- one after the other ----------------------------------------------------------------------------------------


def _one_after_another(components: list[Component], split: str, part: Part) -> Iterator[tuple[int, Row]]:
    first = 0
    for component in components:
        if part.is_over(first):
            return
        count = 0
        for number, row in _numbered(component, split, part, lambda number, first=first: first + number):  # type: ignore[misc]
            count = number + 1
            if part.is_over(first + number):
                return
            if row is not None and part.takes(first + number):
                yield first + number, _named(row, component)
        first += component.source.rows[split] if component.source.exact else count


def _numbered(
    component: Component, split: str, part: Part, place: Callable[[int], int]
) -> Iterator[tuple[int, Row | None]]:
    """A source's rows that the part may want. Of one whose length only reading tells, all: its end has to be seen."""
    if not component.source.exact:
        yield from component.source.read(split, WHOLE)
        return
    yield from component.source.read(split, _Placed(part.index, part.count, part.limit, place))


# --- in turn by weight ------------------------------------------------------------------------------------------


def _in_turn(components: list[Component], split: str, part: Part) -> Iterator[tuple[int, Row]]:
    strides = _strides(components)
    streams = [_timed(component, split, part, index, strides) for index, component in enumerate(components)]
    for number, row in heapq.merge(*streams, key=lambda found: found[0]):
        if row is None or part.is_over(number):
            return
        if part.takes(number):
            yield number, row


def _timed(
    component: Component, split: str, part: Part, index: int, strides: list[int]
) -> Iterator[tuple[int, Row | None]]:
    """A source's rows with their numbers in the mixture; last, with the number of the row it lacks, None."""
    count = 0
    for number, row in _numbered(component, split, part, lambda number: _number(index, number, strides)):
        count = number + 1
        yield _number(index, number, strides), None if row is None else _named(row, component)
    yield _number(index, component.source.rows[split] if component.source.exact else count, strides), None


def _strides(components: list[Component]) -> list[int]:
    """The time between two rows of each source, in whole numbers."""
    heaviest = max(component.weight for component in components)
    weights = [
        max(Fraction(part.weight / heaviest).limit_denominator(FINEST), Fraction(1, FINEST)) for part in components
    ]
    scale = lcm(*(weight.numerator for weight in weights))
    return [int(scale * weight.denominator // weight.numerator) for weight in weights]


def _number(index: int, row: int, strides: list[int]) -> int:
    """How many rows of the mixture come before a source's row: those of an earlier time, or of the same time and of a
    source named before."""
    time = (row + 1) * strides[index]
    return sum((time - (other > index)) // stride if other != index else row for other, stride in enumerate(strides))


def _length(components: list[Component]) -> int:
    strides = _strides(components)
    return min(_number(index, part.source.rows["train"], strides) for index, part in enumerate(components))
