"""What is wrong with a row's texts is found, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.record import Record
from vqa_grpo.data import checks
from vqa_grpo.data.checks import CODES, MAX_STEP_WORDS, Problem, is_visible, storable, text_problems

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))  # lone surrogates too
ANY_TEXTS = st.lists(ANY_TEXT, max_size=4).map(tuple)


def problems(wants_steps: bool = False, **changes: Any) -> list[Problem]:
    record = Record(**{"image": b"", "question": "Which?", "answer": "red"} | changes)
    return list(text_problems(record, wants_steps))


def codes(wants_steps: bool = False, **changes: Any) -> list[tuple[str, bool]]:
    return [(problem.code, problem.fatal) for problem in problems(wants_steps, **changes)]


def test_a_good_row_has_no_problem() -> None:
    assert codes() == codes(wants_steps=True, reference_steps=("One.",)) == []


def test_the_guides_own_row_has_no_problem() -> None:
    steps = (
        "Check for visible text related to brands on the mobile phone in the image.",
        "Identify the brand text 'NOKIA' in close proximity to the mobile phone.",
        "Verify there are no other text labels or logos visible on the mobile phone.",
        "Return the exact answer string.",
    )
    row = {"question": "what is the brand of phone?", "answer": "nokia", "source": "textvqa"}
    assert codes(True, reference_steps=steps, **row) == []


# --- characters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", ["", " ", "\n\t", "\u200b\u200d", "\ufeff", "\u00ad", "\u3164", "\u2800", "\ufe0f"])
def test_an_empty_question_or_answer_is_found(empty: str) -> None:
    assert codes(question=empty) == [("question_empty", True)]
    assert codes(answer=empty) == [("answer_empty", True)]
    assert codes(answer=empty, options=("red",)) == [("answer_empty", True)]


@pytest.mark.parametrize("text", ["0", "-", ".", "😀", "红", "\u200bred", "é", "नि"])
def test_whatever_can_be_seen_is_not_empty(text: str) -> None:
    assert is_visible(text)
    assert codes(question=text, answer=text) == []


@pytest.mark.parametrize("column", ["question", "answer", "source", "id", "reference_steps", "choices", "options"])
@pytest.mark.parametrize("bad", ["a\ud800b", "a\udc80", "a\0b"])
def test_what_no_file_can_hold_is_found_in_every_column(column: str, bad: str) -> None:
    listed = column in ("reference_steps", "choices", "options")
    found = problems(**{column: (bad, "red") if listed else bad})
    assert [(problem.code, problem.fatal) for problem in found] == [("text_encoding", True)]
    found[0].sentence.encode()


@pytest.mark.parametrize("text", ["cafÃ©", "itâ€™s", "20Â°", "\ufffd", "ðŸ˜€", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "ä¸­æ–‡"])
def test_a_text_that_was_read_in_a_wrong_encoding_is_worth_a_look(text: str) -> None:
    assert codes(question=f"What is {text}?") == [("text_mojibake", False)]


@pytest.mark.parametrize("text", ["café", "it’s", "20°", "»Spaß«", "привет", "中文", "NÃO", "São", "“Â”", "«é»"])
def test_letters_with_marks_are_no_mojibake(text: str) -> None:
    assert codes(question=text) == []


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["red", "RED", " Red ", "A", "b", "(C)", "B.", "c)", "[a]"])
@pytest.mark.parametrize("column", ["choices", "options"])
def test_an_answer_may_be_an_option_or_its_letter(column: str, answer: str) -> None:
    assert codes(answer=answer, **{column: ("red", "green", "blue")}) == []


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        ("1000", ("1,000", "2,000")),
        ("B) 2010", ("2003", "2010")),
        ("2010", ("A) 2003", "B) 2010")),
        ("red, blue", ("red", "green", "blue")),
        ("x", ("x", "y")),
        ("dark  red", ("Dark red", "green")),
    ],
)
def test_what_the_grader_takes_for_an_option_is_one(answer: str, options: tuple[str, ...]) -> None:
    assert codes(answer=answer, options=options) == []


@pytest.mark.parametrize("answer", ["yellow", "AB", "re", "Å", "1", "[", "@", "A) green"])
def test_an_answer_that_nobody_could_choose_is_found(answer: str) -> None:
    assert codes(answer=answer, options=("red", "green", "blue")) == [("answer_not_offered", True)]


@pytest.mark.parametrize("answer", ["D", "(z)", "e."])
def test_a_letter_that_no_option_has_is_found(answer: str) -> None:
    found = problems(answer=answer, options=("red", "green", "blue"))
    assert [problem.code for problem in found] == ["answer_letter_out_of_range"]
    assert "beyond C, the last of 3 options" in found[0].sentence


def test_the_choices_count_where_both_columns_are_filled() -> None:
    assert codes(answer="red", choices=("blue",), options=("red",)) == [("answer_not_offered", True)]


@pytest.mark.parametrize("answer", ["red", "A", "c"])
def test_an_answer_that_is_offered_twice_keeps_the_row_out(answer: str) -> None:
    assert codes(answer=answer, options=("red", "blue", " RED")) == [("answer_ambiguous", True)]


def test_a_wrong_option_that_is_offered_twice_is_worth_a_look() -> None:
    assert codes(answer="blue", options=("red", "blue", " RED")) == [("options_duplicate", False)]


# --- reference steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(), ("",), (" ", "\u200b")])
def test_missing_steps_are_worth_a_look_only_where_they_are_used(steps: tuple[str, ...]) -> None:
    assert codes(wants_steps=True, reference_steps=steps) == [("steps_missing", False)]
    assert codes(wants_steps=False, reference_steps=steps) == []


def test_a_step_has_no_more_words_than_the_guide_allows() -> None:
    assert codes(reference_steps=("word " * MAX_STEP_WORDS,)) == []
    assert codes(reference_steps=("word " * (MAX_STEP_WORDS + 1),)) == [("step_long", False)]


@pytest.mark.parametrize(
    "step",
    [
        "It is red because it is ripe.",
        "Therefore it is red.",
        "The sign is lit so that it is seen.",
        "It is ripe, so it is red.",
    ],
)
def test_a_chain_of_reasons_is_found(step: str) -> None:
    assert codes(reference_steps=(step,)) == [("step_chained", False)]


@pytest.mark.parametrize(
    "step", ["The bar is red; it is tall.", "It is red. It is tall.", "It is red, and it is tall."]
)
def test_a_step_of_several_clauses_is_found(step: str) -> None:
    assert codes(reference_steps=(step,)) == [("step_clauses", False)]


@pytest.mark.parametrize(
    "step",
    [
        "The sign says 'STOP; GO'.",
        'It reads "Open. Come in, and sit".',
        "The bars are red, green and blue.",
        "The year is 2.5 times as long.",
        "It is so red.",
        "The dog's and the cat's bowls differ.",
    ],
)
def test_one_clause_stays_one_clause(step: str) -> None:
    assert codes(reference_steps=(step,)) == []


def test_a_row_has_a_code_once_and_the_sentence_says_where() -> None:
    (problem,) = problems(reference_steps=("Fine.", "Therefore a.", "Therefore b.", "Thus c."))
    assert problem.sentence == "step 2 is a chain of reasons, and 2 more: 'Therefore a.'"


# --- any text at all --------------------------------------------------------------------------------------------


@given(ANY_TEXT, ANY_TEXT, ANY_TEXTS, ANY_TEXTS, ANY_TEXTS, st.booleans())
def test_no_text_makes_the_checks_raise(
    question: str, answer: str, steps: tuple[str, ...], choices: tuple[str, ...], options: tuple[str, ...], wants: bool
) -> None:
    row = {"question": question, "answer": answer, "reference_steps": steps, "choices": choices, "options": options}
    found = problems(wants, **row)
    assert len({problem.code for problem in found}) == len(found)
    assert {problem.code for problem in found} <= set(CODES)
    assert not any("\n" in storable(problem.sentence) for problem in found)


@given(ANY_TEXT)
def test_every_text_has_a_form_that_can_be_stored(text: str) -> None:
    storable(text).encode("utf-8")


def test_the_page_about_data_explains_every_code() -> None:
    page = (Path(checks.__file__).parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (?:fatal|look) \| (.*) \|$", page, re.MULTILINE)
    assert dict(rows) == CODES
