"""Each metric against its published implementation, on thousands of generated answers.

The implementations come from the package index without their dependencies; without a network the tests skip.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import metric_cases as cases
import metric_references as references
import pytest

from vqa_grpo.scoring.metrics import METRICS, vqa_soft

pytestmark = pytest.mark.full

Explain = Callable[[cases.Case], str]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> references.References:
    folder = tmp_path_factory.mktemp("references")
    problem = references.install(folder)
    if problem:
        pytest.skip(f"the reference implementations cannot be installed: {problem.splitlines()[-1]}")
    return references.References(folder)


def _nothing(case: cases.Case) -> str:
    return ""


def _vqav2(case: cases.Case) -> str:
    """lmms-eval processes always, and takes "1,,2" for a number with thousands; the official evaluation does not."""
    if len({" ".join(re.split(r"[\n\t]", gold)).strip() for gold in case.golds}) == 1:
        return "unanimous answers are compared unprocessed"
    return "doubled comma" if any(re.search(r"\d,,+\d", text) for text in [case.prediction, *case.golds]) else ""


def _anls_lengths(case: cases.Case) -> str:
    """lmms-eval divides by the length of the text before its spaces are normalised, in capitals."""
    for text in (case.prediction, *case.golds):
        if len(text.upper()) != len(" ".join(text.lower().split())):
            return "length before normalising"
    return ""


def _anls_half(case: cases.Case) -> str:
    """PyPI `anls` gives nothing for exactly one half, and counts the letters of the capitals."""
    if METRICS["anls"](case.prediction, case.golds, []).reward == 0.5:
        return "exactly one half"
    return "capitals of another length" if any(len(t) != len(t.upper()) for t in (case.prediction, *case.golds)) else ""


def _not_compared_by_structure(case: cases.Case) -> str:
    rule = METRICS["anls_star"](case.prediction, case.golds, []).rule
    return "" if rule == "anls_star:structure" else f"an answer that is no list or record, or too large ({rule})"


PAIRS: list[tuple[str, str, str, int, Explain]] = [
    ("crystal", "crystal", "mixed", 5000, _nothing),
    ("vqa_soft", "vqa_soft", "annotated", 3000, _vqav2),
    ("textvqa", "textvqa", "annotated", 3000, _nothing),
    ("anls", "anls", "texts", 3000, _anls_lengths),
    ("anls", "anls_package", "texts", 3000, _anls_half),
    ("anls", "anls_star", "texts", 3000, _nothing),
    ("anls_star", "anls_star", "texts", 3000, _nothing),
    ("anls_star", "anls_star_structures", "structures", 1000, _not_compared_by_structure),
    ("chartqa", "chartqa", "texts", 5000, _nothing),
    ("mmmu", "mmmu", "choices", 5000, _nothing),
    ("mmmu", "mmmu_open", "open_questions", 5000, _nothing),
]


@pytest.mark.parametrize(("metric", "judge", "generator", "count", "explain"), PAIRS)
def test_a_metric_agrees_with_its_published_implementation(
    reference: references.References,
    capsys: pytest.CaptureFixture[str],
    metric: str,
    judge: str,
    generator: str,
    count: int,
    explain: Explain,
) -> None:
    explained: Counter[str] = Counter()
    unexplained = []
    positive = 0
    for case in getattr(cases, generator)(seed=20, count=count):
        ours = METRICS[metric](case.prediction, case.golds, case.options).reward
        theirs = getattr(reference, judge)(case.prediction, list(case.golds), case.options)
        positive += theirs > 0
        if abs(ours - theirs) <= 1e-9:
            continue
        reason = explain(case)
        if reason:
            explained[reason] += 1
        else:
            unexplained.append((ours, theirs, case))
    with capsys.disabled():
        print(f"\n{metric} against {judge}: {count} answers, {positive} not zero, disagreements {dict(explained) or 0}")
    assert unexplained == []
    # A generator that only makes wrong answers would agree with anything.
    assert count / 10 < positive < count * 0.9


def test_math_agrees_with_math_verify_but_for_equal_text_and_bare_latex(
    reference: references.References, capsys: pytest.CaptureFixture[str]
) -> None:
    explained: Counter[str] = Counter()
    positive = 0
    made = cases.expressions(seed=20, count=600)
    for case in made:
        ours = METRICS["math"](case.prediction, case.golds, [])
        theirs = reference.math(case.prediction, case.golds, [])
        positive += theirs > 0
        if ours.reward != theirs:
            bare = any("\\" in text or "^" in text or "{" in text for text in (case.prediction, *case.golds))
            reason = ours.rule if ours.rule == "math:same_text" else "bare LaTeX" if bare else ""
            assert reason, (ours, theirs, case)
            explained[reason] += 1
    with capsys.disabled():
        print(f"\nmath against math-verify: {len(made)} answers, {positive} not zero, disagreements {dict(explained)}")
    assert positive > 60


def test_the_contractions_are_those_of_the_published_table(reference: references.References) -> None:
    table = reference.processor.CONTRACTIONS
    # Keys with capitals are never found, and a word mapped to itself stays what it is.
    expected = {key: word for key, word in table.items() if key == key.lower() and key != word}
    assert expected == vqa_soft._CONTRACTIONS


def test_the_golden_values_are_what_the_references_say_today(
    reference: references.References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {path.name: path.read_text() for path in references.GOLDEN.glob("*.json")}
    monkeypatch.setattr(references, "GOLDEN", tmp_path)
    references.write_golden(reference, lambda generator: getattr(cases, generator)(seed=1, count=300))
    assert kept == {path.name: path.read_text() for path in tmp_path.glob("*.json")}
