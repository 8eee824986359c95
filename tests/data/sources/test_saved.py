"""A saved data set is opened as the guide writes it, and one that cannot serve is refused in one line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data import validate
from vqa_grpo.data.convert import convert
from vqa_grpo.data.converted import read_records
from vqa_grpo.data.rules import Rules
from vqa_grpo.data.source import WHOLE, Part, Unreadable
from vqa_grpo.data.sources import open_place
from vqa_grpo.data.splits import SplitRule
from vqa_grpo.storage.store import open_store

Save, Table, Encoded = Callable[..., str], Callable[..., datasets.Dataset], Callable[..., bytes]
Refused, Lay = Callable[..., str], Callable[..., str]


def test_the_guides_own_example_is_read_validated_and_converted(save: Save, tmp_path: Path) -> None:
    Image.new("RGB", (1024, 730), "navy").save(tmp_path / "phone.jpg")
    opened = Image.open(tmp_path / "phone.jpg")
    steps = [
        "Check for visible text related to brands on the mobile phone in the image.",
        "Identify the brand text 'NOKIA' in close proximity to the mobile phone.",
        "Verify there are no other text labels or logos visible on the mobile phone.",
        "Return the exact answer string.",
    ]
    data = {
        "image": [opened],
        "question": ["what is the brand of phone?"],
        "answer": ["nokia"],
        "reference_steps": [steps],
        "choices": [[]],
        "options": [[]],
        "source": ["textvqa"],
    }
    source = open_place(save(datasets.Dataset.from_dict(data)))
    report = validate.validate(source, Rules(wants_steps=True), tmp_path / "report")
    assert (report.total, report.invalid, report.warnings_by_code) == (1, 0, {})
    assert report.by_source == {"textvqa": 1}
    convert(source, tmp_path / "report" / "index.parquet", SplitRule(0, 0.0, 0.0), tmp_path / "out")
    (record,) = read_records(tmp_path / "out", "train")
    assert (record.question, record.answer) == ("what is the brand of phone?", "nokia")
    assert record.reference_steps == tuple(steps)
    assert (record.choices, record.options, record.offered(), record.source) == ((), (), (), "textvqa")
    assert record.image == (tmp_path / "phone.jpg").read_bytes()


def test_a_lone_dataset_is_the_split_train(save: Save, table: Table, encoded: Encoded) -> None:
    assert open_place(save(table([encoded()] * 3))).rows == {"train": 3}


def test_the_splits_of_a_dataset_dict_keep_their_names(save: Save, table: Table, encoded: Encoded) -> None:
    source = open_place(save(train=table([encoded()] * 3), test=table([encoded("blue")])))
    assert source.rows == {"train": 3, "test": 1}
    assert [record.image for record in source.records("test")] == [encoded("blue")]


@pytest.mark.parametrize("name", ["val", "dev", "valid", "Validation"])
def test_every_usual_name_of_the_validation_split_is_known(
    save: Save, table: Table, encoded: Encoded, name: str
) -> None:
    assert open_place(save(train=table([encoded()]), **{name: table([encoded("blue")])})).rows == {
        "train": 1,
        "validation": 1,
    }


@pytest.mark.parametrize("names", [("train", "testA"), ("train", "holdout"), ("train", "val", "dev")])
def test_a_split_that_may_have_been_held_out_is_refused_and_not_trained_on(
    save: Save, table: Table, encoded: Encoded, names: tuple[str, ...], refused: Refused
) -> None:
    said = refused(DataError, save(**{name: table([encoded()]) for name in names}))
    assert all(name in said for name in names)
    assert "name them train, validation and test" in said


def test_every_row_has_an_id_its_own_or_its_place(save: Save, table: Table, encoded: Encoded) -> None:
    own = open_place(save(table([encoded()] * 2, id=["x", "y"]), "own"))
    place = open_place(save(table([encoded()] * 2), "place"))
    assert [record.id for record in own.records("train")] == ["x", "y"]
    assert [record.id for record in place.records("train")] == ["train/00000000", "train/00000001"]


def test_the_fingerprint_stays_until_a_file_changes(save: Save, table: Table, encoded: Encoded) -> None:
    folder = save(table([encoded()]))
    first = open_place(folder).fingerprint
    assert open_place(folder).fingerprint == first
    (Path(folder) / "note.txt").write_text("new")
    assert open_place(folder).fingerprint != first


@pytest.mark.parametrize("column", ["image", "question", "answer", "reference_steps"])
def test_a_missing_column_is_named_with_those_there(
    save: Save, table: Table, encoded: Encoded, column: str, refused: Refused
) -> None:
    message = refused(DataError, save(table([encoded()], **{column: None})))
    assert f"lacks the column {column}; it has " in message


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("answer", [1], "holds int64, not text"),
        ("answer", [["red", "crimson"]], "not text"),
        ("question", [b"what?"], "not text"),
        ("reference_steps", ["One step."], "holds string, not lists of text"),
        ("choices", ["red, blue"], "not lists of text"),
        ("options", [[1, 2]], "not lists of text"),
        ("image", [7], "not pictures"),
    ],
)
def test_a_column_of_another_kind_is_named_with_what_it_should_hold(
    save: Save, table: Table, encoded: Encoded, column: str, values: list[Any], words: str, refused: Refused
) -> None:
    rows = table([encoded()], **{column: None}) if column != "image" else table([b""]).remove_columns("image")
    message = refused(DataError, save(rows.add_column(column, values)))
    assert f"the column {column} of " in message
    assert words in message


def test_an_empty_data_set_is_refused(save: Save, table: Table, encoded: Encoded, refused: Refused) -> None:
    assert "holds no rows" in refused(DataError, save(table([]), "empty"))
    nothing = table([encoded()]).select([])
    assert "holds no rows" in refused(DataError, save(nothing, "selected"))
    assert "holds no rows" in refused(DataError, save(None, "dict", train=nothing, test=nothing))


@pytest.mark.parametrize("damage", ["half", "head", "empty", "state"])
def test_a_damaged_folder_is_refused(save: Save, table: Table, encoded: Encoded, damage: str, refused: Refused) -> None:
    folder = save(table([encoded(number) for number in range(20)]))
    arrow = next(Path(folder).rglob("*.arrow"))
    data = arrow.read_bytes()
    if damage == "state":
        (Path(folder) / "state.json").write_text("{")
    else:
        arrow.write_bytes({"half": data[: len(data) // 2], "head": b"x" * 200 + data[200:], "empty": b""}[damage])
    assert f"{folder} cannot be read: " in refused(DataError, folder)


def test_pictures_may_be_files_of_the_folder_and_of_no_other(
    save: Save, tmp_path: Path, encoded: Encoded, table: Table
) -> None:
    (tmp_path / "outside.png").write_bytes(encoded())
    folder = tmp_path / "saved"
    files = ["in/there.png", str(folder / "in" / "there.png"), "in/gone.png", str(tmp_path / "outside.png")]
    rows = table([b""] * 4).remove_columns("image").add_column("image", files)
    source = open_place(save(rows))  # as text: an Image column would have been saved with the pictures in it
    (folder / "in").mkdir()
    (folder / "in" / "there.png").write_bytes(encoded())
    found = [row for _, row in source.read("train", WHOLE)]
    assert [row.image for row in found if isinstance(row, Record)] == [encoded(), encoded(), b""]
    assert isinstance(found[3], Unreadable)
    assert "lies outside of" in found[3].sentence


def test_the_same_folder_reads_the_same_from_s3(
    save: Save, table: Table, encoded: Encoded, files_of: Callable[..., dict[str, bytes]], s3: str
) -> None:
    rows = table([encoded(number) for number in range(250)])
    folder = save(train=rows, test=table([encoded("blue")]))
    for name, data in files_of(Path(folder)).items():
        open_store(f"{s3}/saved-folder").write(name, data)
    here, there = open_place(folder), open_place(f"{s3}/saved-folder")
    assert (there.rows, there.exact) == ({"train": 250, "test": 1}, True)
    for split in here.rows:
        assert list(there.records(split)) == list(here.records(split))


def test_reading_writes_nothing_beside_the_data(save: Save, table: Table, encoded: Encoded, files_of: Any) -> None:
    folder = save(table([encoded()] * 5))
    before = files_of(Path(folder))
    list(open_place(folder).records("train"))
    assert files_of(Path(folder)) == before


def test_several_files_and_batches_are_one_split_in_order(tmp_path: Path, table: Table, encoded: Encoded) -> None:
    table([encoded(number) for number in range(1201)]).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    source = open_place(str(tmp_path / "saved"))
    assert source.rows == {"train": 1201}
    found = list(source.read("train", Part(1, 2)))
    assert [number for number, _ in found] == list(range(1000, 1201))
    assert all(isinstance(row, Record) and row.image == encoded(number) for number, row in found)
    assert [number for number, _ in source.read("train", Part(limit=7))] == list(range(7))


def test_columns_of_other_names_are_mapped(save: Save, table: Table, encoded: Encoded) -> None:
    folder = save(table([encoded()]).rename_column("question", "problem").rename_column("answer", "solution"))
    source = open_place(folder, {"question": "problem", "answer": "solution"})
    (record,) = source.records("train")
    assert (record.question, record.answer) == ("question 0?", "red")


def test_a_file_that_loses_its_end_while_it_is_read_is_named(save: Save, table: Table, encoded: Encoded) -> None:
    folder = save(table([encoded(number) for number in range(300)]))
    source = open_place(folder)
    arrow = next(Path(folder).rglob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:-20_000])
    with pytest.raises(DataError, match=rf"{arrow.name} cannot be read: it breaks off"):
        list(source.records("train"))


def test_a_file_without_its_end_mark_is_refused(save: Save, table: Table, encoded: Encoded, refused: Refused) -> None:
    """What a killed writer leaves: every batch whole, and nobody knows how many are missing."""
    folder = save(table([encoded()] * 3))
    arrow = next(Path(folder).rglob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:-8])
    assert "cannot be read" in refused(DataError, folder)


@given(st.data())
@settings(max_examples=60)
def test_a_damaged_file_is_one_line_or_rows_and_never_a_crash(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "saved"
        rows = {
            "image": [b"x" * 50] * 20,
            "question": ["q"] * 20,
            "answer": ["a"] * 20,
            "reference_steps": [["s"]] * 20,
        }
        datasets.Dataset.from_dict(rows).save_to_disk(str(folder))
        arrow = next(folder.rglob("*.arrow"))
        damaged = bytearray(arrow.read_bytes())
        for _ in range(data.draw(st.integers(1, 8))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        arrow.write_bytes(damaged)
        said = ""
        try:
            assert len(list(open_place(str(folder)).read("train", WHOLE))) <= 20
        except DataError as error:
            said = str(error)
        assert "\n" not in said
