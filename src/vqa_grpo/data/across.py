"""What only the whole data set shows: rows that repeat, answers that contradict each other, pictures in several splits.

All of it is read off an index, one column at a time. Digests are compared by their first 16 bytes, which do not meet
by chance, and only they are held: some 60 bytes for each row at the most.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqa_grpo.data.checks import Problem, named
from vqa_grpo.data.index import BATCH_ROWS, number_column

KEEPS = {"test": 2, "validation": 1}  # a split with a higher number keeps a picture from those with a lower one
_WRITTEN_AT_ONCE = 10_000
Positions = NDArray[np.int32]
_NOWHERE = np.iinfo(np.int32).max


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
        return f"the same picture and texts as row {named(other['id'])}"
    if code == "id_repeated":
        return f"row {other['number']:,} of {other['split']} has this id, too: give each row one of its own, or none"
    if code == "answers_conflict":
        return f"row {named(other['id'])} asks the same about the same picture and has another answer"
    return f"row {named(other['id'])} of {other['split']} has the same picture, and {other['split']} keeps it"


def look_across(index: Path, splits: Sequence[str]) -> Across:
    """Compare all rows of an index that is in the rows' order.

    Unusable rows repeat and contradict nothing; a picture that one of them holds out is held out all the same.
    """
    split, usable = _splits_and_usable(index, splits)
    pictures, several, leaks = _leaks(index, splits, split, usable)
    found = [
        leaks,
        _repeated(index, usable, "row_duplicate", "content"),
        _repeated(index, usable, "id_repeated", "id"),
        _conflicts(index, usable),
    ]
    counts = Counter({kind.code: len(kind.rows) for kind in found if len(kind.rows)})
    return Across(pictures, several, counts, index, found)


def _leaks(
    index: Path, splits: Sequence[str], split: NDArray[np.int8], usable: NDArray[np.bool_]
) -> tuple[dict[str, int], int, _Found]:
    shown = number_column(index, "bytes") > 0
    split, usable = split[shown], usable[shown]
    high, low = _halves(index, "picture", shown)
    order = np.lexsort((split, low, high))  # stable: among equals the earlier row comes first
    changes = _changes(high, order) | _changes(low, order)
    del high, low
    held = np.bincount(split[order][changes | _changes(split, order)], minlength=len(splits))
    pictures = dict(zip(splits, held.tolist(), strict=True))
    rows, split, usable = _positions(shown)[order], split[order], usable[order]
    del order, shown

    starts = np.flatnonzero(changes)
    if not len(starts):
        return pictures, 0, _Found("image_leak", rows, rows)
    keeps = np.array([KEEPS.get(name, 0) for name in splits], np.int8)[split]
    strongest, weakest = np.maximum.reduceat(keeps, starts), np.minimum.reduceat(keeps, starts)
    group = _groups(changes)
    leaks = usable & (keeps < strongest[group])
    # Of the rows in the split that keeps the picture, the first to stand in the index shows it.
    keeper = np.minimum.reduceat(np.where(keeps == strongest[group], rows, _NOWHERE), starts)
    return pictures, int((weakest < strongest).sum()), _Found("image_leak", rows[leaks], keeper[group[leaks]])


def _repeated(index: Path, usable: NDArray[np.bool_], code: str, column: str) -> _Found:
    """The usable rows with an earlier one's value in a column; the first one shows it."""
    rows, changes = _together(index, column, usable)
    first = rows[changes][_groups(changes)[~changes]]
    return _Found(code, rows[~changes], first)


def _conflicts(index: Path, usable: NDArray[np.bool_]) -> _Found:
    rows, changes = _together(index, "asked", usable)
    starts = np.flatnonzero(changes)
    if len(starts) == len(rows):  # nobody asks the same twice
        return _Found("answers_conflict", rows[:0], rows[:0])
    answer = _halves(index, "answer", np.ones(len(usable), np.bool_))[0][rows]
    group = _groups(changes)
    first = answer[starts]
    differs = answer != first[group]
    del answer
    other = np.minimum.reduceat(np.where(differs, rows, _NOWHERE), starts)[group]
    conflicts = other < _NOWHERE
    shown_by = np.where(differs, rows[starts][group], other)
    return _Found("answers_conflict", rows[conflicts], shown_by[conflicts])


def _together(index: Path, column: str, usable: NDArray[np.bool_]) -> tuple[Positions, NDArray[np.bool_]]:
    """The usable rows, those with equal digests together and in their order, and where a new digest begins."""
    high, low = _halves(index, column, usable)
    order = np.lexsort((low, high))  # stable: among equals the earlier row comes first
    changes = _changes(high, order) | _changes(low, order)
    del high, low
    return _positions(usable)[order], changes


def _positions(wanted: NDArray[np.bool_]) -> Positions:
    return np.flatnonzero(wanted).astype(np.int32)


def _groups(changes: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Which run of equals each value belongs to."""
    return np.cumsum(changes, dtype=np.int32) - np.int32(1)


def _changes(values: NDArray[Any], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the ordered values differ from the one before; the first does."""
    ordered = values[order]
    changes = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=changes[1:])
    return changes


# --- columns of an index ----------------------------------------------------------------------------------------


def _halves(index: Path, column: str, wanted: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """The first and the second 8 bytes of the wanted rows' digests, as two rows; zeros where a digest is shorter.

    Of a column of texts, those of the texts' own digests.
    """
    halves = np.empty((2, np.count_nonzero(wanted)), np.uint64)
    start = done = 0
    for batch in _batches(index, [column]):
        values = b"".join(_digest(value)[:16].ljust(16, b"\0") for value in batch.column(0).to_pylist())
        some = np.frombuffer(values, np.uint64).reshape(-1, 2)[wanted[start : start + len(batch)]]
        halves[:, done : done + len(some)] = some.T
        start, done = start + len(batch), done + len(some)
    return halves


def _digest(value: str | bytes) -> bytes:
    return hashlib.sha256(value.encode()).digest() if isinstance(value, str) else value


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
        yield from file.iter_batches(BATCH_ROWS, columns=columns)


def _read(index: Path, columns: list[str]) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(index, columns=columns, read_dictionary=["split"])
