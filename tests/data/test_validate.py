"""Every bad row is found, named and put aside; too many of them stop the run."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data import validate
from vqa_grpo.data.checks import MAX_ASPECT, image_problem, problems
from vqa_grpo.data.sources import open_folder

Save, Table, Encoded = Callable[..., str], Callable[..., datasets.Dataset], Callable[..., bytes]


def code(data: bytes) -> str | None:
    problem = image_problem(data)
    assert problem is None or (problem.fatal and "\n" not in problem.sentence)
    return problem.code if problem else None


def bomb(width: int, height: int) -> bytes:
    """A few bytes that claim to be a huge PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# --- pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_good_picture_of_any_usual_kind_is_fine(encoded: Encoded, kind: str) -> None:
    assert code(encoded("red", kind)) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_a_good_picture_in_any_usual_mode_is_fine(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (20, 20)).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    assert code(buffer.getvalue()) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_that_was_cut_off_anywhere_is_found(encoded: Encoded, kind: str) -> None:
    whole = encoded("red", kind, (200, 200))
    for length in (1, 10, len(whole) // 2, len(whole) * 3 // 4):
        assert code(whole[:length]) == "image_undecodable"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "image_missing"),
        (b"this is no picture", "image_undecodable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_undecodable"),
        (bomb(12_000, 9_000), "image_bomb"),
        (bomb(50_000, 50_000), "image_bomb"),
        (bomb(1, 2_000_000_000), "image_bomb"),
    ],
    ids=["nothing", "text", "svg", "bomb", "a bomb for Pillow too", "a long bomb"],
)
def test_what_is_no_picture_has_a_code(data: bytes, expected: str) -> None:
    assert code(data) == expected


def test_a_picture_that_is_much_too_long_is_refused(encoded: Encoded) -> None:
    assert code(encoded(size=(MAX_ASPECT * 2, 2))) == "image_aspect"
    assert code(encoded(size=(2, MAX_ASPECT * 2))) == "image_aspect"
    assert code(encoded(size=(MAX_ASPECT * 2 - 1, 2))) is None


@given(st.data())
def test_no_damage_to_a_picture_makes_the_check_raise(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF"]))
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).save(buffer, kind)
    whole = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    code(bytes(whole))


# --- rows -------------------------------------------------------------------------------------------------------


def codes(wants_steps: bool = False, **changes: Any) -> list[tuple[str, bool]]:
    record = Record(**{"image": b"", "question": "Which?", "answer": "red"} | changes)
    return [(problem.code, problem.fatal) for problem in problems(record, None, wants_steps)]


def test_a_good_row_has_no_problem() -> None:
    assert codes() == codes(wants_steps=True, reference_steps=("One.",)) == []


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_an_empty_question_or_answer_is_found(empty: str) -> None:
    assert codes(question=empty) == [("question_empty", True)]
    assert codes(answer=empty) == [("answer_empty", True)]
    assert codes(answer=empty, options=("red",)) == [("answer_empty", True)]


@pytest.mark.parametrize("answer", ["red", "RED", " Red ", "A", "b", "C"])
@pytest.mark.parametrize("column", ["choices", "options"])
def test_an_answer_may_be_an_option_or_its_letter(column: str, answer: str) -> None:
    assert codes(answer=answer, **{column: ("red", "green", "blue")}) == []


@pytest.mark.parametrize("answer", ["yellow", "D", "AB", "re", "Å", "1", "[", "@"])
def test_an_answer_that_nobody_could_choose_is_found(answer: str) -> None:
    assert codes(answer=answer, options=("red", "green", "blue")) == [("answer_not_offered", True)]


def test_the_choices_count_where_both_columns_are_filled() -> None:
    assert codes(answer="red", choices=("blue",), options=("red",)) == [("answer_not_offered", True)]


def test_missing_steps_are_worth_a_look_only_where_they_are_used() -> None:
    assert codes(wants_steps=True) == [("steps_missing", False)]


# --- the whole source -------------------------------------------------------------------------------------------


@pytest.fixture
def bad(save: Save, table: Table, encoded: Encoded) -> str:
    """Eight rows, five of them bad in six ways, and one picture in two splits."""
    good = encoded()
    train = table(
        [good, encoded("blue")[:40], None, good, good, good, good],
        question=["Which?"] * 3 + ["", "Which?", "Which?", "Which?"],
        answer=["red", "red", "red", "", "yellow", "red", "blue"],
        options=[[], [], [], [], ["red", "blue"], ["red", "blue"], ["red", "blue"]],
        reference_steps=[["One."], ["One."], ["One."], ["One."], ["One."], [], ["One."]],
        source=["a", "a", "a", "a", "b", "b", "b"],
    )
    return save(train=train, test=table([good], answer=["  "]).add_column("source", ["b"]))


def test_bad_rows_are_counted_by_code_and_put_aside(bad: str, tmp_path: Path) -> None:
    report = validate.validate(open_folder(bad), wants_steps=True, quarantine=tmp_path / "quarantine.jsonl")
    assert report.rows == {"train": 7, "test": 1}
    assert report.invalid == 5
    assert report.by_code == {
        "image_undecodable": 1,
        "image_missing": 1,
        "question_empty": 1,
        "answer_empty": 2,
        "answer_not_offered": 1,
        "steps_missing": 1,
    }
    assert report.by_source == {"a": 4, "b": 4}
    assert report.pictures_in_several_splits == 1
    notes = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert {(note["id"], note["code"]) for note in notes} == {
        ("train/00000001", "image_undecodable"),
        ("train/00000002", "image_missing"),
        ("train/00000003", "question_empty"),
        ("train/00000003", "answer_empty"),
        ("train/00000004", "answer_not_offered"),
        ("test/00000000", "answer_empty"),
    }
    assert all(set(note) == {"id", "code", "sentence"} for note in notes)


def test_the_report_says_the_same_in_words(bad: str, tmp_path: Path) -> None:
    report = validate.validate(open_folder(bad), wants_steps=False)
    validate.write_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "8 rows, 5 unusable." in text
    assert "| answer_empty | 2 |" in text
    assert "1 pictures stand in more than one split." in text
    assert validate.DataReport(**json.loads((tmp_path / "report.json").read_text())) == report


def test_a_good_source_leaves_no_quarantine(save: Save, table: Table, encoded: Encoded, tmp_path: Path) -> None:
    report = validate.validate(open_folder(save(table([encoded()] * 3))), True, quarantine=tmp_path / "q.jsonl")
    assert (report.invalid, report.examples) == (0, [])
    assert not (tmp_path / "q.jsonl").exists()
    validate.refuse_if_bad(report, 0.0)


def test_too_many_bad_rows_stop_the_run_with_the_worst_as_an_example(bad: str) -> None:
    report = validate.validate(open_folder(bad), wants_steps=False)
    validate.refuse_if_bad(report, 5 / 8)
    with pytest.raises(DataError) as caught:
        validate.refuse_if_bad(report, 0.6)
    message = str(caught.value)
    assert "5 of 8 rows" in message
    assert "data.max_invalid_fraction 0.6" in message
    assert "most often answer_empty, e.g. row train/00000003: the answer is empty" in message


def test_only_a_few_examples_of_each_code_are_kept(save: Save, table: Table, encoded: Encoded) -> None:
    report = validate.validate(open_folder(save(table([encoded()] * 20, answer=[""] * 20))), False)
    assert report.by_code == {"answer_empty": 20}
    assert len(report.examples) == validate.SHOWN_PER_CODE


def test_a_limit_reads_only_the_first_rows_of_each_split(bad: str) -> None:
    report = validate.validate(open_folder(bad), False, limit=1)
    assert report.rows == {"train": 1, "test": 1}
    assert report.by_code == {"answer_empty": 1}


def test_a_picture_with_many_questions_is_decoded_once(
    save: Save, table: Table, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_folder(save(table([encoded()] * 6 + [encoded("blue")] * 6)))
    decoded: list[bytes] = []
    monkeypatch.setattr(validate, "image_problem", decoded.append)
    validate.validate(source, False)
    assert decoded == [encoded(), encoded("blue")]
