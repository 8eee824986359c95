"""Match F1: between 0 and 1, earned once per reference step, and never raised by repetition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.scoring.steps import MAX_STEP_CHARACTERS, match_f1

STEPS = st.lists(
    st.text(max_size=20) | st.sampled_from(["a red circle", "the circle is red", "a blue box"]), max_size=8
)
WORDED = st.lists(st.text("abc ", min_size=1, max_size=10).filter(str.strip), min_size=1, max_size=8)


@given(STEPS, STEPS)
def test_every_score_is_a_share(steps: list[str], references: list[str]) -> None:
    score = match_f1(steps, references)
    if not references:
        assert score is None
        return
    assert score is not None
    assert 0 <= score.precision <= 1
    assert 0 <= score.recall <= 1
    assert min(score.precision, score.recall) - 1e-9 <= score.f1 <= max(score.precision, score.recall) + 1e-9


@given(WORDED)
def test_the_references_themselves_score_one(steps: list[str]) -> None:
    score = match_f1(steps, steps)
    assert score is not None
    assert score.f1 == 1.0


@given(WORDED)
def test_repeating_every_step_earns_nothing(references: list[str]) -> None:
    # Reference steps whose words differ, so that no repetition can match a second one.
    wanted = list({frozenset(step.split()): step for step in references}.values())
    once, twice = match_f1(wanted, wanted), match_f1(wanted * 2, wanted)
    assert once is not None
    assert twice is not None
    assert (twice.recall, twice.precision) == (once.recall, once.precision / 2)


@pytest.mark.parametrize("steps", [[], [""], ["..."], ["something else entirely"]])
def test_steps_that_say_nothing_of_the_references_score_zero(steps: list[str]) -> None:
    score = match_f1(steps, ["The image shows a red circle."])
    assert score is not None
    assert (score.precision, score.recall, score.f1) == (0, 0, 0)


def test_one_good_step_said_four_times_is_one_good_step() -> None:
    score = match_f1(["A red circle is shown."] * 4, ["A red circle is shown.", "It is large."])
    assert score is not None
    assert (score.precision, score.recall) == (0.25, 0.5)


def test_order_case_and_punctuation_do_not_matter() -> None:
    score = match_f1(["it IS large", "a red circle"], ["A red circle!", "It is large."])
    assert score is not None
    assert score.f1 == 1.0


def test_hundreds_of_long_steps_are_scored_by_their_beginning() -> None:
    long = "word " * MAX_STEP_CHARACTERS
    score = match_f1([f"{number} {long}" for number in range(500)], [f"{number} {long}" for number in range(500)])
    assert score is not None
    assert 0 < score.f1 < 1
