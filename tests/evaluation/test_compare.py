import json
from math import comb

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.failure import DataError
from vqa_grpo.evaluation.compare import Comparison, compare, mcnemar, paired_interval

LETTERS = "-xow"


def test_the_split_of_the_gain_equals_a_count_by_hand(table):
    #                     base  tuned: what the row adds
    base, tuned = zip(
        "-o",  # +1 format
        "-x",  #  0
        "o-",  # -1 format
        "xo",  # +1 answers
        "xo",  # +1 answers
        "ox",  # -1 answers
        "ww",  #  0
        "-w",  # +1 format
        "--",  #  0
        "xx",  #  0
        strict=True,
    )
    result = compare(table("".join(base)), table("".join(tuned)))
    assert (result.from_format_rows, result.from_answers_rows) == (1, 1)
    assert (result.gain, result.from_format, result.from_answers) == (0.2, 0.1, 0.1)
    assert (result.both_right, result.base_only, result.tuned_only, result.both_wrong) == (1, 2, 4, 3)
    assert result.p_value == pytest.approx(2 * (1 + 6 + 15) / 64)


@given(st.lists(st.tuples(st.sampled_from(LETTERS), st.sampled_from(LETTERS), st.sampled_from("ab")), max_size=60))
def test_format_and_answers_add_up_to_the_gain_and_types_to_the_whole(table, rows):
    base, tuned, types = ("".join(row[part] for row in rows) for part in range(3))
    result = compare(table(base, types), table(tuned, types))
    for part in (result, *result.by_type.values()):
        assert part.from_format_rows + part.from_answers_rows == part.tuned_only - part.base_only
        assert part.both_right + part.base_only + part.tuned_only + part.both_wrong == part.n
        if part.n:
            assert part.from_format + part.from_answers == pytest.approx(part.gain, abs=1e-12)
            assert -1 <= part.gain_ci[0] <= part.gain_ci[1] <= 1
    assert sum(part.n for part in result.by_type.values()) == result.n
    assert sum(part.from_format_rows for part in result.by_type.values()) == result.from_format_rows


def test_the_interval_is_seeded_and_close_to_the_normal_one(table):
    low, high = paired_interval(300, 100, 1000)
    deviation = ((400 / 1000 - 0.2**2) / 1000) ** 0.5
    assert (low, high) == pytest.approx((0.2 - 1.96 * deviation, 0.2 + 1.96 * deviation), abs=0.004)
    assert paired_interval(300, 100, 1000) == [low, high]
    assert paired_interval(300, 100, 1000, seed=1) != [low, high]
    assert paired_interval(0, 0, 0) is None


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_binomial_tail(base_only, tuned_only):
    n, fewer = base_only + tuned_only, min(base_only, tuned_only)
    exact = min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)
    assert mcnemar(base_only, tuned_only) == pytest.approx(exact, rel=1e-9)


def test_the_order_of_the_files_does_not_matter(table):
    base, tuned = table("-xowoxw-"), table("ooxw-oxo")
    assert compare(base, tuned) == compare(base.take(list(range(7, -1, -1))), tuned)


def test_files_about_different_questions_are_refused_with_examples(table):
    with pytest.raises(DataError, match=r"1 only in base \(such as \['q2'\]\), 0 only in tuned"):
        compare(table("oxo"), table("ox"))


def test_a_question_answered_twice_is_refused(table):
    twice = pa.concat_tables([table("ox"), table("o")])
    with pytest.raises(DataError, match="the tuned predictions answer 1 questions more than once"):
        compare(table("ox"), twice)


def test_the_same_ids_with_another_gold_answer_are_refused(table):
    with pytest.raises(DataError, match="another gold answer"):
        compare(table("ox"), table("ox", gold="green"))


def test_two_empty_files_compare_without_a_number(table):
    result = compare(table(""), table(""))
    assert result.n == 0
    assert result.gain is result.gain_ci is result.from_format is None


def test_a_comparison_is_json_and_comes_back_the_same(table):
    result = compare(table("-xow", "abab"), table("owx-", "abab"))
    assert Comparison.from_dict(json.loads(json.dumps(result.as_dict(), allow_nan=False))) == result
