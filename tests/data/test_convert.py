"""Conversion: pictures untouched, none of them in two splits, and the same result every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import COLUMNS, Record
from vqa_grpo.data.convert import SPLITS, ConvertedData, SplitRule, convert, read_records
from vqa_grpo.data.sources import Source, open_folder

Save, Table, Encoded = Callable[..., str], Callable[..., datasets.Dataset], Callable[..., bytes]
RULE = SplitRule(0, 0.2, 0.2)
ALL_TRAIN = SplitRule(0, 0.0, 0.0)


def source_of(**splits: list[Record]) -> Source:
    """Records that are already in memory: what a source is to the converter."""

    def records(split: str) -> Iterator[Record]:
        return iter(splits[split])

    return Source("test", "", {split: len(rows) for split, rows in splits.items()}, records)


def pictures(folder: Path) -> dict[str, set[bytes]]:
    return {split: {record.image for record in read_records(folder, split)} for split in SPLITS}


@pytest.fixture(scope="module")
def rows(encoded: Encoded) -> list[Record]:
    """Sixty pictures with three questions each."""
    return [
        Record(encoded(number), f"question {asked}?", "red", ("One step.",), id=f"{number}/{asked}")
        for number in range(60)
        for asked in range(3)
    ]


# --- splits -----------------------------------------------------------------------------------------------------


def test_no_picture_is_in_two_splits_and_no_row_is_lost(rows: list[Record], tmp_path: Path) -> None:
    result = convert(source_of(train=rows), RULE, tmp_path / "out")
    found = pictures(tmp_path / "out")
    assert sum(len(part) for part in found.values()) == len(set[bytes]().union(*found.values())) == 60
    assert all(found.values())
    assert sum(result.splits.values()) == len(rows)
    assert result.splits == {split: 3 * len(part) for split, part in found.items()}


def test_where_a_picture_goes_does_not_depend_on_the_order_of_rows(rows: list[Record], tmp_path: Path) -> None:
    convert(source_of(train=rows), RULE, tmp_path / "one")
    convert(source_of(train=rows[::-1]), RULE, tmp_path / "two")
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")


def test_where_a_picture_goes_does_not_depend_on_the_other_pictures(rows: list[Record], tmp_path: Path) -> None:
    convert(source_of(train=rows), RULE, tmp_path / "all")
    convert(source_of(train=rows[:90]), RULE, tmp_path / "half")
    every, half = pictures(tmp_path / "all"), pictures(tmp_path / "half")
    assert all(half[split] <= every[split] for split in SPLITS)


def test_another_seed_splits_otherwise(rows: list[Record], tmp_path: Path) -> None:
    convert(source_of(train=rows), RULE, tmp_path / "one")
    convert(source_of(train=rows), SplitRule(1, 0.2, 0.2), tmp_path / "two")
    assert pictures(tmp_path / "one") != pictures(tmp_path / "two")


@given(st.integers(), st.floats(0, 1), st.floats(0, 1), st.text(max_size=64))
def test_every_picture_has_one_split_and_shares_of_nothing_get_nothing(
    seed: int, validation: float, test: float, picture: str
) -> None:
    assert SplitRule(seed, validation, test).split_of(picture) in SPLITS
    assert SplitRule(seed, 0.0, 0.0).split_of(picture) == "train"
    assert SplitRule(seed, 1.0, test).split_of(picture) == "validation"
    assert SplitRule(seed, 0.0, 1.0).split_of(picture) == "test"


def test_the_sources_own_test_split_is_kept_and_no_other_is_made(rows: list[Record], tmp_path: Path) -> None:
    result = convert(source_of(train=rows[:150], test=rows[150:]), RULE, tmp_path / "out")
    assert result.splits["test"] == 30
    assert pictures(tmp_path / "out")["test"] == {record.image for record in rows[150:]}
    assert result.splits["validation"] > 0


@pytest.mark.parametrize("held", ["validation", "test"])
def test_a_picture_that_the_source_holds_out_is_not_trained_on(rows: list[Record], tmp_path: Path, held: str) -> None:
    convert(source_of(**{"train": rows, held: rows[:30]}), ALL_TRAIN, tmp_path / "out")
    found = pictures(tmp_path / "out")
    assert found[held] == {record.image for record in rows[:30]}
    assert found["train"] == {record.image for record in rows[30:]}


def test_a_picture_in_every_split_of_the_source_stays_in_test_alone(rows: list[Record], tmp_path: Path) -> None:
    splits = {"train": rows, "validation": rows[:60], "test": rows[:30]}
    result = convert(source_of(**splits), ALL_TRAIN, tmp_path / "out")
    assert result.splits == {"train": 120, "validation": 30, "test": 30}
    found = pictures(tmp_path / "out")
    assert not found["test"] & found["validation"]
    assert not found["train"] & (found["test"] | found["validation"])
    assert result.moved_from_train == 60 + 30


def test_the_order_of_the_sources_splits_does_not_matter(rows: list[Record], tmp_path: Path) -> None:
    one = convert(source_of(train=rows, test=rows[:30]), RULE, tmp_path / "one")
    two = convert(source_of(test=rows[:30], train=rows), RULE, tmp_path / "two")
    assert one == two


# --- what is written --------------------------------------------------------------------------------------------


def test_the_bytes_of_every_kind_of_picture_pass_untouched(
    save: Save, table: Table, encoded: Encoded, tmp_path: Path
) -> None:
    originals = [encoded("red", "JPEG"), encoded("blue", "PNG"), encoded("green", "WEBP"), encoded("red", "GIF")]
    convert(open_folder(save(table(list(originals)))), ALL_TRAIN, tmp_path / "out")
    assert [record.image for record in read_records(tmp_path / "out", "train")] == originals


def test_every_field_of_a_record_comes_back(encoded: Encoded, tmp_path: Path) -> None:
    full = Record(encoded(), "Wöß?", "B", ("One.", "Two."), ("x", "y"), ("p", "q"), "textvqa", "my-id")
    bare = Record(encoded(), "Which?", "red", id="other")
    convert(source_of(train=[full, bare]), ALL_TRAIN, tmp_path / "out")
    assert list(read_records(tmp_path / "out", "train")) == [full, bare]


def test_the_folder_is_one_that_datasets_loads(rows: list[Record], encoded: Encoded, tmp_path: Path) -> None:
    convert(source_of(train=rows), RULE, tmp_path / "out")
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert isinstance(loaded, datasets.DatasetDict)
    assert list(loaded) == list(SPLITS)
    row = loaded["train"][0]
    assert sorted(row) == sorted(COLUMNS)
    assert row["image"].size == (24, 16)
    assert row["reference_steps"] == ["One step."]
    assert datasets.load_from_disk(str(tmp_path / "out" / "test")).num_rows == loaded["test"].num_rows


def test_more_rows_than_one_batch_arrive_in_order(encoded: Encoded, tmp_path: Path) -> None:
    many = [Record(encoded(), f"{number}?", "red", id=str(number)) for number in range(1203)]
    assert convert(source_of(train=many), ALL_TRAIN, tmp_path / "out").splits["train"] == 1203
    assert [record.id for record in read_records(tmp_path / "out", "train")] == [record.id for record in many]


def test_a_split_without_rows_is_still_there(rows: list[Record], tmp_path: Path) -> None:
    convert(source_of(train=rows), ALL_TRAIN, tmp_path / "out")
    assert list(read_records(tmp_path / "out", "test")) == []


def test_a_converted_folder_converts_to_the_same_again(rows: list[Record], tmp_path: Path) -> None:
    first = convert(source_of(train=rows), RULE, tmp_path / "one")
    second = convert(open_folder(str(tmp_path / "one")), RULE, tmp_path / "two")
    assert second.splits["test"] == first.splits["test"]
    assert pictures(tmp_path / "two")["test"] == pictures(tmp_path / "one")["test"]


def test_bad_rows_are_left_out_and_counted(encoded: Encoded, tmp_path: Path) -> None:
    good = Record(encoded(), "Which?", "red", id="good")
    bad = [
        Record(b"no picture", "Which?", "red", id="1"),
        Record(encoded(), " ", "red", id="2"),
        Record(encoded(), "Which?", "", id="3"),
        Record(encoded(), "Which?", "yellow", options=("red", "blue"), id="4"),
    ]
    result = convert(source_of(train=[*bad, good]), ALL_TRAIN, tmp_path / "out")
    assert result.left_out == 4
    assert [record.id for record in read_records(tmp_path / "out", "train")] == ["good"]


def test_nothing_left_to_train_on_is_an_error(rows: list[Record], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of test is left for training"):
        convert(source_of(train=rows), SplitRule(0, 0.5, 0.5), tmp_path / "out")
    with pytest.raises(DataError, match="no row of test is left for training"):
        convert(source_of(train=[], test=rows), RULE, tmp_path / "two")


def test_a_limit_takes_the_first_rows_of_each_split(rows: list[Record], tmp_path: Path) -> None:
    result = convert(source_of(train=rows[30:], test=rows[:30]), ALL_TRAIN, tmp_path / "out", limit=7)
    assert result.splits == {"train": 7, "validation": 0, "test": 7}
    assert [record.id for record in read_records(tmp_path / "out", "test")] == [record.id for record in rows[:7]]


# --- the digest -------------------------------------------------------------------------------------------------


def digest(folder: Path, *rows: Record, rule: SplitRule = ALL_TRAIN) -> str:
    result: ConvertedData = convert(source_of(train=list(rows)), rule, folder)
    return result.digest


def test_the_digest_is_the_same_for_the_same_data(rows: list[Record], tmp_path: Path) -> None:
    assert digest(tmp_path / "1", *rows, rule=RULE) == digest(tmp_path / "2", *rows, rule=RULE)
    arrow = [sorted((tmp_path / name).rglob("*.arrow")) for name in ("1", "2")]
    assert [path.read_bytes() for path in arrow[0]] == [path.read_bytes() for path in arrow[1]]


def test_the_digest_depends_on_every_text_and_on_every_pixel(encoded: Encoded, tmp_path: Path) -> None:
    def row(image: bytes = encoded("red"), **changes: object) -> Record:
        texts = {"question": "Which?", "answer": "A", "reference_steps": ("One.",), "options": ("x", "y"), "id": "1"}
        return Record(image, **texts | changes)  # type: ignore[arg-type]

    variants = [
        row(),
        row(encoded("blue")),
        row(question="Which one?"),
        row(answer="B"),
        row(reference_steps=("Two.",)),
        row(reference_steps=("One.", "Two.")),
        row(options=("x", "z")),
        row(options=(), choices=("x", "y")),
        row(options=(), choices=("x", "z")),
        row(source="elsewhere"),
        row(id="2"),
    ]
    digests = [digest(tmp_path / str(number), variant) for number, variant in enumerate(variants)]
    assert len(set(digests)) == len(variants)


def test_the_digest_depends_on_the_split(rows: list[Record], tmp_path: Path) -> None:
    assert digest(tmp_path / "1", *rows, rule=RULE) != digest(tmp_path / "2", *rows, rule=ALL_TRAIN)
