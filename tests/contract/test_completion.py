"""The one parser: every shape of completion has a name, and no text makes it raise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.completion import FORMAT_REWARD, MAX_CHARACTERS, Completion, Outcome, parse

GOOD = '{"reasoning_steps": ["A red circle is shown."], "answer": "red"}'

# What a model may write: mostly the contract's own pieces, in any order and damaged.
PIECES = st.sampled_from(
    ["{", "}", "[", "]", '"', ",", ":", "\\", "\\u", "\\ud800", "null", "NaN", "1e999", "-", "9" * 5000, "{" * 3000,
     '"reasoning_steps"', '"answer"', '["a step"]', '"red"', "```json\n", "\n", " ", "\0", "ü", "🟥", "<|im_end|>"]
)  # fmt: skip
NEARLY = st.lists(PIECES | st.text(max_size=5), max_size=25).map("".join)
ANYTHING = st.text(st.characters(categories=None), max_size=200)  # lone surrogates too


def check(completion: Completion) -> None:
    assert 0.0 <= completion.format_reward <= 1.0
    usable = completion.outcome in (Outcome.VALID, Outcome.WRAPPED)
    assert (completion.answer is not None) == usable
    assert bool(completion.steps) == usable
    assert bool(completion.reasons) == (completion.outcome is not Outcome.VALID)
    if usable:
        text = " ".join([completion.answer or "", *completion.steps])
        assert text.encode().decode() == text  # what is scored can be written to any file


@given(ANYTHING | NEARLY)
def test_no_text_makes_the_parser_raise(text: str) -> None:
    check(parse(text))


@given(st.integers(0, len(GOOD)), st.integers(0, 4), NEARLY)
def test_no_damage_to_a_good_completion_makes_it_raise(place: int, cut: int, noise: str) -> None:
    check(parse(GOOD[:place] + noise + GOOD[place + cut :]))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=8),
       st.text(max_size=5))  # fmt: skip
def test_a_value_of_the_wrong_type_never_counts_as_an_answer(value: object, key: str) -> None:
    for document in (value, {"reasoning_steps": value, "answer": key}, {"reasoning_steps": ["s"], "answer": value}):
        check(parse(json.dumps(document)))


WORDS = st.text(min_size=1, max_size=20).filter(str.strip)


@given(st.lists(WORDS, min_size=1, max_size=5), WORDS, st.booleans(), st.sampled_from([None, 2]))
def test_every_answer_of_the_contract_comes_back_as_it_was_meant(
    steps: list[str], answer: str, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps({"reasoning_steps": steps, "answer": answer}, ensure_ascii=ascii_only, indent=indent)
    found = parse(f"\n {text} \n")
    assert (found.outcome, found.answer, found.steps) == (Outcome.VALID, answer, tuple(steps))
    assert found.format_reward == 1.0
    around = parse(f"```json\n{text}\n```")
    assert (around.outcome, around.answer, around.steps) == (Outcome.WRAPPED, answer, tuple(steps))
    assert 0 < around.format_reward < 1


@given(st.integers(1, len(GOOD) - 1))
def test_a_completion_that_was_cut_off_says_so(length: int) -> None:
    assert parse(GOOD[:length]).outcome is Outcome.TRUNCATED


@pytest.mark.parametrize(
    ("text", "outcome", "reason"),
    [
        ("", Outcome.NO_JSON, "no JSON object"),
        ("It looks red.", Outcome.NO_JSON, "no JSON object"),
        ('["red"]', Outcome.NO_JSON, "no JSON object"),
        ("{'answer': 'red'}", Outcome.NO_JSON, "not readable as JSON"),
        ('{"reasoning_steps": ["s"], "answer": "red",}', Outcome.NO_JSON, "not readable as JSON"),
        ('{"answer": "red", "answer": "blue", "reasoning_steps": ["s"]}', Outcome.NO_JSON, "a key stands twice"),
        ('{"reasoning_steps": ["s"], "answer": NaN}', Outcome.NO_JSON, "NaN is not JSON"),
        ('{"reasoning_steps": ["s"], "answer": ' + "1" * 5000 + "}", Outcome.NO_JSON, "not readable as JSON"),
        ("{}", Outcome.FIELDS, "answer is empty or no string"),
        ('{"reasoning_steps": [], "answer": "red"}', Outcome.FIELDS, "at least one step"),
        ('{"reasoning_steps": "s", "answer": "red"}', Outcome.FIELDS, "at least one step"),
        ('{"reasoning_steps": ["s", " "], "answer": "red"}', Outcome.FIELDS, "a reasoning step is empty"),
        ('{"reasoning_steps": ["s", 3], "answer": "red"}', Outcome.FIELDS, "a reasoning step is empty or no string"),
        ('{"reasoning_steps": ["s"], "answer": 3}', Outcome.FIELDS, "answer is empty or no string"),
        ('{"reasoning_steps": ["s"], "answer": " "}', Outcome.FIELDS, "answer is empty or no string"),
        ('{"reasoning_steps": ["s"], "answer": "red", "mood": 1}', Outcome.FIELDS, "keys beyond the contract: mood"),
        ('{"reasoning_steps": ["s"], "answer": "\\ud800"}', Outcome.FIELDS, "lone surrogate"),
        ("Sure! " + GOOD, Outcome.WRAPPED, "text around"),
        (GOOD + GOOD, Outcome.WRAPPED, "text around"),
        ('{"a":' * 10_000, Outcome.TRUNCATED, "not readable as JSON"),
        (GOOD + " " * MAX_CHARACTERS, Outcome.NO_JSON, "longer than"),
    ],
)  # fmt: skip
def test_each_way_to_miss_the_contract_has_its_name(text: str, outcome: Outcome, reason: str) -> None:
    found = parse(text)
    assert found.outcome is outcome
    assert reason in "; ".join(found.reasons)


def test_the_closer_to_the_contract_the_more_format_reward() -> None:
    assert FORMAT_REWARD[Outcome.VALID] == max(FORMAT_REWARD.values()) == 1.0
    assert FORMAT_REWARD[Outcome.VALID] > FORMAT_REWARD[Outcome.WRAPPED] > FORMAT_REWARD[Outcome.FIELDS] > 0
    assert FORMAT_REWARD[Outcome.TRUNCATED] == FORMAT_REWARD[Outcome.NO_JSON] == 0
    assert set(FORMAT_REWARD) == set(Outcome)
