"""What is asked, of which rank, and how the answers are counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.training.validation import Tally, judge, rates, sample, share, total

ROW: dict[str, Any] = {"answer": "red", "choices": [], "options": [], "source": "easy_vqa/color"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"reasoning_steps": ["It is red.", "So: red."], "answer": "red"}', Tally(1, 1, 1, 0, 9, 2)),
        ('{"reasoning_steps": ["It is blue."], "answer": "blue"}', Tally(1, 0, 1, 0, 9, 1)),
        ('Sure! {"reasoning_steps": ["It is red."], "answer": "red"}', Tally(1, 1, 0, 0, 9, 1)),
        ("red", Tally(1, 0, 0, 0, 9, 0)),
    ],
)
def test_a_completion_is_counted_by_the_evaluation_s_rules(text: str, expected: Tally) -> None:
    assert judge(ROW, text, 9, False) == expected


def test_an_answer_may_have_several_golds_and_options() -> None:
    text = '{"reasoning_steps": ["Seen."], "answer": "B"}'
    assert judge(ROW | {"answer": "2010", "choices": ["2003", "2010"]}, text, 5, True).right == 1
    assert judge(ROW | {"answer": ["crimson", "red"]}, text.replace("B", "red"), 5, True).right == 1


def test_rates_are_over_all_questions() -> None:
    found = rates(total([Tally(3, 1, 2, 1, 30, 6), Tally(1, 1, 1, 0, 10, 2)]))
    assert found == {
        "eval_accuracy": 0.5,
        "eval_format_rate": 0.75,
        "eval_clipped_ratio": 0.25,
        "eval_mean_length": 10.0,
        "eval_steps": 2.0,
        "eval_questions": 4.0,
    }


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 9))
def test_ranks_share_the_sample_once_and_in_equal_numbers(rows: int, size: int, ranks: int) -> None:
    indices = sample(rows, size)
    assert len(indices) == (min(rows, size) or rows)
    assert indices == sample(rows, size)
    shares = [share(indices, rank, ranks) for rank in range(ranks)]
    assert len(set(map(len, shares))) == 1
    assert sorted(index for own in shares for index, counts in own if counts) == indices
