from __future__ import annotations

import random

import pytest

from vqa_grpo.contract.completion import Outcome, parse
from vqa_grpo.contract.record import Record
from vqa_grpo.quickstart.facts import COLORS, KINDS, SHAPES, kind_of
from vqa_grpo.quickstart.targets import LOOK_ALIKES, draw, json_answer, json_wordings, mistaken, prose_answer


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


def test_what_has_a_look_alike_is_mistaken_for_it_as_often_as_the_recipe_says(train: list[Record]) -> None:
    rng = random.Random(0)
    rows = [row for row in train if row.answer in LOOK_ALIKES]
    said = [mistaken(row, 0.65, rng) for row in rows]
    wrong = [(row, other) for row, other in zip(rows, said, strict=True) if other != row]
    assert len(wrong) / len(rows) == pytest.approx(0.65, abs=0.03)
    assert {row.answer for row, _ in wrong} == set(LOOK_ALIKES)
    for row, other in wrong:
        assert other.answer == LOOK_ALIKES[row.answer]
        # The sentence makes the same mistake, or the answer could be mended by reading it off.
        assert row.answer not in other.reference_steps[0].rstrip(".").split()
        assert other.answer in other.reference_steps[0].rstrip(".").split()
        assert other.reference_steps[1:] == row.reference_steps[1:]
        assert (other.question, other.image) == (row.question, row.image)


def test_yes_and_no_and_what_has_no_look_alike_are_never_mistaken(train: list[Record]) -> None:
    rng = random.Random(0)
    rows = [row for row in train if row.answer not in LOOK_ALIKES]
    assert {kind_of(row.question) for row in rows} == set(KINDS)
    assert [mistaken(row, 1.0, rng) for row in rows] == rows


def test_a_recipe_without_mistakes_draws_the_same_targets_as_before_there_were_any(train: list[Record]) -> None:
    rng = random.Random(0)
    state = rng.getstate()
    assert [mistaken(row, 0.0, rng) for row in train[:500]] == train[:500]
    assert rng.getstate() == state


def test_look_alikes_are_words_for_the_same_kind_of_thing() -> None:
    for true, wrong in LOOK_ALIKES.items():
        assert any({true, wrong} <= set(words) for words in (COLORS, SHAPES))
        assert wrong not in LOOK_ALIKES
