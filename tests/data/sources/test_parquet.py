"""Parquet in each form that pictures take in it; parts of it; what is damaged or of another kind."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import WHOLE, Part, Unreadable
from vqa_grpo.data.sources import open_place

Lay, Encoded, Refused = Callable[..., str], Callable[..., bytes], Callable[..., str]


def parquet(image: Any, group: int = 1000, **columns: Any) -> bytes:
    images = image if isinstance(image, pa.Array) else pa.array(image)
    rows = {"image": images, "question": ["what?"] * len(images), "answer": ["red"] * len(images)} | columns
    file = io.BytesIO()
    pq.write_table(pa.table(rows), file, row_group_size=group)
    return file.getvalue()


def test_pictures_are_structs_or_bytes_or_names(lay: Lay, encoded: Encoded, asked: Callable[..., Any]) -> None:
    forms: list[Any] = [{"bytes": encoded(), "path": None}, encoded(), "images/1.png", ["images/1.png"]]
    for form in forms:
        source = open_place(lay({"train.parquet": parquet([form, None]), "images/1.png": encoded()}))
        assert (source.rows, source.exact) == ({"train": 2}, True)
        assert asked(source) == [(encoded(), "what?", "red"), (b"", "what?", "red")]


def test_what_datasets_writes_is_read_in_its_splits(lay: Lay, table: Any, encoded: Encoded, rows_of: Any) -> None:
    files = {}
    for name, colour in {"train-00000-of-00002": 1, "train-00001-of-00002": 2, "validation-00000-of-00001": 3}.items():
        file = io.BytesIO()
        table([encoded(colour)]).to_parquet(file)
        files[f"data/{name}.parquet"] = file.getvalue()
    source = open_place(lay(files))
    assert source.rows == {"train": 2, "validation": 1}
    assert [row.image for row in rows_of(source)] == [encoded(1), encoded(2)]
    assert rows_of(source, "validation") == [
        Record(encoded(3), "question 0?", "red", ("One step.",), id="validation/00000000")
    ]


def test_lists_labels_and_conversations_are_read(on_disk: Lay, rows_of: Any) -> None:
    choices = [{"text": ["red", "blue"], "label": ["1", "2"]}]
    (found,) = rows_of(open_place(on_disk({"x.parquet": parquet(["1.png"], choices=choices, answer=["2"])})))
    assert (found.choices, found.answer) == (("red", "blue"), "blue")
    said = [[{"from": "human", "value": "<image>How many?"}, {"from": "gpt", "value": "3"}]]
    file = io.BytesIO()
    pq.write_table(pa.table({"image": ["1.png"], "conversations": said}), file)
    (found,) = rows_of(open_place(on_disk({"x.parquet": file.getvalue()})))
    assert (found.question, found.answer) == ("How many?", "3")


def test_numbers_are_texts(on_disk: Lay, rows_of: Any) -> None:
    rows = parquet(["1.png"] * 2, answer=[5.0, None], options=[[1, 2], None])
    first, second = rows_of(open_place(on_disk({"x.parquet": rows})))
    assert (first.answer, first.options, second.answer, second.options) == ("5.0", ("1", "2"), "", ())


def test_the_numbers_of_class_labels_are_refused(on_disk: Lay, refused: Refused) -> None:
    rows = datasets.Dataset.from_dict({"image": ["1.png"], "question": ["what?"], "answer": ["red"]})
    file = io.BytesIO()
    rows.cast_column("answer", datasets.ClassLabel(names=["red", "blue"])).to_parquet(file)
    said = refused(DataError, on_disk({"x.parquet": file.getvalue()}))
    assert "the column answer of " in said
    assert "holds the numbers of a ClassLabel, not text" in said


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"question": [1.5]}, None),
        ({"answer": [["red"]]}, "holds list<element: string>, not text"),
        ({"reference_steps": ["One step."]}, "holds string, not lists of text"),
        ({"options": [{"A": "red"}]}, "holds struct<A: string>, not lists of text"),
        ({"image": [7]}, "holds int64, not pictures"),
    ],
)
def test_a_column_of_another_kind_is_named(
    on_disk: Lay, refused: Refused, columns: dict[str, Any], words: str | None
) -> None:
    place = on_disk({"x.parquet": parquet(**({"image": ["1.png"]} | columns))})
    if words:
        assert words in refused(DataError, place)
    else:
        assert len(list(open_place(place).records("train"))) == 1


def test_a_missing_column_is_named_and_can_be_mapped(on_disk: Lay, refused: Refused) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"img": ["1.png"], "question": ["what?"], "answer": ["red"]}), file)
    place = on_disk({"x.parquet": file.getvalue()})
    said = refused(DataError, place)
    assert "x.parquet lacks the column image; it has img, question, answer: " in said
    assert "--set data.columns.image=…" in said
    assert len(list(open_place(place, {"image": "img"}).records("train"))) == 1


def test_row_groups_without_wanted_rows_are_not_read(on_disk: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = parquet([f"{number}.png" for number in range(3500)], group=500)
    source = open_place(on_disk({"x.parquet": rows}))
    read: list[int] = []
    iterate = pq.ParquetFile.iter_batches

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        read.extend(options["row_groups"])
        return iterate(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert [number for number, _ in source.read("train", Part(1, 3))] == list(range(1000, 2000))
    assert read == [2, 3]
    read.clear()
    assert len(list(source.read("train", Part(limit=10)))) == 10
    assert read == [0]


@pytest.mark.parametrize("damage", ["half", "head", "empty"])
def test_a_damaged_file_is_named_in_one_line(lay: Lay, refused: Refused, damage: str) -> None:
    data = parquet([bytes([number % 256]) * 5000 + str(number).encode() for number in range(500)])
    half = len(data) // 2
    damaged = {
        "half": data[:half],
        "head": b"x" * 4000 + data[4000:],
        "empty": b"",
    }[damage]
    said = refused(DataError, lay({"good.parquet": parquet(["1.png"]), "x.parquet": damaged}))
    assert "/x.parquet cannot be read: " in said


def test_a_text_that_is_not_utf8_is_a_row_of_its_own(on_disk: Lay, rows_of: Any) -> None:
    texts = pa.array([b"what?", b"\xff\xfe", b"what?"]).view(pa.string())
    first, second, third = rows_of(open_place(on_disk({"x.parquet": parquet(["1.png"] * 3, question=texts)})))
    assert isinstance(first, Record)
    assert second == Unreadable("train/00000001", "the row is not UTF-8: invalid start byte")
    assert isinstance(third, Record)


@given(data=st.data())
def test_damage_anywhere_is_one_line_or_rows_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = parquet([b"x" * 20] * 10, options=[["a", "b"]] * 10)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    place = tmp_path_factory.mktemp("parquet")
    (place / "x.parquet").write_bytes(damaged)
    said = ""
    try:
        list(open_place(str(place)).read("train", WHOLE))
    except DataError as error:
        said = str(error)
    assert "\n" not in said
