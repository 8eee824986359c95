"""The answer grader against hand-kept cases, and against anything at all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.verdict import Verdict
from vqa_grpo.scoring.answer import TYPES, grade, type_of

CASES = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (Path(__file__).parent / "cases").glob("*.json")
}
BY_TYPE = [(kind, case) for kind in TYPES for case in CASES[kind]]


def verdict_of(case: dict[str, Any]) -> Verdict:
    golds = [case["gold"]] if isinstance(case["gold"], str) else case["gold"]
    return grade(case["prediction"], golds, case.get("options", ()), case.get("source", ""))


@pytest.mark.parametrize(
    ("kind", "case"), BY_TYPE, ids=lambda value: ascii(value)[:80] if isinstance(value, dict) else value
)
def test_a_hand_kept_case_is_graded_as_a_person_would(kind: str, case: dict[str, Any]) -> None:
    verdict = verdict_of(case)
    assert verdict.correct == case["correct"], verdict
    assert verdict.gold_type == kind
    assert verdict.reward == float(verdict.correct)


@pytest.mark.parametrize("case", CASES["reference_table"], ids=lambda case: f"{case['prediction']} for {case['gold']}")
def test_the_published_references_mistakes_are_not_repeated(case: dict[str, Any]) -> None:
    # research/upstream-and-grading.md §1.6: what crystal-metrics 0.2.0 says, and what is right
    assert verdict_of(case).correct == case["correct"]


def test_there_are_at_least_two_hundred_cases_and_each_says_why() -> None:
    assert len(BY_TYPE) >= 200
    assert all(case["why"] for _, case in BY_TYPE)


@pytest.mark.parametrize(
    ("kind", "case"), [row for row in BY_TYPE if isinstance(row[1]["gold"], str) and row[1]["gold"]]
)
def test_every_gold_answer_is_right_against_itself(kind: str, case: dict[str, Any]) -> None:
    assert grade(case["gold"], [case["gold"]], case.get("options", ()), case.get("source", "")).correct


anything = st.one_of(
    st.text(max_size=200),
    st.text(st.characters(categories=("Cs", "Lo", "No", "Sm", "Sc", "Po")), max_size=80),
    st.text("0123456789.,/:-+e%$°'\" abcmkthAB()[]{}*^", max_size=150),
    st.sampled_from([case["prediction"] for _, case in BY_TYPE]),
    st.sampled_from([case["gold"] for _, case in BY_TYPE if isinstance(case["gold"], str)]),
)


@given(anything, st.lists(anything, min_size=1, max_size=3), st.lists(anything, max_size=5), anything)
def test_no_text_makes_the_grader_raise_and_every_reward_is_zero_or_one(
    prediction: str, golds: list[str], options: list[str], other: str
) -> None:
    verdict = grade(prediction, golds, options)
    assert verdict.reward in (0.0, 1.0)
    assert math.isfinite(verdict.reward)
    assert verdict.gold_type in TYPES
    assert verdict.gold_type == grade(other, golds, options).gold_type == type_of(golds[0], options)
    verdict.explanation.encode()  # it stands in logs and in prediction files


@given(anything, st.lists(anything, max_size=4))
def test_an_empty_answer_is_never_right(gold: str, options: list[str]) -> None:
    for prediction in (None, *"\n\t \0\u00a0\u00ad\u115f\u200b\u202e\u2800\u3164\ufe0f", "", "\u2800\u200b"):
        assert not grade(prediction, [gold], options).correct


HOSTILE = ["9" * 65_536, "9**9**9**9", "1e" + "9" * 400, "(" * 65_536, "5 m/" * 20_000, "a, " * 20_000, "1," * 500]
HOSTILE += ["a and " * 170, "one " * 250, "5'" * 500, "the answer is " * 70, "\ufdfa" * 1000, "-" * 1000, "['" * 500]
HOSTILE += ["$" * 1000, "1 000" * 200, "*" * 1000, " " * 1000 + "x", "1/" * 500, "10:" * 300, "A) " * 340, "x" * 1024]


@pytest.mark.timeout(60)  # a limit for what would hang, not a measurement
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:20])
def test_a_hostile_answer_is_graded_and_wrong(text: str) -> None:
    golds = ["5 m", "red, blue", "10:30", "no", "B", "insufficient information", "nokia"]
    assert not grade(text, golds).correct
    assert not grade(text, ["A"], ["2003", "2010"]).correct
    assert type_of(text) in TYPES


def test_a_completion_without_an_answer_is_wrong_under_its_own_rule() -> None:
    verdict = grade(None, ["red"])
    assert (verdict.correct, verdict.rule) == (False, "no_answer")


def test_declining_to_answer_is_wrong_under_its_own_rule() -> None:
    assert grade("insufficient information", ["red"]).rule == "abstained"
    assert grade("red", ["insufficient information"]).rule == "abstention"


def test_a_verdict_shows_what_it_compared() -> None:
    verdict = grade("5,000 cm", ["50 m", "7"])
    assert (verdict.seen, verdict.expected) == ("5000 centimeter", ("50 meter",))
    assert verdict.explanation == "'5000 centimeter' equals '50 meter', compared as number"
    assert grade("4", ["5", "six"]).expected == ("5", "6")


def test_a_row_without_a_gold_answer_is_a_data_error_and_not_a_zero() -> None:
    with pytest.raises(DataError, match="no gold answer"):
        grade("red", [])


def test_a_metric_is_looked_up_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("metrics")
    module.METRICS = {"first": lambda prediction, golds, options: Verdict(True, 0.5, "text", "first", "x")}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vqa_grpo.scoring.metrics", module)
    assert grade("red", ["blue"], metric="first").reward == 0.5
    assert grade(None, ["blue"], metric="first").rule == "no_answer"
    with pytest.raises(ConfigurationError, match="'second' is not known: choose one of first"):
        grade("red", ["blue"], metric="second")


def test_importing_the_grader_loads_nothing_heavy() -> None:
    code = "import sys, vqa_grpo.scoring.answer; print([m for m in ('pint', 'numpy', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
