"""A saved data set is opened as the guide writes it, and one that cannot serve is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from vqa_grpo.contract.failure import ConfigurationError, DataError, StepError
from vqa_grpo.data import validate
from vqa_grpo.data.convert import SplitRule, convert, read_records
from vqa_grpo.data.sources import open_folder

Save, Table, Encoded = Callable[..., str], Callable[..., datasets.Dataset], Callable[..., bytes]


def refused(kind: type[StepError], path: str) -> str:
    with pytest.raises(kind) as caught:
        open_folder(path)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    source = open_folder(save(datasets.Dataset.from_dict(data)))
    report = validate.validate(source, wants_steps=True)
    assert (report.total, report.invalid, report.by_code) == (1, 0, {})
    assert report.by_source == {"textvqa": 1}
    convert(source, SplitRule(0, 0.0, 0.0), tmp_path / "out")
    (record,) = read_records(tmp_path / "out", "train")
    assert (record.question, record.answer) == ("what is the brand of phone?", "nokia")
    assert record.reference_steps == tuple(steps)
    assert (record.choices, record.options, record.offered(), record.source) == ((), (), (), "textvqa")
    assert record.image == (tmp_path / "phone.jpg").read_bytes()


def test_a_lone_dataset_is_the_split_train(save: Save, table: Table, encoded: Encoded) -> None:
    assert open_folder(save(table([encoded()] * 3))).rows == {"train": 3}


def test_the_splits_of_a_dataset_dict_keep_their_names(save: Save, table: Table, encoded: Encoded) -> None:
    source = open_folder(save(train=table([encoded()] * 3), test=table([encoded("blue")])))
    assert source.rows == {"train": 3, "test": 1}
    assert [record.image for record in source.records("test")] == [encoded("blue")]


@pytest.mark.parametrize("name", ["val", "dev", "valid", "Validation"])
def test_every_usual_name_of_the_validation_split_is_known(
    save: Save, table: Table, encoded: Encoded, name: str
) -> None:
    assert open_folder(save(train=table([encoded()]), **{name: table([encoded("blue")])})).rows == {
        "train": 1,
        "validation": 1,
    }


@pytest.mark.parametrize("names", [("train", "testA"), ("train", "holdout"), ("train", "val", "dev")])
def test_a_split_that_may_have_been_held_out_is_refused_and_not_trained_on(
    save: Save, table: Table, encoded: Encoded, names: tuple[str, ...]
) -> None:
    said = refused(DataError, save(**{name: table([encoded()]) for name in names}))
    assert all(name in said for name in names)
    assert "name them train, validation and test" in said


def test_every_row_has_an_id_its_own_or_its_place(save: Save, table: Table, encoded: Encoded) -> None:
    own = open_folder(save(table([encoded()] * 2, id=["x", "y"]), "own"))
    place = open_folder(save(table([encoded()] * 2), "place"))
    assert [record.id for record in own.records("train")] == ["x", "y"]
    assert [record.id for record in place.records("train")] == ["train/00000000", "train/00000001"]


def test_the_fingerprint_stays_until_a_file_changes(save: Save, table: Table, encoded: Encoded) -> None:
    folder = save(table([encoded()]))
    first = open_folder(folder).fingerprint
    assert open_folder(folder).fingerprint == first
    (Path(folder) / "note.txt").write_text("new")
    assert open_folder(folder).fingerprint != first


@pytest.mark.parametrize("column", ["image", "question", "answer", "reference_steps"])
def test_a_missing_column_is_named_with_those_there(save: Save, table: Table, encoded: Encoded, column: str) -> None:
    message = refused(DataError, save(table([encoded()], **{column: None})))
    assert f"lacks the column {column}; it has " in message


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("answer", [1], "holds Value('int64'), not text"),
        ("answer", [["red", "crimson"]], "not text"),
        ("question", [b"what?"], "not text"),
        ("reference_steps", ["One step."], "holds Value('string'), not lists of text"),
        ("choices", ["red, blue"], "not lists of text"),
        ("options", [[1, 2]], "not lists of text"),
        ("image", [7], "not pictures"),
    ],
)
def test_a_column_of_another_kind_is_named_with_what_it_should_hold(
    save: Save, table: Table, encoded: Encoded, column: str, values: list[Any], words: str
) -> None:
    rows = table([encoded()], **{column: None}) if column != "image" else table([b""]).remove_columns("image")
    message = refused(DataError, save(rows.add_column(column, values)))
    assert f"the column {column} of " in message
    assert words in message


def test_an_empty_data_set_is_refused(save: Save, table: Table, encoded: Encoded) -> None:
    assert "holds no rows" in refused(DataError, save(table([]), "empty"))
    nothing = table([encoded()]).select([])
    assert "holds no rows" in refused(DataError, save(nothing, "selected"))
    assert "holds no rows" in refused(DataError, save(None, "dict", train=nothing, test=nothing))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refused(ConfigurationError, str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in refused(ConfigurationError, str(tmp_path / "file"))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"x")
    assert "was not made by datasets.save_to_disk" in refused(ConfigurationError, str(tmp_path))


@pytest.mark.parametrize("damage", ["half", "head", "empty", "state"])
def test_a_damaged_folder_is_refused(save: Save, table: Table, encoded: Encoded, damage: str) -> None:
    folder = save(table([encoded(number) for number in range(20)]))
    arrow = next(Path(folder).rglob("*.arrow"))
    data = arrow.read_bytes()
    if damage == "state":
        (Path(folder) / "state.json").write_text("{")
    else:
        arrow.write_bytes({"half": data[: len(data) // 2], "head": b"x" * 200 + data[200:], "empty": b""}[damage])
    assert f"{folder} cannot be read: " in refused(DataError, folder)


def test_pictures_may_be_files_beside_the_data(save: Save, tmp_path: Path, encoded: Encoded, table: Table) -> None:
    (tmp_path / "there.png").write_bytes(encoded())
    files = [str(tmp_path / "there.png"), str(tmp_path / "gone.png")]
    rows = table([b"", b""]).remove_columns("image").add_column("image", files)
    source = open_folder(save(rows))  # as text: an Image column would have been saved with the pictures in it
    assert [record.image for record in source.records("train")] == [encoded(), b""]
