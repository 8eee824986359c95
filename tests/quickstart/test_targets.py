from __future__ import annotations

import random

import pytest

from vqa_grpo.contract.completion import Outcome, parse
from vqa_grpo.contract.record import Record
from vqa_grpo.quickstart.facts import kind_of
from vqa_grpo.quickstart.targets import draw, json_answer, json_wordings, prose_answer


def test_json_targets_keep_the_contract_and_the_answer(train: list[Record]) -> None:
    for row in train[:2000]:
        completion = parse(json_answer(row))
        assert completion.outcome is Outcome.VALID
        assert completion.answer == row.answer
        assert completion.steps == row.reference_steps


def test_prose_targets_are_not_json_and_end_in_the_answer(train: list[Record]) -> None:
    rng = random.Random(0)
    for row in train[:2000]:
        text = prose_answer(row, rng)
        assert parse(text).outcome is Outcome.NO_JSON
        assert text.startswith(row.reference_steps[0])
        assert text.endswith(f" {row.answer}.")


def test_half_of_the_wordings_of_each_kind_lean_to_json(train: list[Record]) -> None:
    wordings = {row.question for row in train}
    chosen = json_wordings(row.question for row in train)
    for kind in ("color", "shape", "yes-no", "yes-no-negated"):
        all_of_kind = {text for text in wordings if kind_of(text) == kind}
        assert abs(len(chosen & all_of_kind) - len(all_of_kind) / 2) <= 0.5


def test_the_form_depends_on_the_wording_and_not_on_the_order_of_the_rows(train: list[Record]) -> None:
    questions = [row.question for row in train]
    assert json_wordings(questions) == json_wordings(reversed(questions))


def test_a_wording_gets_the_form_it_leans_to_as_often_as_the_recipe_says(train: list[Record]) -> None:
    rng = random.Random(0)
    json_first = json_wordings(row.question for row in train)
    written = {True: 0, False: 0}
    asked = {True: 0, False: 0}
    for row in train[:8000]:
        leaning = row.question in json_first
        asked[leaning] += 1
        written[leaning] += parse(draw(row, json_first, 0.8, rng)).outcome is Outcome.VALID
    assert written[True] / asked[True] == pytest.approx(0.8, abs=0.03)
    assert written[False] / asked[False] == pytest.approx(0.2, abs=0.03)
