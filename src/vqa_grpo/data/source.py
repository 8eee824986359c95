"""What a source is: named splits of numbered rows, streamed; a reader for each format stands in sources/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from vqa_grpo.contract.record import Record

BLOCK = 1000  # rows that stay together when a source is read in parts


@dataclass(frozen=True)
class Part:
    """Which rows of a split to read: every `count`-th block of rows, starting with block `index`; the first
    `limit` rows of the whole split only, where limit is not 0."""

    index: int = 0
    count: int = 1
    limit: int = 0

    def takes(self, number: int) -> bool:
        return (number // BLOCK) % self.count == self.index

    def is_over(self, number: int) -> bool:
        """Whether neither this row nor any later one can belong to the part."""
        return bool(self.limit) and number >= self.limit


WHOLE = Part()


@dataclass(frozen=True)
class Unreadable:
    """A row that is there but cannot be made a record, such as a line that is not JSON."""

    id: str
    sentence: str


Row: TypeAlias = Record | Unreadable
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A data set as it was found.

    `fingerprint` is made of names, sizes and times (or the store's own tags), never of contents: it is cheap, and
    says whether to look again. What a data set holds is the dataset digest's business. `rows` counts the rows of
    each split; where only reading tells, it is an estimate and `exact` is False.
    """

    name: str
    fingerprint: str
    rows: dict[str, int]
    read: Callable[[str, Part], Iterator[tuple[int, Row]]]  # the part's rows with their numbers, ascending
    exact: bool = True

    def records(self, split: str) -> Iterator[Record]:
        """Every readable row of a split."""
        return (row for _, row in self.read(split, WHOLE) if isinstance(row, Record))


def rows_of(rows: Iterator[T], part: Part) -> Iterator[tuple[int, T]]:
    """The rows of a part, out of a stream of all rows, made or yet to be made: for readers that cannot skip."""
    for number, row in enumerate(rows):
        if part.is_over(number):
            return
        if part.takes(number):
            yield number, row
