from __future__ import annotations

import pytest

from vqa_grpo.contract.failure import DataError
from vqa_grpo.quickstart.facts import Facts, gather, kind_of, question_sentence


@pytest.mark.parametrize(
    ("question", "kind", "sentence"),
    [
        ("what is the color of the circle?", "color", "The question asks for the color."),
        ("what color is the shape?", "color", "The question asks for the color."),
        ("what is the teal shape?", "shape", "The question asks for the shape."),
        ("what shape does the image contain?", "shape", "The question asks for the shape."),
        ("is a red shape present?", "yes-no", "The question asks if red is present."),
        ("does the image contain a circle?", "yes-no", "The question asks if a circle is present."),
        ("is no red shape present?", "yes-no-negated", "The question asks if red is absent."),
        ("is there not a triangle in the image?", "yes-no-negated", "The question asks if a triangle is absent."),
    ],
)
def test_a_question_is_understood_from_its_wording(question: str, kind: str, sentence: str) -> None:
    assert kind_of(question) == kind
    assert question_sentence(question) == sentence


@pytest.mark.parametrize(
    ("question", "answer", "facts"),
    [
        ("what is the blue shape?", "circle", Facts("blue", "circle")),
        ("what color is the triangle?", "gray", Facts("gray", "triangle")),
        ("what shape is present?", "circle", Facts(None, "circle")),
        ("is there a red shape?", "yes", Facts("red", None)),
        ("is there a red shape?", "no", Facts()),
        ("is there not a circle?", "no", Facts(None, "circle")),
        ("is no red shape present?", "yes", Facts()),
    ],
)
def test_an_answer_gives_away_what_it_says_and_no_more(question: str, answer: str, facts: Facts) -> None:
    assert gather([("picture", question, answer)]) == {"picture": facts}


def test_the_facts_of_a_picture_add_up_and_stay_apart_from_other_pictures() -> None:
    rows = [
        (1, "is there a red shape?", "yes"),
        (2, "what shape is present?", "circle"),
        (1, "is a triangle present?", "yes"),
    ]
    assert gather(rows) == {1: Facts("red", "triangle"), 2: Facts(None, "circle")}


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (Facts("red", "circle"), "The image shows a red circle."),
        (Facts("red", None), "The image shows a red shape."),
        (Facts(None, "circle"), "The image shows a circle."),
        (Facts(), "The image shows a shape."),
    ],
)
def test_an_unknown_fact_is_left_out_of_the_sentence(facts: Facts, sentence: str) -> None:
    assert facts.sentence() == sentence


def test_a_question_of_another_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="how many"):
        kind_of("how many horses are there?")
