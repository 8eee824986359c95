"""What only the whole data set shows: rows that repeat, answers that contradict each other, pictures in several splits.

All of it is read off an index, one column at a time. Digests are compared by their first 16 bytes, which do not meet
by chance, and only they are held: some 60 bytes for each row at the most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqa_grpo.data.checks import Problem

KEEPS = {"test": 2, "validation": 1}  # a split with a higher number keeps a picture from those with a lower one
_WRITTEN_AT_ONCE = 10_000
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Noted:
    """A problem of the row `number` of `split`."""

    split: str
    number: int
    id: str
    problem: Problem


@dataclass(frozen=True)
class _Found:
    """Rows with one kind of problem, and for each another row that shows it; positions count through the index."""

    code: str
    rows: Positions
    shown_by: Positions


@dataclass(frozen=True)
class Across:
    """What was found. `pictures` counts the different ones in each split."""

    pictures: dict[str, int]
    pictures_in_several_splits: int
    counts: Counter[str]
    _index: Path
    _found: Sequence[_Found]

    def problems(self) -> Iterator[Noted]:
        """All problems found, in the rows' order."""
        rows = np.concatenate([found.rows for found in self._found])
        shown_by = np.concatenate([found.shown_by for found in self._found])
        kinds = np.repeat(np.arange(len(self._found)), [len(found.rows) for found in self._found])
        if not len(rows):
            return
        names = _read(self._index, ["split", "number", "id"])
        order = np.lexsort((kinds, rows))
        for start in range(0, len(order), _WRITTEN_AT_ONCE):
            some = order[start : start + _WRITTEN_AT_ONCE]
            them, others = names.take(rows[some]).to_pylist(), names.take(shown_by[some]).to_pylist()
            for row, other, kind in zip(them, others, kinds[some], strict=True):
                code = self._found[kind].code
                sentence = _sentence(code, other)
                yield Noted(row["split"], row["number"], row["id"], Problem(code, sentence, fatal=False))


def _sentence(code: str, other: dict[str, Any]) -> str:
    if code == "row_duplicate":
        return f"the same picture and texts as row {other['id']}"
    if code == "answers_conflict":
        return f"row {other['id']} asks the same about the same picture and has another answer"
    return f"row {other['id']} of {other['split']} has the same picture, and {other['split']} keeps it"


def look_across(index: Path, splits: Sequence[str]) -> Across:
    """Compare all rows of an index that is in the rows' order. Unusable rows repeat, contradict and leak nothing."""
    split, usable = _splits_and_usable(index, splits)
    pictures, several, leaks = _leaks(index, splits, split, usable)
    found = [leaks, _duplicates(index, usable), _conflicts(index, usable)]
    counts = Counter({kind.code: len(kind.rows) for kind in found if len(kind.rows)})
    return Across(pictures, several, counts, index, found)


def _leaks(
    index: Path, splits: Sequence[str], split: NDArray[np.int8], usable: NDArray[np.bool_]
) -> tuple[dict[str, int], int, _Found]:
    positions = np.flatnonzero(_numbers(index, "bytes") > 0)
    high, low = (half[positions] for half in _halves(index, "picture"))
    split, usable = split[positions], usable[positions]
    order = np.lexsort((split, low, high))
    changes = _changes(high, order) | _changes(low, order)
    different = changes | _changes(split, order)
    held = np.bincount(split[order][different], minlength=len(splits))
    pictures = dict(zip(splits, held.tolist(), strict=True))
    del high, low, different

    keeps = np.array([KEEPS.get(name, 0) for name in splits], np.int8)[split[order]]
    usable = usable[order]
    starts = np.flatnonzero(changes)
    none = np.zeros(0, np.int64)
    if not len(starts):
        return pictures, 0, _Found("image_leak", none, none)
    strongest = np.maximum.reduceat(np.where(usable, keeps, -1), starts)
    weakest = np.minimum.reduceat(np.where(usable, keeps, 3), starts)
    group = np.cumsum(changes) - 1
    leaks = usable & (keeps < strongest[group])
    # Of the rows in the split that keeps the picture, the first to stand in the index shows it.
    where = np.where(usable & (keeps == strongest[group]), positions[order], np.iinfo(np.int64).max)
    keeper = np.minimum.reduceat(where, starts)
    return (
        pictures,
        int((weakest < strongest).sum()),
        _Found("image_leak", positions[order][leaks], keeper[group][leaks]),
    )


def _duplicates(index: Path, usable: NDArray[np.bool_]) -> _Found:
    positions, order, changes = _grouped(index, "content", usable)
    first = order[changes][np.cumsum(changes)[~changes] - 1]
    return _Found("row_duplicate", positions[order[~changes]], positions[first])


def _conflicts(index: Path, usable: NDArray[np.bool_]) -> _Found:
    positions, order, changes = _grouped(index, "asked", usable)
    starts = np.flatnonzero(changes)
    if len(starts) == len(order):
        return _Found("answers_conflict", order[:0], order[:0])
    answer = _halves(index, "answer")[0][positions][order]
    group = np.cumsum(changes) - 1
    differs = answer != answer[starts][group]
    nowhere = len(order)
    first_other = np.minimum.reduceat(np.where(differs, np.arange(nowhere), nowhere), starts)
    conflicts = first_other[group] < nowhere
    shown_by = np.where(differs, starts[group], first_other[group])[conflicts]
    return _Found("answers_conflict", positions[order[conflicts]], positions[order[shown_by]])


def _grouped(
    index: Path, column: str, usable: NDArray[np.bool_]
) -> tuple[Positions, NDArray[np.int64], NDArray[np.bool_]]:
    """Usable rows' positions, the order that brings equal digests together, and where in it a new digest begins."""
    positions = np.flatnonzero(usable)
    high, low = (half[positions] for half in _halves(index, column))
    order = np.lexsort((low, high))  # stable: among equals the earlier row comes first
    return positions, order, _changes(high, order) | _changes(low, order)


def _changes(values: NDArray[Any], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the ordered values differ from the one before; the first does."""
    ordered = values[order]
    changes = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=changes[1:])
    return changes


# --- columns of an index ----------------------------------------------------------------------------------------


def _halves(index: Path, column: str) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first and the second 8 bytes of each digest; zeros where it is shorter."""
    parts = [
        np.frombuffer(b"".join(value[:16].ljust(16, b"\0") for value in batch.column(0).to_pylist()), np.uint64)
        for batch in _batches(index, [column])
    ]
    both = (np.concatenate(parts) if parts else np.zeros(0, np.uint64)).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _numbers(index: Path, column: str) -> NDArray[np.int64]:
    parts = [batch.column(0).to_numpy() for batch in _batches(index, [column])]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _splits_and_usable(index: Path, splits: Sequence[str]) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Each row's split, by its place in `splits`, and whether nothing keeps the row out."""
    number = {name: place for place, name in enumerate(splits)}
    split, usable = bytearray(), bytearray()
    for batch in _batches(index, ["split", "fatal"]):
        split += bytes(number[name] for name in batch.column("split").to_pylist())
        usable += bytes(not code for code in batch.column("fatal").to_pylist())
    return np.frombuffer(split, np.int8), np.frombuffer(usable, np.bool_)


def _batches(index: Path, columns: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(index) as file:
        yield from file.iter_batches(columns=columns)


def _read(index: Path, columns: list[str]) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(index, columns=columns, read_dictionary=["split"])
