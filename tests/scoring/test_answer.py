"""Grading: the right answer is right however it is written, and no answer makes the grader raise."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.verdict import Verdict
from vqa_grpo.scoring.answer import grade, type_of

TYPES = ("choice", "yes_no", "number", "text")
TEXT = st.text(max_size=30)
OPTIONS = st.lists(st.text(min_size=1, max_size=8), max_size=6)


def check(verdict: Verdict) -> None:
    assert verdict.reward == (1.0 if verdict.correct else 0.0)
    assert verdict.gold_type in TYPES
    assert verdict.rule
    assert verdict.explanation


@given(st.none() | TEXT, st.lists(TEXT, min_size=1, max_size=3), OPTIONS)
def test_no_answer_makes_the_grader_raise(prediction: str | None, golds: list[str], options: list[str]) -> None:
    check(grade(prediction, golds, options))


NUMBERISH = st.text("0123456789.,+-eE%/ ٣²", max_size=400)


@given(NUMBERISH, NUMBERISH)
def test_no_number_makes_the_grader_raise(prediction: str, gold: str) -> None:
    check(grade(prediction, [gold]))


@given(TEXT)
def test_the_gold_answer_itself_is_right(gold: str) -> None:
    assert grade(gold, [gold]).correct


@given(st.lists(st.text(string.ascii_letters + " ", min_size=2).filter(str.strip), min_size=1, max_size=5), st.data())
def test_an_option_is_right_by_its_letter_and_by_its_words(options: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(options) - 1))
    letter = string.ascii_uppercase[place]
    assert grade(letter.lower(), [letter], options).correct
    unique = [" ".join(option.casefold().split()) for option in options]
    if unique.count(unique[place]) == 1 and len(unique[place]) > 1:
        assert grade(options[place], [letter], options).correct
        assert grade(letter, [options[place]], options).correct


@given(TEXT, TEXT, OPTIONS)
def test_the_kind_of_question_never_depends_on_the_prediction(one: str, gold: str, options: list[str]) -> None:
    assert grade(one, [gold], options).gold_type == grade(None, [gold], options).gold_type == type_of(gold, options)


@given(st.lists(TEXT, min_size=1, max_size=3), OPTIONS)
def test_no_answer_at_all_is_always_wrong(golds: list[str], options: list[str]) -> None:
    verdict = grade(None, golds, options)
    assert (verdict.correct, verdict.rule) == (False, "no_answer")


@pytest.mark.parametrize(
    ("gold", "options", "expected"),
    [
        ("Yes", (), "yes_no"),
        ("no.", (), "yes_no"),
        ("7", (), "number"),
        ("-1,000.50", (), "number"),
        (".5", (), "number"),
        ("5 cm", (), "text"),
        ("nokia", (), "text"),
        ("yes", ("yes", "no"), "choice"),
        ("7", ("7", "8"), "choice"),
    ],
)
def test_the_kind_is_read_off_the_gold_answer_and_the_options(
    gold: str, options: tuple[str, ...], expected: str
) -> None:
    assert type_of(gold, options) == expected


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [("Nokia", "nokia"), (" NOKIA. ", "nokia"), ("a  red   bus", "A red bus"), ("YES!", "yes"), ("1,000", "1000"),
     ("1000.0", "1000"), ("+7", "7"), ("0.50", ".5")],
)  # fmt: skip
def test_case_spaces_punctuation_and_spelling_of_numbers_do_not_matter(prediction: str, gold: str) -> None:
    assert grade(prediction, [gold]).correct


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [("2003", "2010"), ("7", "8"), ("0", "0.04"), ("", "nokia"), ("a", "Nokia phone"), ("not sure", "no"),
     ("yesterday", "yes"), ("incorrect", "yes"), ("7 or 8", "7"), ("5 cm", "5 m"), ("nan", "7"), ("inf", "7")],
)  # fmt: skip
def test_an_answer_that_is_only_near_is_wrong(prediction: str, gold: str) -> None:
    assert not grade(prediction, [gold]).correct


@pytest.mark.parametrize("prediction", ["B) 2003", "A", "D", "AB", "2004", "", "A B"])
def test_a_choice_that_is_another_or_none_is_wrong(prediction: str) -> None:
    assert not grade(prediction, ["B"], ["2003", "2010", "2015"]).correct


def test_any_of_several_gold_answers_is_right() -> None:
    assert grade("mobile phone", ["cell phone", "mobile phone"]).correct
    assert not grade("phone", ["cell phone", "mobile phone"]).correct


def test_an_option_that_stands_twice_is_not_a_letter() -> None:
    assert not grade("red", ["A"], ["red", "red"]).correct
