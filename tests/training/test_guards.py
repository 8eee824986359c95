"""Each guard by a table of histories: what it says, and what it keeps quiet about."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.training.guards import Limits, examine

LIMITS = Limits(patience=3)
Rows = list[dict[str, Any]]


def rows(**columns: list[Any]) -> Rows:
    """One row of the log for each value; shorter columns end early."""
    count = max(map(len, columns.values()))
    plain = {name.replace("__", "/"): values for name, values in columns.items()}
    return [{name: values[row] for name, values in plain.items() if row < len(values)} for row in range(count)]


def verdicts(history: Rows, limits: Limits = LIMITS) -> list[tuple[str, str]]:
    return [(finding.guard, "stop" if finding.stop else "warn") for finding in examine(history, limits)]


NAN, INF = math.nan, math.inf
ACCURACY = "rewards__accuracy__mean"
LENGTH, CLIPPED, VALID = "completions__mean_length", "completions__clipped_ratio", "format__outcome__valid"

TABLE: dict[str, tuple[Rows, list[tuple[str, str]]]] = {
    "nothing logged yet": ([], []),
    "a healthy row": (rows(loss=[0.1], reward=[1.0], grad_norm=[0.3]), []),
    "a loss of NaN": (rows(loss=[0.1, NAN]), [("not_finite", "stop")]),
    "a loss that was NaN and is not": (rows(loss=[NAN, 0.1]), []),
    "an infinite reward": (rows(loss=[0.1], reward=[-INF]), [("not_finite", "stop")]),
    "a gradient of NaN": (rows(loss=[0.1], grad_norm=[NAN]), [("not_finite", "stop")]),
    "a reward that applied to nothing": (rows(loss=[0.1], reward=[None]), []),
    "no spread from the start": (rows(frac_reward_zero_std=[1.0] * 3), [("no_spread", "stop")]),
    "no spread, but not for long": (rows(frac_reward_zero_std=[1.0] * 2), []),
    "no spread any more": (rows(frac_reward_zero_std=[0.5, 1.0, 1.0, 1.0]), [("no_spread", "warn")]),
    "spread now and then": (rows(frac_reward_zero_std=[1.0, 1.0, 0.9, 1.0, 1.0]), []),
    "format lost": (rows(**{VALID: [0.4, 0.9, 0.1, 0.1, 0.0]}), [("format_collapse", "stop")]),
    "format lost for a moment": (rows(**{VALID: [0.9, 0.1, 0.1, 0.5]}), []),
    "format never there": (rows(**{VALID: [0.1, 0.3, 0.0, 0.0, 0.0]}), []),
    "format lost on held-out questions": (rows(eval_format_rate=[0.9, 0.1, 0.1]), [("format_collapse", "stop")]),
    "shrunk to nothing": (rows(**{LENGTH: [50, 60, 55, 9, 5, 2]}), [("too_short", "stop")]),
    "short, and right for it": (
        rows(**{LENGTH: [50, 60, 55, 9, 5, 2], ACCURACY: [0.1, 0.2, 0.1, 0.5, 0.6, 0.7]}),
        [],
    ),
    "short, and no better": (
        rows(**{LENGTH: [50, 60, 55, 9, 5, 2], ACCURACY: [0.5] * 6}),
        [("too_short", "stop")],
    ),
    "short, by reward alone": (rows(**{LENGTH: [50, 60, 55, 9, 5, 2], "reward": [0, 0, 0, 1, 1, 1]}), []),
    "somewhat shorter": (rows(**{LENGTH: [50, 60, 55, 30, 30, 30]}), []),
    "short on held-out questions": (rows(eval_mean_length=[50, 50, 2, 2]), [("too_short", "stop")]),
    "cut off since lately": (rows(**{CLIPPED: [0.0, 0.1, 0.2, 1.0, 1.0, 1.0]}), [("all_clipped", "stop")]),
    "cut off from the start": (rows(**{CLIPPED: [1.0] * 3}), [("all_clipped", "warn")]),
    "cut off in part": (rows(**{CLIPPED: [0.5, 0.9, 0.9, 0.9]}), []),
    "more steps, no better": (
        rows(eval_steps=[3, 3, 9, 9], eval_accuracy=[0.5] * 4),
        [("step_count", "warn")],
    ),
    "fewer steps, no better": (
        rows(eval_steps=[3, 3, 1, 1], eval_accuracy=[0.5, 0.5, 0.4, 0.4]),
        [("step_count", "warn")],
    ),
    "more steps, and better": (rows(eval_steps=[3, 3, 9, 9], eval_accuracy=[0.5, 0.5, 0.7, 0.7]), []),
    "steps where there were none": (rows(eval_steps=[0, 0, 4, 4], eval_accuracy=[0.0] * 4), []),
    "more steps in training": (rows(reasoning__steps=[2, 2, 2, 7, 7, 7]), [("step_count", "warn")]),
    "entropy gone": (rows(entropy=[1.0, 1.2, 1.1, 0.01, 0.01, 0.01]), [("entropy_collapse", "warn")]),
    "entropy lower": (rows(entropy=[1.0, 1.2, 1.1, 0.2, 0.2, 0.2]), []),
    "a stop is named first": (
        rows(**{"entropy": [1.0] * 3 + [0.001] * 3, VALID: [0.9] * 3 + [0.0] * 3}),
        [("format_collapse", "stop"), ("entropy_collapse", "warn")],
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_a_guard_says_what_the_table_says(case: str) -> None:
    history, expected = TABLE[case]
    assert verdicts(history) == expected


def test_in_fp16_a_gradient_may_overflow_for_a_while() -> None:
    scaled = Limits(patience=3, scaled=True)
    assert verdicts(rows(loss=[0.1, 0.1], grad_norm=[INF, INF]), scaled) == []
    assert verdicts(rows(loss=[0.1] * 3, grad_norm=[INF] * 3), scaled) == [("not_finite", "stop")]


def test_only_weights_that_are_worthless_go_into_no_checkpoint() -> None:
    for case, (history, _) in TABLE.items():
        for finding in examine(history, LIMITS):
            assert finding.usable == (finding.guard != "not_finite"), case


def test_a_sentence_has_the_figures_and_a_way_out() -> None:
    (finding,) = examine(TABLE["more steps, no better"][0], LIMITS)
    assert "from 3.0 a completion to 9.0" in finding.sentence
    (finding,) = examine(TABLE["cut off from the start"][0], LIMITS)
    assert "--max_completion_length" in finding.sentence


KEYS = [
    "loss",
    "reward",
    "grad_norm",
    "frac_reward_zero_std",
    "entropy",
    "eval_steps",
    "eval_accuracy",
    "reasoning/steps",
]
KEYS += ["eval_format_rate", "eval_mean_length", "eval_clipped_ratio", "completions/mean_length", "step", "guard"]
KEYS += ["completions/clipped_ratio", "format/outcome/valid", "rewards/accuracy/mean"]
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.floats(), max_size=2)
)


@given(
    st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), max_size=12),
    st.builds(Limits, st.integers(-1, 4), st.floats(), st.floats(), st.floats(), st.booleans()),
)
def test_no_guard_ever_raises(history: Rows, limits: Limits) -> None:
    for finding in examine(history, limits):
        assert finding.sentence


@given(st.lists(st.floats(0, 1e6), min_size=6, max_size=6), st.sampled_from([LENGTH, CLIPPED, VALID, "entropy"]))
def test_a_history_that_stands_still_at_a_healthy_level_is_never_stopped(values: list[float], key: str) -> None:
    level = 0.6 + values[0] / 1e7
    assert verdicts(rows(**{key: [level] * 6})) == []
