"""A row of somebody's columns becomes a record, or a sentence that says why it cannot; never an error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import Unreadable
from vqa_grpo.data.sources.records import Columns, record_of

ROW = {"image": b"picture", "question": "what?", "answer": "red"}


def load(name: str) -> bytes:
    return f"file {name}".encode()


def made(row: dict[str, Any], **columns: str) -> Record:
    found = record_of(ROW | row, Columns(columns), "train/00000007", load)
    assert isinstance(found, Record), found
    return found


def why_not(row: dict[str, Any]) -> str:
    found = record_of(ROW | row, Columns(), "train/00000007", load)
    assert isinstance(found, Unreadable)
    assert found.id == "train/00000007"
    return found.sentence


def test_a_row_without_optional_columns_is_a_record() -> None:
    assert made({}) == Record(b"picture", "what?", "red", id="train/00000007")


def test_columns_of_other_names_count_and_those_of_our_name_then_do_not() -> None:
    assert made({"problem": "which?", "label": "blue"}, question="problem", answer="label").question == "which?"
    assert made({"problem": "which?", "label": "blue"}, question="problem", answer="label").answer == "blue"


def test_a_misspelt_column_of_ours_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.columns\.qestion is no column of ours, did you mean question"):
        Columns({"qestion": "problem"})
    with pytest.raises(ConfigurationError, match="they are image, question, answer"):
        Columns({"zzz": "problem"})


def test_a_missing_column_is_named_with_what_is_there_and_the_setting_that_helps() -> None:
    with pytest.raises(DataError) as caught:
        Columns().require(["image", "problem", "answer"], "here")
    assert str(caught.value) == (
        "here lacks the column question; it has image, problem, answer: "
        "say what it is called with --set data.columns.question=…, or add it"
    )
    with pytest.raises(DataError, match="lacks the column solution"):
        Columns({"answer": "solution"}).require(ROW, "here")
    Columns().require(["image", "conversations"], "here")


def test_hostile_column_names_stay_one_short_line() -> None:
    with pytest.raises(DataError) as caught:
        Columns().require(["a\nb" * 1000] * 1000, "here")
    assert len(str(caught.value)) < 2000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "text"),
    [(5, "5"), (5.0, "5.0"), (-0.5, "-0.5"), (1e20, "1e+20"), (None, ""), (float("nan"), ""), (" red ", " red ")],
)
def test_numbers_count_as_the_text_they_print_and_nothing_as_empty(answer: Any, text: str) -> None:
    assert made({"answer": answer}).answer == text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer": True}, "the column answer holds true or false, not text"),
        ({"answer": ["red"]}, "the column answer holds a list, not text"),
        ({"question": {"text": "x"}}, "the column question holds an object, not text"),
        ({"question": b"x"}, "the column question holds bytes, not text"),
        ({"reference_steps": "One step."}, "the column reference_steps holds text, not a list of text"),
        ({"options": "red, blue"}, "the column options holds text, not a list of text"),
        ({"options": ["red", None]}, "not text"),
        ({"options": {"A": "red"}}, 'an object without "text"'),
        ({"choices": {"text": ["red", "blue"], "label": ["A"]}}, "has 1 labels for 2 options"),
        ({"image": 7}, "the picture is a number"),
        ({"image": ["1.png", "2.png"]}, "the row has 2 pictures"),
    ],
)
def test_a_cell_of_another_kind_is_a_sentence(row: dict[str, Any], words: str) -> None:
    assert words in why_not(row)


def test_options_may_be_texts_or_numbers_or_texts_with_labels() -> None:
    assert made({"options": ["red", 2, 2.5]}).options == ("red", "2", "2.5")
    assert made({"choices": {"text": ["red", "blue"], "label": ["A", "B"]}}).choices == ("red", "blue")
    assert made({"choices": {"text": ["red", "blue"]}, "options": None}).offered() == ("red", "blue")


def test_an_answer_that_is_a_label_of_its_own_kind_becomes_what_it_stands_for() -> None:
    options = {"text": ["red", "blue"], "label": ["1", "2"]}
    assert made({"choices": options, "answer": "2"}).answer == "blue"
    assert made({"options": options, "answer": 1}).answer == "red"
    assert made({"choices": options, "answer": "red"}).answer == "red"
    assert made({"choices": options | {"label": ["A", "B"]}, "answer": "B"}).answer == "B"


@pytest.mark.parametrize(
    ("image", "data"),
    [
        (b"bytes", b"bytes"),
        ("1.png", b"file 1.png"),
        (["1.png"], b"file 1.png"),
        ([], b""),
        (None, b""),
        ("", b""),
        ({"bytes": b"x", "path": "1.png"}, b"x"),
        ({"bytes": None, "path": "1.png"}, b"file 1.png"),
        ({"bytes": None, "path": None}, b""),
    ],
)
def test_a_picture_is_bytes_or_the_name_of_a_file_or_missing(image: Any, data: bytes) -> None:
    assert made({"image": image}).image == data


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"image": ["1.png"], "conversations": [{"from": who, "value": what} for who, what in said]}


def of_turns(*said: tuple[str, Any]) -> Record | Unreadable:
    return record_of(turns(*said), Columns(), "x", load)


@pytest.mark.parametrize("asked", ["<image>What number?", "<image>\nWhat number?", "What number?\n<image>"])
def test_a_conversation_is_a_question_and_its_answer(asked: str) -> None:
    assert of_turns(("human", asked), ("gpt", 5)) == Record(b"file 1.png", "What number?", "5", id="x")


def test_a_conversation_may_begin_with_a_system_turn_and_tag_its_answer() -> None:
    found = of_turns(("system", "Be brief."), ("user", "Which?"), ("assistant", "<answer> red </answer>"))
    assert found == Record(b"file 1.png", "Which?", "red", id="x")


@pytest.mark.parametrize(
    "said", [(), (("human", "a"),), (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")), (("gpt", "b"),)]
)
def test_a_conversation_of_several_questions_or_none_is_not_cut_down(said: tuple[tuple[str, str], ...]) -> None:
    found = of_turns(*said)
    assert isinstance(found, Unreadable)
    assert "give one row for each question" in found.sentence


def test_a_rows_own_id_is_kept_even_where_the_row_is_broken() -> None:
    assert made({"id": 17}).id == "17"
    assert made({"id": None}).id == "train/00000007"
    assert record_of(ROW | {"id": "mine", "answer": []}, Columns(), "x", load).id == "mine"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.sampled_from(["text", "label", "bytes"]), inner, max_size=3)
    ),
)
NAMES = st.sampled_from(
    ["image", "question", "answer", "reference_steps", "choices", "options", "source", "id", "conversations"]
)


@given(st.dictionaries(NAMES, VALUES))
def test_whatever_a_row_holds_is_a_record_of_texts_or_a_sentence(row: dict[str, Any]) -> None:
    found = record_of(row, Columns(), "x", load)
    if isinstance(found, Unreadable):
        assert found.sentence
        return
    texts = [found.question, found.answer, found.source, found.id]
    assert all(type(text) is str for text in [*texts, *found.choices, *found.options, *found.reference_steps])
    assert type(found.image) is bytes
    assert found.id
