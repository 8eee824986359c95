import hashlib
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.scoring.steps import StepScore, crystal, match_f1, match_many
from vqa_grpo.scoring.steps import match as module

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text(encoding="utf-8"))
QUESTION = "What is the brand of the phone?"
NOKIA = ["The image shows a mobile phone.", "The logo above the screen reads NOKIA.", "So the brand is Nokia."]


class Words:
    """An encoder without a model: texts that share words are similar."""

    name = "words"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(list(texts))
        rows = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.casefold().strip(".").split():
                row[hashlib.sha256(word.encode()).digest()[0] % 64] += 1
        return rows


def score(steps: Sequence[str], references: Sequence[str], question: str = "", **options) -> StepScore:
    found = match_f1(steps, references, question, **{"mode": "lexical", **options})
    assert found is not None
    return found


# --- what earns, and what does not ----------------------------------------------------------------------------------


def test_no_contradiction_of_the_guides_kind_matches() -> None:
    pairs = PAIRS["contradictions_of_the_guides_kind"]
    assert len(pairs) >= 10
    scores = match_many([([a], [b], "") for a, b in pairs])
    assert [s.matched for s in scores if s] == [0] * len(pairs)
    assert [s.conflicts for s in scores if s] == [1] * len(pairs)
    crystal_scores = match_many([([a], [b], "") for a, b in pairs], mode="crystal")
    assert [s.matched for s in crystal_scores if s] == [1] * len(pairs)  # what the guard is for


def test_no_other_contradiction_of_the_table_matches_either() -> None:
    assert not any(s.matched for s in match_many([([a], [b], "") for a, b in PAIRS["more_contradictions"]]) if s)


def recall(name: str, mode: str) -> float:
    scores = match_many([([a], [b], "") for a, b in PAIRS[name]], mode=mode)
    return sum(s.matched for s in scores if s) / len(scores)


def test_most_paraphrases_match_and_most_other_facts_do_not() -> None:
    """The honest figures; README.md of scoring quotes them."""
    assert recall("paraphrases_to_choose_by", "semantic") == 1.0
    assert recall("paraphrases_held_out", "semantic") == pytest.approx(17 / 20)
    assert recall("different_facts", "semantic") == pytest.approx(3 / 15)
    assert recall("paraphrases_held_out", "crystal") == 1.0
    assert recall("different_facts", "crystal") == pytest.approx(14 / 15)
    assert recall("later_paraphrases", "semantic") == recall("later_paraphrases", "crystal") == 1.0
    assert recall("later_contradictions", "crystal") == 1.0
    assert recall("everyday_contradictions", "semantic") == recall("everyday_contradictions_held_out", "semantic") == 0
    assert recall("everyday_paraphrases", "semantic") == pytest.approx(53 / 55)
    assert recall("everyday_paraphrases_held_out", "semantic") == pytest.approx(32 / 35)


def test_two_later_contradictions_are_known_to_slip_through() -> None:
    """Who does what to whom, and which animal it is: neither the guard nor the encoder sees these."""
    scores = match_many([([a], [b], "") for a, b in PAIRS["later_contradictions"]])
    missed = [a for (a, _), s in zip(PAIRS["later_contradictions"], scores, strict=True) if s and s.matched]
    assert missed == ["The cat is chasing the mouse.", "The horse is brown."]


def test_the_references_said_back_score_one_in_every_mode() -> None:
    for mode in ("semantic", "lexical", "crystal"):
        assert score(NOKIA, NOKIA, QUESTION, mode=mode) == StepScore(1, 1, 1, 3, 3, 3, 0, 0, 0, 0)


def test_a_step_said_often_counts_once_and_costs_each_time() -> None:
    once, often = score(NOKIA[:1], NOKIA), score(NOKIA[:1] * 4, NOKIA)
    assert (once.matched, once.duplicates, once.precision) == (1, 0, 1.0)
    assert (often.matched, often.duplicates, often.precision, often.steps) == (1, 3, 0.25, 4)
    assert often.f1 < once.f1


def test_a_repetition_in_nearly_the_same_words_is_a_repetition() -> None:
    said = ["The logo above the screen reads NOKIA.", "Step 2: the logo, above the screen, clearly reads Nokia!"]
    assert score(said, NOKIA).duplicates == 1
    assert score(["The red bar is the tallest.", "The blue bar is the tallest."], NOKIA).duplicates == 0
    assert (
        score(["The image shows a red circle.", "The question asks if a red circle is present."], NOKIA).duplicates == 0
    )


@pytest.mark.parametrize(
    ("step", "question", "echo"),
    [
        (QUESTION, QUESTION, True),
        ("The question asks for the brand of the phone.", QUESTION, True),
        ("We need to determine the brand of the phone.", QUESTION, True),
        ("The phone brand.", QUESTION, True),
        ("The brand of the phone is Nokia.", QUESTION, False),
        ("The question asks for the shape.", "what shape is in the image?", False),
        ("The phone is a Nokia.", "Is the phone a Nokia?", False),
        ("Is the phone a Nokia?", "Is the phone a Nokia?", True),
        ("The question is: is the phone a Nokia?", "Is the phone a Nokia?", True),
        ("The dog is larger than the cat.", "Which is larger, the cat or the dog?", False),
        ("It is red.", "", False),
    ],
)
def test_a_step_that_says_no_more_than_the_question_is_an_echo(step: str, question: str, echo: bool) -> None:
    result = score([step], [step], question)
    assert (result.echoes, result.matched) == ((1, 0) if echo else (0, 1))


def test_what_is_in_conflict_is_counted_but_other_steps_are_not() -> None:
    result = score(["The logo above the screen reads SAMSUNG.", "Five birds sit on a wire."], NOKIA)
    assert (result.matched, result.conflicts) == (0, 1)


def test_more_pairs_go_before_a_more_similar_pair() -> None:
    class Angles:
        name = "angles"
        degrees = {"step s": 0, "step t": 60, "step r": 10, "step u": -45}  # noqa: RUF012

        def encode(self, texts):
            angles = np.radians([self.degrees[text] for text in texts])
            return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    # Similar enough: s to r and u, t to r only. Greedy takes s-r and leaves t and u alone.
    steps, references = ["step s", "step t"], ["step r", "step u"]
    assert score(steps, references, mode="semantic", encoder=Angles()).matched == 2
    vectors = Angles().encode(steps + references)
    matrix = crystal.similarities(vectors[:2], vectors[2:])
    assert crystal.greedy(matrix, module.SEMANTIC_THRESHOLD) == [(0, 0)]


@pytest.mark.parametrize("pair", [("a", "b"), ("B", "D"), ("cat", "dog"), ("no", "not"), ("!", "?"), (".", "...")])
def test_a_step_of_one_word_or_none_matches_no_other_word_and_contradicts_none(pair: tuple[str, str]) -> None:
    assert crystal_matched(*pair) == 1  # the encoder alone takes them for the same
    result = score([pair[0]], [pair[1]], mode="semantic")
    assert (result.matched, result.conflicts) == (0, 0)


def test_a_step_of_one_word_matches_the_same_word() -> None:
    for step, reference in (("a", "A"), ("cats", "the cat"), ("Nokia", "It is a Nokia."), ("It is a Nokia.", "Nokia")):
        assert score([step], [reference], mode="semantic").matched == 1, step


def crystal_matched(step: str, reference: str) -> int:
    return score([step], [reference], mode="crystal").matched


def test_three_weak_pairs_go_before_two_perfect_ones() -> None:
    case = module._Case(["a b", "c d", "e f"], ["r", "s", "t"], "")
    case.allowed = [[True] * 3] * 3
    case._lexical = lambda: np.array([[1, 0.6, 0], [0, 1, 0.6], [0.6, 0, 0]])  # type: ignore[method-assign]
    assert len(case._pairs("lexical", {})) == 3


def test_a_repeated_step_matches_only_what_all_its_wordings_match() -> None:
    class Known:
        name = "known"

        def encode(self, texts):
            return np.array([[0, 1] if "indeed" in text else [1, 0] for text in texts], np.float32)

    good, bad = "A red circle lies there.", "A red circle lies there, indeed."
    assert score([good], [good], mode="semantic", encoder=Known()).matched == 1
    repeated = score([good, bad], [good], mode="semantic", encoder=Known())
    assert (repeated.duplicates, repeated.matched) == (1, 0)


@given(st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_assignment_is_the_best_of_all_assignments(k: int, n: int, source: random.Random) -> None:
    class Known(module._Case):
        def __init__(self) -> None:
            self.units, self.references = [[i] for i in range(k)], ["r"] * n
            self.allowed = [[source.random() < 0.8 for _ in range(n)] for _ in range(k)]
            self.similarity = np.array([[source.random() for _ in range(n)] for _ in range(k)])

        def _lexical(self) -> np.ndarray:
            return self.similarity

    case = Known()
    good = {(i, j): case.similarity[i, j] for i in range(k) for j in range(n) if case.allowed[i][j]}
    good = {pair: value for pair, value in good.items() if value >= module.LEXICAL_THRESHOLD}
    size = min(k, n)
    worths = [
        (len(pairs := [p for p in zip(rows, columns, strict=True) if p in good]), sum(good[p] for p in pairs))
        for rows in itertools.permutations(range(k), size)
        for columns in itertools.permutations(range(n), size)
        if list(rows) == sorted(rows)
    ]
    found = case._pairs("lexical", {})
    assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)
    assert set(found) <= set(good)
    assert (len(found), sum(good[p] for p in found)) == pytest.approx(max(worths))


# --- properties -----------------------------------------------------------------------------------------------------

SENTENCES = st.builds(
    "The {} {} {} the {}.".format,
    st.sampled_from(["red", "blue", "big", "new", "1st"]),
    st.sampled_from(["cat", "dog", "sign", "bar", "2 boys"]),
    st.sampled_from(["is left of", "is on", "is not on", "reads", "shows", "is larger than"]),
    st.sampled_from(["mat", "NOKIA", "cat", "wall", "7 km"]),
)
STEPS = st.lists(st.one_of(SENTENCES, st.text(max_size=30)), max_size=6)
REFERENCES = st.lists(SENTENCES, min_size=1, max_size=6)
MODES = [("lexical", None), ("semantic", Words()), ("crystal", Words())]


@pytest.mark.parametrize(("mode", "encoder"), MODES)
@given(steps=STEPS, references=REFERENCES, question=st.one_of(st.just(""), SENTENCES))
def test_the_figures_agree_with_each_other(mode, encoder, steps, references, question) -> None:
    found = score(steps, references, question, mode=mode, encoder=encoder, order=True)
    assert 0 <= found.f1 <= 1
    assert 0 <= found.ordered_f1 <= found.f1
    assert found.matched <= min(found.steps, found.references)
    assert found.precision * found.steps == pytest.approx(found.matched)
    assert found.recall * found.references == pytest.approx(found.matched)
    assert found.duplicates + found.echoes + found.matched + found.conflicts <= found.steps
    k, n = found.steps, found.references
    assert found.f1 == pytest.approx(2 * found.matched / (k + n))
    assert found.length_controlled == pytest.approx(found.f1 - 2 * k / (k + n))
    assert found.length_controlled <= 1e-9 or k < found.matched


@pytest.mark.parametrize(("mode", "encoder"), MODES[:2])
@given(steps=STEPS, references=REFERENCES, source=st.randoms(use_true_random=False))
def test_the_order_of_the_steps_does_not_matter_unless_asked_for(mode, encoder, steps, references, source) -> None:
    shuffled = source.sample(steps, len(steps))
    assert score(shuffled, references, mode=mode, encoder=encoder) == score(
        steps, references, mode=mode, encoder=encoder
    )


def test_the_order_of_the_steps_does_not_choose_between_equal_assignments() -> None:
    steps = ["The red cat is left of the mat.", "The red dog is left of the mat.", "The big dog is left of the mat."]
    references = [steps[0], "The red cat is left of the NOKIA.", "The red cat is not on the mat."]
    scores = [score(order, references, mode="semantic", encoder=Words()) for order in itertools.permutations(steps)]
    assert scores == scores[:1] * 6


@pytest.mark.parametrize(("mode", "encoder"), MODES[:2])
@given(steps=STEPS.filter(any), references=REFERENCES, data=st.data())
def test_saying_something_again_never_raises_the_score(mode, encoder, steps, references, data) -> None:
    again = data.draw(st.sampled_from(steps))
    again = data.draw(st.sampled_from([again, again.upper(), f"Indeed, {again}", f"2. {again}"]))
    place = data.draw(st.integers(0, len(steps)))
    longer = [*steps[:place], again, *steps[place:]]
    before, after = (score(s, references, mode=mode, encoder=encoder) for s in (steps, longer))
    if after.duplicates > before.duplicates:  # not where capitals make it a statement of its own
        assert after.matched <= before.matched
        assert after.f1 <= before.f1


@given(STEPS, REFERENCES)
@settings(max_examples=50)
def test_many_at_once_score_as_one_by_one(steps, references) -> None:
    items = [(steps, references, ""), (references, references, ""), (steps, [], "")]
    assert match_many(items, mode="lexical") == [match_f1(*item, mode="lexical") for item in items]


# --- order, caps, cost ----------------------------------------------------------------------------------------------


def test_order_is_the_longest_run_in_the_references_order() -> None:
    assert score(NOKIA, NOKIA).order is None
    assert score(NOKIA, NOKIA, order=True).order == 1.0
    turned = score(NOKIA[::-1], NOKIA, order=True)
    assert (turned.order, turned.f1) == (pytest.approx(1 / 3), 1.0)
    assert turned.ordered_f1 == pytest.approx(0.7 + 0.3 / 3)
    assert score([NOKIA[2], NOKIA[0], NOKIA[1]], NOKIA, order=True).order == pytest.approx(2 / 3)


def test_steps_beyond_the_caps_are_neither_counted_nor_encoded() -> None:
    encoder = Words()
    steps = [f"Item {number} lies there." for number in range(400)]
    found = score(steps, ["Item 3 lies there.", "Item 40 lies there."], mode="semantic", encoder=encoder)
    assert (found.steps, found.matched) == (32, 1)
    score(["x" * 10_000], ["x" * 600], mode="semantic", encoder=encoder)
    assert max(len(text) for call in encoder.calls for text in call) == 512


def test_a_round_is_one_call_of_the_encoder_and_each_text_goes_in_once() -> None:
    encoder = Words()
    match_many([(NOKIA, NOKIA, QUESTION), (NOKIA[:2] * 3, NOKIA, QUESTION)] * 8, encoder=encoder)
    assert [sorted(call) for call in encoder.calls] == [sorted(NOKIA)]


def test_a_step_that_may_match_nothing_is_not_encoded() -> None:
    encoder = Words()
    score(["The car is green."], ["The car is red."], mode="semantic", encoder=encoder)
    assert encoder.calls == []


def test_blank_steps_count_and_never_match_and_blank_references_are_none() -> None:
    assert score(["", "  ", NOKIA[0]], NOKIA[:1]).precision == pytest.approx(1 / 3)
    assert match_f1(NOKIA, ["", " "], mode="lexical") is None
    assert match_f1(NOKIA, [], mode="semantic") is None
    assert score([], NOKIA, mode="semantic").f1 == 0


def test_a_lone_surrogate_from_json_is_scored_like_any_other_text() -> None:
    assert score(["\ud800 is red", "a"], ["It is red.", "\udfff"], mode="semantic").steps == 2


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="semantic, lexical, crystal"):
        match_f1(NOKIA, NOKIA, mode="fuzzy")  # type: ignore[arg-type]


def test_without_references_no_model_library_is_imported() -> None:
    code = (
        "import sys; from vqa_grpo.evaluation import predict; from vqa_grpo.scoring.steps import match_many;"
        "assert match_many([(['a'], [], 'q'), (['b'], [''], '')]) == [None, None];"
        "assert match_many([(['a b'], ['a b'], '')], mode='lexical')[0].f1 == 1;"
        "assert not {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
