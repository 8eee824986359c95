"""The standard metrics: golden values of their published implementations, hand-kept cases, and what all of them owe."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import metric_cases as cases
import metric_references as references
import pytest

from vqa_grpo.scoring.metrics import METRIC_OF_SOURCE, METRICS, anls, crystal, metric_for, mmmu, vqa_soft

TEN = ["red"] * 6 + ["blue"] * 2 + ["Red", "dark red"]


@pytest.mark.parametrize("table", references.TABLES)
def test_a_metric_gives_the_values_its_published_implementation_gave(table: str) -> None:
    rows = json.loads((references.GOLDEN / f"{table}.json").read_text())
    metric = METRICS[references.TABLES[table][0]]
    # lmms-eval processes answers that all agree; the official evaluation, which counts here, does not.
    kept = [row for row in rows if table != "vqa_soft" or len(set(row["golds"])) > 1]
    wrong = [
        (row, value)
        for row in kept
        if abs((value := metric(row["prediction"], row["golds"], row["options"]).reward) - row["expected"]) > 1e-9
    ]
    assert wrong == []
    assert len(kept) >= 200


@pytest.mark.parametrize(
    ("metric", "prediction", "golds", "options", "reward"),
    [
        # Soft accuracy: three agreeing people are enough, two earn two thirds, and one third is lost in each fold.
        ("vqa_soft", "red", TEN, [], 1.0),
        ("vqa_soft", "blue", TEN, [], 0.6),
        ("vqa_soft", "Dark red.", TEN, [], 0.3),
        ("vqa_soft", "green", TEN, [], 0.0),
        ("vqa_soft", "None of the above", ["0 of above"] * 9 + ["x"], [], 1.0),
        ("vqa_soft", "10:30", ["10:30"] * 5 + ["1030"] * 5, [], 1.0),
        ("vqa_soft", "u.s.a.", ["USA"] * 5 + ["America"] * 5, [], 1.0),
        ("vqa_soft", "dont", ["don't"] * 5 + ["do not"] * 5, [], 1.0),
        # Ten who agree are compared as they stand, which is the official evaluation's own quirk.
        ("vqa_soft", "yes", ["yes"] * 10, [], 1.0),
        ("vqa_soft", "Yes", ["yes"] * 10, [], 0.0),
        ("textvqa", "Yes", ["yes"] * 10, [], 1.0),
        ("vqa_soft", "Joe's", ["joe 's"] * 9 + ["x"], [], 0.0),
        ("textvqa", "Joe's", ["joe 's"] * 9 + ["x"], [], 1.0),
        # Fewer than four golds are alternatives.
        ("vqa_soft", "A dog!", ["dog"], [], 1.0),
        ("vqa_soft", "cat", ["dog", "the cat"], [], 1.0),
        ("vqa_soft", "red", ["red", "red", "blue"], [], 1.0),
        ("vqa_soft", "the", ["a"], [], 0.0),
        ("vqa_soft", "", ["a"], [], 0.0),
        ("anls", "Helo World", ["hello  world"], [], 1 - 1 / 11),
        ("anls", "ab", ["abcd"], [], 0.5),
        ("anls", "a", ["abcd"], [], 0.0),
        ("anls", "x", ["y", "X"], [], 1.0),
        # Blanks do not make an answer more alike: the reference divides by them, and would pay 0.9 here.
        ("anls", "no" + " " * 100, ["yes"], [], 0.0),
        ("chartqa", "2003", ["2010"], [], 1.0),
        ("chartqa", "95", ["100"], [], 1.0),
        ("chartqa", "94.9", ["100"], [], 0.0),
        ("chartqa", "1,000", ["1000"], [], 0.0),
        ("chartqa", "0.5", ["50%"], [], 1.0),
        ("chartqa", "0.0", ["0"], [], 0.0),
        ("chartqa", "YES", ["Yes"], [], 1.0),
        ("chartqa", "red", ["blue", "Red"], [], 1.0),
        ("mmmu", "(A) or rather (B)", ["B"], ["cat", "dog"], 1.0),
        ("mmmu", "B.", ["B"], ["cat", "dog"], 1.0),
        ("mmmu", "dog", ["B"], ["cat", "dog"], 0.0),
        ("mmmu", "What I see here is a dog", ["B"], ["cat", "dog"], 1.0),
        ("mmmu", "B", ["dog"], ["cat", "dog"], 1.0),
        ("mmmu", "I cannot tell", ["A"], ["cat", "dog"], 0.0),
        ("mmmu", "A", ["bird"], ["cat", "dog"], 0.0),
        # A letter must stand before a space, a text must be in a sentence of six words, and the first of many wins.
        ("mmmu", "A.x or B.x", ["A"], ["cat", "dog"], 1.0),
        ("mmmu", "I see a dog here", ["B"], ["cat", "dog"], 0.0),
        # An equation of the last line is worth its right side, and a number before a comma is none.
        ("mmmu", "3 = 12", ["3"], [], 0.0),
        ("mmmu", "3 = 12", ["12"], [], 1.0),
        ("mmmu", "so it is 3, maybe", ["3"], [], 0.0),
        ("mmmu", "so the result is 3,141.592", ["3141.59"], [], 1.0),
        ("mmmu", "so the result is 3.2", ["3.1"], [], 0.0),
        ("crystal", "2003", ["2010"], [], 0.9),
        ("crystal", "10", ["11"], [], 0.9),
        ("crystal", "7", ["8"], [], 0.85),
        ("crystal", "0", ["0.04"], [], 0.95),
        ("crystal", "5 cm", ["5 m"], [], 1.0),
        ("crystal", "1,000", ["1000"], [], 0.0),
        ("crystal", "", ["nokia"], [], 0.7),
        ("crystal", "not sure", ["no"], [], 1.0),
        ("crystal", "incorrect", ["yes"], [], 1.0),
        ("crystal", "a dog", ["B"], ["a cat", "a dog"], 1.0),
        ("crystal", "x", ["y", "X"], [], 1.0),
        ("crystal", "85.55", ["100"], [], 0.85),
        ("crystal", "85.555", ["100"], [], 0.0),
        ("crystal", "84.5", ["100"], [], 0.0),
        ("crystal", "0", ["0.4"], [], 0.95),
        ("crystal", "yes sir", ["' yes'"], [], 1.0),
        ("crystal", "“nokia”", ["nokia"], [], 1.0),
        ("crystal", "abcdefgh", ["A"], ["abcdefghij", "xyz"], 1.0),
        ("crystal", "abcdefg", ["A"], ["abcdefghij", "xyz"], 0.0),
        ("math", "x", [" x. "], [], 1.0),
        ("math", "(b)", ["3/4"], ["1/2", "3/4"], 1.0),
        ("math", "3/4", ["B"], ["1/2", "3/4"], 1.0),
        ("math", "A", ["3/4"], ["1/2", "3/4"], 0.0),
    ],
)
def test_a_case_earns_what_the_rules_say(
    metric: str, prediction: str, golds: list[str], options: list[str], reward: float
) -> None:
    verdict = METRICS[metric](prediction, golds, options)
    assert verdict.reward == pytest.approx(reward)
    assert verdict.rule.startswith(f"{metric}:")


@pytest.mark.parametrize("metric", METRICS)
def test_no_answer_is_wrong_under_its_own_rule_and_no_gold_is_wrong_too(metric: str) -> None:
    silent, aimless = METRICS[metric](None, ["red"], []), METRICS[metric]("red", [], [])
    assert (silent.correct, silent.reward, silent.rule) == (False, 0.0, "no_answer")
    assert (aimless.correct, aimless.reward, aimless.rule) == (False, 0.0, f"{metric}:no_gold")


@pytest.mark.parametrize("metric", METRICS)
def test_a_single_gold_may_come_as_a_bare_string_and_the_options_may_be_left_out(metric: str) -> None:
    assert METRICS[metric]("umbrella", "umbrella").correct  # type: ignore[call-arg]


@pytest.mark.parametrize("metric", METRICS)
def test_the_gold_type_never_depends_on_the_prediction(metric: str) -> None:
    for case in [*cases.mixed(seed=3, count=50), *cases.choices(seed=3, count=50)]:
        kinds = {METRICS[metric](said, case.golds, case.options).gold_type for said in (None, "", "[]", "5", "A")}
        assert len(kinds) == 1


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"math"}))
def test_no_text_makes_a_metric_raise_or_leave_the_range(metric: str) -> None:
    rng = random.Random(5)
    letters = "aA1.,- %$\\/{}[]()\"'\n\t\u00a0\u0130ßé東٣²\ud800\udfff\x00"
    for _ in range(3000):
        words = ["".join(rng.choice(letters) for _ in range(rng.randint(0, 12))) for _ in range(rng.randint(2, 14))]
        options = words[5:9] if rng.random() < 0.5 else []
        verdict = METRICS[metric](words[0], words[1:5] if rng.random() < 0.5 else words[1:], options)
        assert 0.0 <= verdict.reward <= 1.0
        # What explains a verdict is printed and logged, wherever the answer came from.
        verdict.explanation.encode()


# More than the parser lets through as an answer; quadratic work on it would take minutes.
LONG = 100_000


@pytest.mark.timeout(60)  # a limit for what would hang, not a measurement
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "unit",
    ["a", "1", "1 ", "1,", "1.", "-", "{", "[", '["a",', "A) ", "is ", "answer ", "\n", ".", "1e", "option ", "a b\n"],
)
def test_a_very_long_answer_is_graded_in_linear_time(metric: str, unit: str) -> None:
    text = unit * (LONG // len(unit))
    for golds, options in ((["12.5"], []), (["red"] * 5 + ["blue"] * 5, []), (["B"], ["red", "a b"])):
        assert 0.0 <= METRICS[metric](text, golds, options).reward <= 1.0


def test_long_texts_of_like_length_are_compared_by_their_beginnings() -> None:
    same = "abcdefgh" * 10_000
    assert METRICS["anls"](same + "x", [same], []).reward == 1.0
    assert METRICS["anls"]("z" * 600 + same, [same], []).reward == 0.0


def test_the_edit_distance_is_that_of_the_textbook() -> None:
    def textbook(a: str, b: str) -> int:
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            above, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
        return row[-1]

    rng = random.Random(11)
    for _ in range(3000):
        a, b = ("".join(rng.choice("abé") for _ in range(rng.randint(0, 12))) for _ in range(2))
        assert anls.levenshtein(a, b) == textbook(a, b), (a, b)


def test_importing_the_metrics_imports_no_heavy_library() -> None:
    code = (
        "import sys, vqa_grpo.scoring.metrics\n"
        "print(sorted({'numpy', 'sympy', 'torch', 'anls_star', 'munkres', 'math_verify', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("source", "metric"),
    [
        ("VQAv2", "vqa_soft"),
        ("okvqa/train", "vqa_soft"),
        ("TextVQA/validation/part", "textvqa"),
        ("infoVQA", "anls"),
        ("docvqa", "anls"),
        ("ChartQA/human", "chartqa"),
        ("MMMU/Physics", "mmmu"),
        ("MathVista", "math"),
        ("mathvision", "math"),
        ("easy-vqa", ""),
        ("", ""),
        ("/docvqa", ""),
    ],
)
def test_a_source_is_known_by_what_stands_before_the_slash(source: str, metric: str) -> None:
    assert metric_for(source) == metric


def test_every_metric_of_a_source_exists() -> None:
    assert set(METRIC_OF_SOURCE.values()) <= set(METRICS)


@pytest.mark.parametrize(
    ("text", "compared"),
    [
        ("black-white", "black white"),
        ("wi-fi - on", "wifi on"),
        ("1,000-2", "10002"),
        ("somebody'd", "somebodyd"),
        ("The none", "0"),
        ("3.5.", "3.5"),
    ],
)
def test_a_text_is_compared_as_the_official_evaluation_processes_it(text: str, compared: str) -> None:
    assert vqa_soft.official(text) == compared


def test_the_crystal_reference_reads_a_number_after_taking_out_its_lead_words() -> None:
    assert crystal.first_number("1approximately: 2") == 12.0
    assert (crystal.normalise("a."), crystal.normalise("5.")) == ("a", "5.")


def test_half_a_point_is_correct() -> None:
    assert METRICS["anls"]("ab", ["abcd"], []).correct
    assert not METRICS["vqa_soft"]("Dark red.", TEN, []).correct


def test_only_32_periods_are_removed_as_officially() -> None:
    assert vqa_soft.official("." * 40 + "x") == "." * 8 + "x"


def test_an_answer_that_names_no_option_chooses_none() -> None:
    assert mmmu.chosen("I cannot tell", ["cat", "dog"]) is None


def test_plain_golds_get_plain_anls_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anls_star", None)
    assert METRICS["anls_star"]("helo", ["hello"], []).reward == pytest.approx(0.8)


def test_a_missing_library_is_a_rule_of_its_own_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anls_star", None)
    verdict = METRICS["anls_star"]('["a"]', ['["a", "b"]'], [])
    assert (verdict.reward, verdict.rule, verdict.gold_type) == (0.0, "anls_star:library_missing", "list")


def test_a_list_is_compared_item_by_item_in_any_order() -> None:
    pytest.importorskip("anls_star", reason="anls-star is not installed")
    metric = METRICS["anls_star"]
    assert metric('["blue", "red"]', ['["red", "blue"]'], []).reward == 1.0
    assert metric('["red"]', ['["red", "blue"]'], []).reward == 0.5
    assert metric("red", ['["red", "blue"]'], []).reward == 0.0
    assert metric('{"a": "x"}', ['{"a": "x", "b": "y"}'], []).gold_type == "record"
