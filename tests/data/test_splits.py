"""Where rows go: no picture in two splits, the shares held in every stratum, and nothing lost without a word."""

from __future__ import annotations

import random
import tempfile
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexing import Facts, index_of

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import Part
from vqa_grpo.data.splits import (
    HELD_OUT,
    SPLITS,
    TEST,
    TRAIN,
    UNUSABLE,
    VALIDATION,
    SplitPlan,
    SplitRule,
    plan_splits,
    share_out,
)

RULE = SplitRule(0, 0.1, 0.1)
NONE = SplitRule(0, 0.0, 0.0)


def row(picture: int, text: str = "?", source: str = "", answer: str = "red") -> Record:
    return Record(f"picture {picture}".encode(), text, answer, source=source)


KIND = Facts(kind=lambda record: record.answer, fatal=lambda record: "bad" if record.question == "bad" else "")


def plan_of(folder: Path, rule: SplitRule = RULE, limit: int = 0, **splits: list[Record]) -> SplitPlan:
    return plan_splits(index_of(folder / "index.parquet", KIND, **splits), rule, limit)


def targets(plan: SplitPlan, **splits: list[Record]) -> list[tuple[Record, int]]:
    """Each record with where it goes."""
    rows = zip(plan.split.tolist(), plan.number.tolist(), plan.target.tolist(), strict=True)
    return [(splits[plan.names[split]][number], target) for split, number, target in rows]


def rows_of(plan: SplitPlan) -> dict[str, int]:
    return {split: int((plan.target == code).sum()) for code, split in enumerate(SPLITS)}


def pictures(plan: SplitPlan, **splits: list[Record]) -> dict[int, set[bytes]]:
    found: dict[int, set[bytes]] = defaultdict(set)
    for record, target in targets(plan, **splits):
        found[target].add(record.image)
    return found


# --- by picture -------------------------------------------------------------------------------------------------


def test_all_rows_of_a_picture_go_together(tmp_path: Path) -> None:
    rows = [row(number % 50, str(number)) for number in range(200)]
    found = pictures(plan_of(tmp_path, train=rows), train=rows)
    assert {target: len(part) for target, part in found.items()} == {TRAIN: 40, VALIDATION: 5, TEST: 5}
    assert len(set[bytes]().union(*found.values())) == 50


def test_where_a_picture_goes_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [row(n % 60, str(n), f"s{n % 60 % 3}", "x" if n % 7 else "y") for n in range(180)]
    mixed = random.Random(1).sample(rows, len(rows))
    assert pictures(plan_of(tmp_path, train=rows), train=rows) == pictures(plan_of(tmp_path, train=mixed), train=mixed)


def test_where_a_picture_goes_does_not_depend_on_the_order_of_the_sources_splits(tmp_path: Path) -> None:
    train, test = [row(n) for n in range(50)], [row(n) for n in range(40, 60)]
    one, two = plan_of(tmp_path, train=train, test=test), plan_of(tmp_path, test=test, train=train)
    assert targets(one, train=train, test=test) == targets(two, train=train, test=test)


def test_another_seed_deals_other_pictures_out(tmp_path: Path) -> None:
    rows = [row(number) for number in range(100)]
    found = [pictures(plan_of(tmp_path, SplitRule(seed, 0.2, 0.2), train=rows), train=rows) for seed in (0, 1)]
    assert found[0] != found[1]
    assert [len(part[TEST]) for part in found] == [20, 20]


# --- shares -----------------------------------------------------------------------------------------------------


def test_every_stratum_gets_its_share_and_so_does_the_whole(tmp_path: Path) -> None:
    sizes = {("a", "number"): 73, ("a", "text"): 12, ("b", "number"): 1, ("b", "text"): 5, ("c", "yes/no"): 409}
    rows: list[Record] = []
    for (source, kind), count in sizes.items():
        rows += [row(len(rows) + number, source=source, answer=kind) for number in range(count)]
    found = Counter(
        (record.source, record.answer, target)
        for record, target in targets(plan_of(tmp_path, SplitRule(3, 0.15, 0.1), train=rows), train=rows)
    )
    for target, share in ((TRAIN, 0.75), (VALIDATION, 0.15), (TEST, 0.1)):
        assert abs(sum(n for key, n in found.items() if key[2] == target) - share * 500) < 1
        for stratum, count in sizes.items():
            assert abs(found[*stratum, target] - share * count) < 1


def test_many_strata_of_one_picture_each_are_not_all_trained_on(tmp_path: Path) -> None:
    rows = [row(number, source=str(number)) for number in range(100)]
    assert rows_of(plan_of(tmp_path, train=rows)) == {"train": 80, "validation": 10, "test": 10}


def test_a_picture_of_several_strata_counts_for_the_rarest(tmp_path: Path) -> None:
    """Every picture has a common question, ten have a rare one as well: half of those ten are held out."""
    rows = [row(number, answer="common") for number in range(100)]
    rows += [row(number, "rare?", answer="rare") for number in range(10)]
    plan = plan_of(tmp_path, SplitRule(0, 0.0, 0.5), train=rows)
    assert sum(record.answer == "rare" for record, target in targets(plan, train=rows) if target == TEST) == 5


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(0, 100).flatmap(lambda a: st.tuples(st.just(a), st.integers(0, 100 - a))),
)
def test_rounding_is_up_or_down_in_every_stratum_and_in_total(counts: list[int], percent: tuple[int, int]) -> None:
    held = [Fraction(part, 100) for part in percent]
    shares = [1 - sum(held), *held]
    dealt = share_out(counts, shares)
    total = [sum(column) for column in zip(*dealt, strict=True)]
    for line, count in zip([*dealt, total], [*counts, sum(counts)], strict=True):
        assert sum(line) == count
        assert all(abs(number - count * share) < 1 for number, share in zip(line, shares, strict=True))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["train", "validation", "test", "more"]),
            st.integers(0, 12),
            st.sampled_from(["?", "bad"]),
            st.sampled_from(["a", "b"]),
            st.sampled_from(["x", "y", "z"]),
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(0, 5),
)
def test_no_picture_crosses_and_every_row_is_somewhere_or_accounted_for(
    drawn: list[tuple[str, int, str, str, str]], seed: int
) -> None:
    splits: dict[str, list[Record]] = defaultdict(list)
    for split, picture, *texts in drawn:
        splits[split].append(row(picture, *texts))
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(Path(folder), SplitRule(seed, 0.3, 0.2), **splits)
    found = pictures(plan, **splits)
    assert not found[TRAIN] & found[VALIDATION]
    assert not found[TRAIN] & found[TEST]
    assert not found[VALIDATION] & found[TEST]
    for own in ("validation", "test"):
        assert not found[TRAIN] & {record.image for record in splits[own]}
    accounted = sum(rows_of(plan).values()) + sum(plan.unusable().values()) + sum(plan.held_out().values())
    assert accounted == len(drawn)
    assert all((target == UNUSABLE) == (record.question == "bad") for record, target in targets(plan, **splits))
    for record, target in targets(plan, **splits):
        assert target != HELD_OUT or record.image in {r.image for own in ("validation", "test") for r in splits[own]}


# --- what the source holds out itself ---------------------------------------------------------------------------


def test_a_planted_duplicate_stays_on_one_side(tmp_path: Path) -> None:
    train, test = [row(n, "asked?") for n in range(20)], [row(7, "asked again?"), row(100)]
    plan = plan_of(tmp_path, NONE, train=train, test=test)
    assert rows_of(plan) == {"train": 19, "validation": 0, "test": 2}
    assert plan.held_out() == {"train": 1}


def test_test_keeps_its_pictures_and_validation_yields_to_it(tmp_path: Path) -> None:
    splits = {"train": [row(n) for n in range(9)], "validation": [row(1), row(2)], "test": [row(2), row(3)]}
    plan = plan_of(tmp_path, **splits)
    assert rows_of(plan) == {"train": 6, "validation": 1, "test": 2}
    assert plan.held_out() == {"train": 3, "validation": 1}


def test_a_picture_is_held_out_though_its_held_out_row_is_unusable(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, NONE, train=[row(1), row(2)], test=[row(1, "bad"), row(3)])
    assert rows_of(plan) == {"train": 1, "validation": 0, "test": 1}
    assert (plan.unusable(), plan.held_out()) == ({"bad": 1}, {"train": 1})


@pytest.mark.parametrize("own", ["validation", "test"])
def test_a_split_that_the_source_has_gets_none_of_its_training_pictures(tmp_path: Path, own: str) -> None:
    splits = {"train": [row(n) for n in range(100)], own: [row(200)]}
    rows = rows_of(plan_of(tmp_path, **splits))
    assert rows[own] == 1
    assert rows[{"validation": "test", "test": "validation"}[own]] == 10


def test_a_split_of_another_name_is_training_data(tmp_path: Path) -> None:
    assert rows_of(plan_of(tmp_path, NONE, other=[row(1)])) == {"train": 1, "validation": 0, "test": 0}


def test_a_limit_is_as_if_each_split_ended_there(tmp_path: Path) -> None:
    train, test = [row(n) for n in range(50)], [row(n) for n in (60, 61, 62, 63, 1)]
    plan = plan_of(tmp_path, NONE, 4, train=train, test=test)
    assert (rows_of(plan), plan.held_out()) == ({"train": 4, "validation": 0, "test": 4}, {})


def test_a_part_has_its_blocks_and_goes_where_the_whole_would(tmp_path: Path) -> None:
    rows = [row(number) for number in range(3500)]
    whole = plan_of(tmp_path, train=rows)
    parts = [whole.only(Part(index, 3)) for index in range(3)]
    assert [len(part.number) for part in parts] == [1500, 1000, 1000]
    assert np.array_equal(parts[1].number, np.arange(1000, 2000))
    assert np.array_equal(parts[1].target, whole.target[1000:2000])


@pytest.mark.parametrize("rule", [SplitRule(0, 0.6, 0.5), SplitRule(0, -0.1, 0.5)])
def test_shares_that_cannot_be_are_refused(tmp_path: Path, rule: SplitRule) -> None:
    with pytest.raises(ConfigurationError, match="not more than 1 together"):
        plan_of(tmp_path, rule, train=[row(1)])


@pytest.mark.parametrize(("rule", "expected"), [(SplitRule(0, 1.0, 0.0), "validation"), (SplitRule(0, 0, 1), "test")])
def test_a_share_of_everything_takes_everything(tmp_path: Path, rule: SplitRule, expected: str) -> None:
    assert rows_of(plan_of(tmp_path, rule, train=[row(n) for n in range(9)]))[expected] == 9


def test_the_names_of_splits_are_in_the_order_of_their_codes() -> None:
    assert (SPLITS[TRAIN], SPLITS[VALIDATION], SPLITS[TEST]) == SPLITS
