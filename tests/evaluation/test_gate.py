from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.config import Gate
from vqa_grpo.evaluation.compare import compare
from vqa_grpo.evaluation.gate import decide
from vqa_grpo.evaluation.score import score

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def good(table):
    """100 colours from 40 to 90 right, 100 shapes from 50 to 100 right, all in the format at the end."""
    base = table("o" * 40 + "-" * 60 + "o" * 50 + "x" * 50, ["color"] * 100 + ["shape"] * 100)
    tuned = table("o" * 90 + "x" * 10 + "o" * 100, ["color"] * 100 + ["shape"] * 100)
    return score(base), score(tuned), compare(base, tuned)


def test_a_clear_gain_is_promoted_and_every_reason_has_its_numbers(good):
    decision = decide(*good)
    assert decision.decision == "promote"
    assert decision.reasons[:3] == [
        "Both models answered the same 200 questions.",
        "The format rate of 100.0 % reaches the 95.0 % asked for.",
        "Accuracy went from 45.0 % to 95.0 %, +50.0 points: at least the 0.0 points asked for.",
    ]
    assert len(decision.reasons) == 5


@pytest.mark.parametrize(
    ("change", "rules", "decision"),
    [
        ({"format_rate": 0.95}, {}, "promote"),  # just reached
        ({"format_rate": 0.949}, {}, "hold"),
        ({"format_rate": 0.949}, {"min_format_rate": 0.9}, "promote"),
        ({}, {"min_accuracy_gain": 0.5}, "promote"),
        ({}, {"min_accuracy_gain": 0.51}, "hold"),
        ({"gain_ci": [0.0, 0.6]}, {}, "hold"),  # zero itself is not above zero
        ({"gain_ci": [0.001, 0.6]}, {}, "promote"),
        ({"gain_ci": [-0.1, 0.6]}, {"interval_above_zero": False}, "promote"),
        ({"type": (-0.06, [-0.1, -0.02])}, {}, "hold"),
        ({"type": (-0.06, [-0.13, 0.01])}, {}, "promote"),  # within noise
        ({"type": (-0.04, [-0.05, -0.03])}, {}, "promote"),  # real, but allowed
        ({"type": (-0.05, [-0.06, -0.04])}, {}, "promote"),  # just allowed
        ({"type": (0.7 - 0.75, [-0.06, -0.04])}, {}, "promote"),  # the same, a rounding error lower
        ({"type": (-0.06, [-0.1, -0.02])}, {"max_type_drop": 0.1}, "promote"),
    ],
)
def test_the_truth_table_of_the_rules(good, change, rules, decision):
    base, tuned, comparison = good
    tuned = replace(tuned, format_rate=change.get("format_rate", tuned.format_rate))
    comparison = replace(comparison, gain_ci=change.get("gain_ci", comparison.gain_ci))
    if "type" in change:
        gain, bounds = change["type"]
        fallen = replace(comparison.by_type["shape"], gain=gain, gain_ci=bounds)
        comparison = replace(comparison, by_type={**comparison.by_type, "shape": fallen})
    assert decide(base, tuned, comparison, Gate(**rules)).decision == decision


def test_a_loss_of_accuracy_is_held(good):
    base, tuned, comparison = good
    worse = replace(comparison, gain=-comparison.gain, gain_ci=[-0.6, -0.4], by_type=comparison.by_type)
    decision = decide(tuned, replace(base, format_rate=1.0), worse)
    assert decision.decision == "hold"
    assert "from 95.0 % to 45.0 %, -50.0 points: less than" in decision.reasons[0]


@pytest.mark.parametrize("odd", [None, NAN, INF, -INF, "0.9", [], 10**400])
@pytest.mark.parametrize("where", ["format_rate", "accuracy", "n", "gain", "gain_ci", "low", "by_type", "type"])
def test_a_number_that_is_missing_or_odd_holds_the_model_and_never_raises(good, where, odd):
    base, tuned, comparison = good
    if where in ("format_rate", "accuracy", "n"):
        tuned = replace(tuned, **{where: odd})
    elif where == "low":
        comparison = replace(comparison, gain_ci=[odd, 0.6])
    elif where == "type":
        comparison = replace(comparison, by_type={"shape": replace(comparison.by_type["shape"], gain=odd)})
    else:
        comparison = replace(comparison, **{where: odd})
    decision = decide(base, tuned, comparison)
    assert decision.decision == "hold"
    assert decision.reasons[0].endswith(".")


@given(st.floats(), st.floats(), st.floats(), st.floats(), st.floats())
def test_no_float_makes_the_gate_raise_and_no_nan_passes(rate, before, after, low, high):
    class Numbers:
        n, format_rate, accuracy = 10, rate, after
        gain, gain_ci = after - before, [low, high]

    Numbers.by_type = {"any": Numbers}
    base = type("Base", (), {"n": 10, "accuracy": before})
    decision = decide(base, Numbers, Numbers)
    if any(number != number for number in (rate, before, after, low, high)):
        assert decision.decision == "hold"


def test_rules_that_are_nan_hold_too(good):
    for name in ("min_format_rate", "min_accuracy_gain", "max_type_drop"):
        with pytest.raises(ValueError, match="finite"):
            Gate(**{name: NAN})
        assert decide(*good, Gate.model_construct(**{name: NAN})).decision == "hold"


def test_no_questions_or_different_questions_are_held(good, table):
    empty = table("")
    assert decide(score(empty), score(empty), compare(empty, empty)).decision == "hold"
    base, tuned, comparison = good
    decision = decide(replace(base, n=199), tuned, comparison)
    assert decision.decision == "hold"
    assert "199, 200, 200" in decision.reasons[0]


def test_accuracies_that_disagree_with_their_difference_are_held(good):
    base, tuned, comparison = good
    assert decide(base, replace(tuned, accuracy=0.99), comparison).decision == "hold"
