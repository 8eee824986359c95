import json
import random
import tracemalloc

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.completion import Outcome
from vqa_grpo.evaluation.score import Scores, blind_level, score, wilson


def test_scores_equal_a_count_by_hand(table):
    scores = score(table("-xow" + "oo-x", types=["a"] * 4 + ["b"] * 4))
    assert scores.n == 8
    assert scores.format_rate == 5 / 8  # x, o, o, o, x: a wrapped object is not the format
    assert scores.accuracy == 4 / 8  # but its answer can be read, and counts
    assert scores.accuracy_given_format == 3 / 5
    assert set(scores.outcomes) == {outcome.value for outcome in Outcome}  # an outcome that never came is a visible 0
    assert {name: count for name, count in scores.outcomes.items() if count} == {"valid": 5, "wrapped": 1, "no_json": 2}
    assert (scores.by_type["a"].n, scores.by_type["a"].format_rate, scores.by_type["a"].accuracy) == (4, 0.5, 0.5)
    assert scores.by_type["a"].accuracy_given_format == 0.5
    assert scores.by_type["b"].accuracy_given_format == pytest.approx(2 / 3)
    assert scores.mean_completion_tokens == 10


def test_an_empty_file_has_no_rates_rather_than_nan(table):
    scores = score(table(""))
    assert scores.n == 0
    assert scores.accuracy is scores.format_rate is scores.accuracy_ci is scores.mean_completion_tokens is None


def test_accuracy_given_format_is_none_when_no_completion_has_the_format(table):
    assert score(table("--w")).accuracy_given_format is None


def test_reasoning_f1_is_the_mean_over_rows_that_have_one_and_survives_nan(table):
    assert score(table("oo")).reasoning_f1 is None
    assert score(table("oo", reasoning_f1=0.25)).reasoning_f1 == 0.25
    assert score(table("oo", reasoning_f1=float("nan"))).reasoning_f1 is None


def test_standard_metrics_are_means_over_the_rows_of_their_sources(table):
    import pyarrow as pa

    rows = table("oo--")
    rows = rows.set_column(rows.schema.get_field_index("metric"), "metric", pa.array(["anls", "anls", "chartqa", ""]))
    scores = pa.array([1.0, 0.5, 0.0, None], pa.float64())
    rows = rows.set_column(rows.schema.get_field_index("metric_score"), "metric_score", scores)
    assert score(rows).standard == {"anls": 0.75, "chartqa": 0.0}
    assert score(table("oo--")).standard == {}


def test_scores_are_json_and_come_back_the_same(table):
    scores = score(table("-xow", types=list("abab")))
    assert Scores.from_dict(json.loads(json.dumps(scores.as_dict(), allow_nan=False))) == scores


def test_wilson_interval_equals_the_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    for successes, n, expected in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611))):
        assert wilson(successes, n) == pytest.approx(expected, abs=5e-5)
    assert wilson(0, 0) is None


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate_and_stays_within_0_and_1(counts):
    successes, n = counts
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high


def row(question, answer, source="easy_vqa/color", options=None):
    return {"question": question, "answer": answer, "source": source, "choices": [], "options": options or []}


def test_blind_level_gives_the_commonest_training_answer_to_the_same_question():
    shape = "easy_vqa/shape"
    train = [
        *[row("color?", "red")] * 3,
        *[row("color?", "blue")] * 2,
        *[row("what hue?", "blue")] * 2,
        *[row("shape?", "circle", shape)] * 5,
    ]
    test = [
        row("color?", "red"),
        row("color?", "blue"),  # the commonest of its type, but not of its question
        row("which color?", "blue"),  # never asked: the commonest answer of its type
        row("is it round?", "circle", "easy_vqa/new"),  # a type never seen: the commonest answer of all
        row("shape?", "square", shape),
    ]
    blind = blind_level(train, test)
    assert blind.n == 5
    assert blind.accuracy == 3 / 5
    assert blind.by_type == {"color": pytest.approx(2 / 3), "new": 1.0, "shape": 0.0}


def test_blind_level_does_not_depend_on_the_order_of_the_rows():
    train = [row("q", answer) for answer in ["red", "blue", "blue", "red", "green"]]
    levels = set()
    for seed in range(10):
        random.Random(seed).shuffle(train)
        levels.add(blind_level(train, [row("q", "red"), row("q", "blue"), row("q", "blue")]).accuracy)
    assert levels == {2 / 3}


def test_blind_level_keeps_questions_apart_that_offer_other_options():
    train = [row("which?", "A", options=["cat", "dog"])] * 3 + [row("which?", "B", options=["ox", "cow"])]
    assert blind_level(train, [row("which?", "B", options=["ox", "cow"])]).accuracy == 1.0


def test_blind_level_of_a_large_data_set_is_counted_without_its_texts_in_memory():
    many = 20_000
    texts = [f"{number} {'word ' * 40}" for number in range(many)]
    strings = datasets.List(datasets.Value("string"))
    features = {name: datasets.Value("string") for name in ("question", "answer", "source")}
    features |= {"choices": strings, "options": strings}
    rows = [row(text, "yes" if number % 3 else "no") for number, text in enumerate(texts)]
    train = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    del rows
    tracemalloc.start()
    try:
        blind = blind_level(train, train.select(range(6)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert blind.accuracy == 1.0
    assert peak < 200 * many  # bytes: a text alone is more


def test_blind_level_without_test_or_training_rows_is_defined():
    assert blind_level([row("q", "red")], []).accuracy is None
    assert blind_level([], [row("q", "red")]).accuracy == 0.0
