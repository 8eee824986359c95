"""Which row of a source goes to training, validation or test: a pure function of the index, the shares and a seed.

All rows of a picture go together. A picture that the source itself holds out is never trained on: test keeps all
of its pictures, validation yields to test, and every other split to both. The remaining pictures are dealt out
within strata, one for each (source, answer type): a picture whose rows belong to several counts for the one with
the fewest rows, since a common stratum can spare it. In each stratum the numbers of pictures for train, validation
and test are the shares rounded up or down, and so are they in total; which pictures, says SHA-256 of seed and
picture. Nothing depends on the order of rows. A source that has a split of its own for validation, or for test,
gives none of its training pictures to that split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.data.index import digest_column, number_column, text_column
from vqa_grpo.data.source import Part

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
UNUSABLE, HELD_OUT = -1, -2  # targets of rows that go nowhere
# A picture is known by the first 8 bytes of its digest, to save memory. Should two ever share them, they go together.
KEY = np.dtype("<u8")


@dataclass(frozen=True)
class SplitRule:
    """Shares of the pictures to hold out; used only where the source has no such split of its own."""

    seed: int
    validation: float
    test: float


@dataclass(frozen=True)
class SplitPlan:
    """Where each row goes. Arrays have one value for each row, in the order of the result: the source's train,
    validation and test, then its other splits by name; rows of a split by number."""

    names: list[str]  # the source's splits, in that order
    codes: list[str]  # of the problems that keep rows out
    split: np.ndarray  # int8, into names
    number: np.ndarray  # int64, position in the split
    position: np.ndarray  # int64, line of the index
    target: np.ndarray  # int8, into SPLITS; UNUSABLE or HELD_OUT
    fatal: np.ndarray  # int16, into codes

    def only(self, part: Part) -> SplitPlan:
        """The plan of a part's rows."""
        return self._where(part.takes(self.number)) if part.count > 1 else self  # type: ignore[arg-type]

    def _where(self, chosen: np.ndarray) -> SplitPlan:
        arrays = {field.name: getattr(self, field.name)[chosen] for field in fields(self)[2:]}
        return replace(self, **arrays)

    def unusable(self) -> dict[str, int]:
        """Rows left out for a fatal problem, by its code."""
        return _counts(self.fatal[self.target == UNUSABLE], self.codes)

    def held_out(self) -> dict[str, int]:
        """Usable rows left out because their picture is held out elsewhere, by the source's split they stand in."""
        return _counts(self.split[self.target == HELD_OUT], self.names)


def _counts(codes: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return {names[code]: int(count) for code, count in zip(*np.unique(codes, return_counts=True), strict=True)}


def plan_splits(index: Path, rule: SplitRule, limit: int = 0) -> SplitPlan:
    """Where each row of an index goes; with a limit, as if each split ended after that many rows.

    Raises ConfigurationError where the shares leave nothing to train on by themselves.
    """
    plan = _in_order(index)
    if limit:
        plan = plan._where(plan.number < limit)
    pictures, picture = np.unique(_keys(index, plan.position), return_inverse=True)
    own = {name: plan.split == plan.names.index(name) for name in SPLITS[1:] if name in plan.names}
    own = {name: rows for name, rows in own.items() if rows.any()}
    held = {name: np.zeros(len(pictures), bool) for name in SPLITS[1:]}
    for name, rows in own.items():
        held[name][picture[rows]] = True

    target = plan.target.copy()
    target[(held["test"] | held["validation"])[picture]] = HELD_OUT
    if "validation" in own:
        target[own["validation"]] = VALIDATION
        target[own["validation"] & held["test"][picture]] = HELD_OUT
    if "test" in own:
        target[own["test"]] = TEST
    target[plan.fatal >= 0] = UNUSABLE

    free = target == TRAIN
    stratum = _strata(index, plan.position, free, picture[free], len(pictures))
    dealt = _deal(pictures, stratum, rule.seed, shares(rule, own))
    target[free] = dealt[picture[free]]
    return replace(plan, target=target)


def _keys(index: Path, position: np.ndarray) -> np.ndarray:
    return digest_column(index, "picture", KEY.itemsize).view(KEY).ravel()[position]


def _in_order(index: Path) -> SplitPlan:
    """All rows in the order of the result, as if all were for training."""
    split, found = text_column(index, "split")
    names = sorted(found, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))
    rank = np.array([names.index(name) for name in found], np.int8)
    split, number = rank[split], number_column(index, "number")
    order = np.lexsort((number, split))
    fatal, codes = text_column(index, "fatal")
    fatal = fatal.astype(np.int16)
    if codes[:1] == [""]:  # sorts first: a usable row
        fatal, codes = fatal - np.int16(1), codes[1:]
    target = np.full(len(order), TRAIN, np.int8)
    return SplitPlan(names, codes, split[order], number[order], order, target, fatal[order])


def shares(rule: SplitRule, own: Collection[str]) -> tuple[Fraction, Fraction, Fraction]:
    """Shares of train, validation and test, exact as they were written: 0.1 is a tenth; none for a split that the
    source has of its `own`. Raises ConfigurationError for shares of more than the whole."""
    validation = Fraction(0) if "validation" in own else Fraction(str(float(rule.validation)))
    test = Fraction(0) if "test" in own else Fraction(str(float(rule.test)))
    if validation < 0 or test < 0 or validation + test > 1:
        raise ConfigurationError(
            f"shares of {rule.validation:g} for validation and {rule.test:g} for test: they must be 0 or more, and "
            "not more than 1 together"
        )
    return 1 - validation - test, validation, test


def _strata(index: Path, position: np.ndarray, free: np.ndarray, picture: np.ndarray, count: int) -> np.ndarray:
    """The stratum of each picture, numbered from the rarest; -1 for a picture with no row to deal out."""
    stratum, sources = text_column(index, "source")
    kind, kinds = text_column(index, "answer_type")
    stratum *= max(len(kinds), 1)
    stratum += kind
    del kind
    stratum = stratum[position[free]]
    rows = np.bincount(stratum, minlength=len(sources) * len(kinds))
    rank = np.empty(len(rows), np.int32)
    rank[np.lexsort((np.arange(len(rows)), rows))] = np.arange(len(rows))  # ties by name: numbers follow names
    rarest = np.full(count, len(rows), np.int32)
    np.minimum.at(rarest, picture, rank[stratum])
    rarest[rarest == len(rows)] = -1
    return rarest


def _deal(pictures: np.ndarray, stratum: np.ndarray, seed: int, shares: Sequence[Fraction]) -> np.ndarray:
    """The split of each picture; what has no stratum gets none that means anything."""
    dealt = np.full(len(pictures), TRAIN, np.int8)
    chosen = np.flatnonzero(stratum >= 0)
    if not len(chosen):
        return dealt
    lot = np.fromiter((_lot(seed, pictures[one].tobytes()) for one in chosen), np.uint64, len(chosen))
    order = chosen[np.lexsort((lot, stratum[chosen]))]
    _, first, counts = np.unique(stratum[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, counts)  # in its stratum, by lot
    numbers = np.array(share_out(counts.tolist(), shares))
    test, held = (np.repeat(column, counts) for column in (numbers[:, TEST], numbers[:, VALIDATION:].sum(1)))
    dealt[order] = np.where(place < test, TEST, np.where(place < held, VALIDATION, TRAIN))
    return dealt


def _lot(seed: int, picture: bytes) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/".encode() + picture).digest()[:8], "big")


def share_out(counts: Sequence[int], shares: Sequence[Fraction]) -> list[list[int]]:
    """Deal the pictures of each stratum out to three splits.

    Every number is its stratum's share rounded up or down, and so is every split's total: rounding each stratum
    by itself would give small strata, and all of them together, nothing but training pictures. With three splits
    there is always such a dealing.

    >>> share_out([4, 3, 3], [Fraction(8, 10), Fraction(1, 10), Fraction(1, 10)])
    [[3, 1, 0], [2, 0, 1], [3, 0, 0]]
    """
    unit = math.lcm(*(share.denominator for share in shares))
    whole = [[divmod(count * int(share * unit), unit) for share in shares] for count in [*counts, sum(counts)]]
    floors = [[cell[0] for cell in line] for line in whole]
    rests = [[cell[1] for cell in line] for line in whole]  # in units: what rounding down took away
    extra = [_largest(line, sum(line) // unit) for line in rests]
    *lines, total = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(floors, extra, strict=True)]

    def movable(giver: int, taker: int) -> list[int]:
        """Strata that can round up at `taker` instead of at `giver`, those that lose least by it first."""
        able = [s for s in range(len(lines)) if extra[s][giver] and not extra[s][taker] and rests[s][taker]]
        return sorted(able, key=lambda s: rests[s][giver] - rests[s][taker])

    def move(giver: int, taker: int, strata: Sequence[int]) -> None:
        for s in strata:
            for line in (extra[s], lines[s]):
                line[giver] -= 1
                line[taker] += 1

    while True:
        over = [sum(column) - wanted for column, wanted in zip(zip(*lines, strict=True), total, strict=True)]
        if not any(over):
            return lines
        giver, taker = over.index(max(over)), over.index(min(over))
        missing = min(over[giver], -over[taker])
        if able := movable(giver, taker):
            move(giver, taker, able[:missing])
            continue
        other = 3 - giver - taker
        first, second = movable(giver, other), movable(other, taker)
        missing = min(missing, len(first), len(second))
        move(giver, other, first[:missing])
        move(other, taker, second[:missing])


def _largest(rests: Sequence[int], count: int) -> list[int]:
    """1 for the `count` largest, 0 for the others; the first wins a tie."""
    order = sorted(range(len(rests)), key=lambda place: -rests[place])
    return [int(place in order[:count]) for place in range(len(rests))]
