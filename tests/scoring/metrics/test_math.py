"""How math-verify is asked: from any thread, in a process that may hang or die without taking anything with it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vqa_grpo.scoring.metrics import METRICS, math_equivalence

# Stands in for the library: two texts are equal when Python evaluates them alike, and some are trouble.
STAND_IN = """
import os, time

def parse(text, parsing_timeout):
    if text == "crash": os._exit(1)
    if text == "spin":
        while True: pass
    if text == "noise": print("this is not an answer")
    if text == "raise": raise ArithmeticError(text)
    try:
        return [eval(text, {})]
    except Exception:
        return []

def verify(gold, target, timeout_seconds):
    return gold == target
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "math_verify.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    _afresh()
    yield
    _afresh()


def _afresh() -> None:
    math_equivalence.close()
    math_equivalence.missing.cache_clear()
    math_equivalence._asked.cache_clear()


def _reward(prediction: str, gold: str) -> tuple[float, str]:
    verdict = METRICS["math"](prediction, [gold], [])
    return verdict.reward, verdict.rule


@pytest.mark.usefixtures("stand_in")
def test_equal_mathematics_is_right_and_other_mathematics_wrong() -> None:
    assert _reward("1/2", "0.5") == (1.0, "math:equivalence")
    assert _reward("1/3", "0.5") == (0.0, "math:equivalence")
    assert _reward("apples", "0.5") == (0.0, "math:equivalence")


@pytest.mark.usefixtures("stand_in")
def test_a_period_in_front_belongs_to_the_number() -> None:
    assert _reward("5", ".5") == (0.0, "math:equivalence")


@pytest.mark.usefixtures("stand_in")
def test_case_matters_for_a_variable_and_not_for_a_word() -> None:
    assert _reward("X", "x") == (0.0, "math:equivalence")
    assert _reward("Apples", "apples") == (1.0, "math:same_text")


@pytest.mark.usefixtures("stand_in")
def test_an_answer_that_kills_the_worker_is_wrong_and_the_next_is_judged() -> None:
    assert _reward("crash", "1") == (0.0, "math:gave_up")
    assert _reward("2-1", "1") == (1.0, "math:equivalence")


@pytest.mark.usefixtures("stand_in")
def test_an_answer_that_never_ends_is_stopped_by_the_worker_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick = tmp_path / "math_worker.py"
    source = Path(math_equivalence.__file__).with_name("math_worker.py").read_text()
    quick.write_text(source.replace("PROCESSOR_S = 8", "PROCESSOR_S = 0.3"))
    monkeypatch.setattr(math_equivalence, "__file__", str(tmp_path / "math_equivalence.py"))
    assert _reward("spin", "1") == (0.0, "math:gave_up")
    assert _reward("2-1", "1") == (1.0, "math:equivalence")


@pytest.mark.usefixtures("stand_in")
def test_what_the_library_prints_or_raises_is_not_taken_for_an_answer() -> None:
    assert _reward("noise", "1") == (0.0, "math:equivalence")
    assert _reward("raise", "1") == (0.0, "math:equivalence")


@pytest.mark.usefixtures("stand_in")
def test_a_worker_killed_between_two_questions_is_replaced_unnoticed() -> None:
    assert _reward("2-1", "1")[0] == 1.0
    assert math_equivalence._worker is not None
    process = math_equivalence._worker._process
    process.kill()
    process.wait()
    assert _reward("3-1", "2") == (1.0, "math:equivalence")


@pytest.mark.usefixtures("stand_in")
def test_threads_may_ask_and_the_callers_alarm_is_left_alone() -> None:
    signal.alarm(600)
    found: list[float] = []
    threads = [threading.Thread(target=lambda n=n: found.append(_reward(f"{n}+1", str(n + 1))[0])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1.0] * 8
    assert signal.alarm(0) > 0


@pytest.mark.usefixtures("stand_in")
def test_a_forked_process_starts_a_worker_of_its_own() -> None:
    assert _reward("2-1", "1")[0] == 1.0
    child = os.fork()
    if child == 0:
        # Nothing may leave here but the exit code: this is a copy of the whole test run.
        try:
            os._exit(0 if math_equivalence._worker is None and _reward("4-1", "3")[0] == 1.0 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _reward("5-1", "4")[0] == 1.0


def test_a_missing_library_is_a_rule_of_its_own_and_equal_text_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(str(tmp_path))
    _afresh()
    assert _reward("1/2", "0.5") == (0.0, "math:library_missing")
    assert _reward("0.5", "0.5") == (1.0, "math:same_text")
    _afresh()


def test_an_answer_longer_than_any_answer_is_not_parsed() -> None:
    assert _reward("1+" * 300 + "1", "301") == (0.0, "math:too_long")


def test_bare_latex_is_put_between_dollars_and_other_text_is_left() -> None:
    assert math_equivalence.as_latex(r"\frac{1}{2}") == r"$\frac{1}{2}$"
    assert math_equivalence.as_latex("x^2") == "$x^2$"
    assert math_equivalence.as_latex(r"\boxed{2}") == r"\boxed{2}"
    assert math_equivalence.as_latex("$x^2$") == "$x^2$"
    assert math_equivalence.as_latex(r"the side is \sqrt{2}") == r"the side is \sqrt{2}"
    assert math_equivalence.as_latex("red") == "red"


def test_the_library_itself_is_asked() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    _afresh()
    assert _reward(r"\frac{1}{2}", "0.5") == (1.0, "math:equivalence")
    assert _reward("x^2 + 1", "1 + x^2") == (1.0, "math:equivalence")
    assert _reward("2^{10}", "1024") == (1.0, "math:equivalence")
    assert _reward("2^{10}", "2") == (0.0, "math:equivalence")
    assert _reward("$3$", "4") == (0.0, "math:equivalence")
