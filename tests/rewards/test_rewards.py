"""The three rewards in TRL's signature: what they give, and that nothing makes them raise."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.rewards import debug_log, guard, vqa
from vqa_grpo.rewards.registry import REWARDS, load_rewards

STEPS = ["The image shows a red circle."]


def completion(answer: str = "red", steps: list[str] = STEPS) -> str:
    return json.dumps({"reasoning_steps": steps, "answer": answer})


def call(reward: Callable[..., Any], *texts: Any, **columns: Any) -> list[float | None]:
    return reward(prompts=["?"] * len(texts), completions=list(texts), completion_ids=[], **columns)


def test_format_pays_for_the_contract_and_part_of_it_for_an_object_in_prose() -> None:
    assert call(vqa.format, completion(), f"Sure: {completion()}", '{"answer": "red"}', "red", "") == [
        1,
        0.5,
        0.25,
        0,
        0,
    ]


def test_a_completion_may_come_as_chat_messages() -> None:
    assert call(vqa.format, [{"role": "assistant", "content": completion()}]) == [1.0]
    assert call(vqa.format, [{"role": "assistant", "content": [{"type": "text", "text": completion()}]}]) == [1.0]


def test_accuracy_reads_the_answer_from_a_usable_object_only() -> None:
    texts = [completion("Red"), f"So: {completion()}", '{"answer": "red"}', "red", completion("blue")]
    assert call(vqa.accuracy, *texts, answer=["red"] * 5) == [1, 1, 0, 0, 0]


def test_accuracy_takes_the_options_from_either_column() -> None:
    rows: dict[str, Any] = {"answer": ["B", "B"], "choices": [["2003", "2010"], []], "options": [[], ["2003", "2010"]]}
    assert call(vqa.accuracy, completion("2010"), completion("2010"), **rows) == [1, 1]


def test_accuracy_accepts_any_of_several_gold_answers() -> None:
    assert call(vqa.accuracy, completion("scarlet"), answer=[["red", "scarlet"]]) == [1.0]


def test_reasoning_compares_steps_and_does_not_apply_without_references() -> None:
    references = [STEPS, [*STEPS, "It is round and shiny."], [], None]
    scores = call(vqa.reasoning, *[completion()] * 4, reference_steps=references)
    assert scores == [1.0, pytest.approx(2 / 3), None, None]
    assert call(vqa.reasoning, completion()) == [None]
    assert call(vqa.reasoning, "no object", reference_steps=[STEPS]) == [0.0]


@given(st.one_of(st.text(), st.none(), st.lists(st.integers()), st.dictionaries(st.text(), st.text())), st.data())
def test_no_completion_and_no_row_makes_a_reward_raise(text: Any, data: st.DataObject) -> None:
    anything = st.one_of(st.none(), st.text(), st.integers(), st.lists(st.one_of(st.text(), st.none())))
    rows = {name: [data.draw(anything)] for name in ("answer", "choices", "options", "reference_steps", "question")}
    for reward in REWARDS.values():
        (value,) = call(reward, text, **rows)
        assert value is None or 0.0 <= value <= 1.0


def test_a_failing_row_costs_itself_only_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    guard.failures.clear()
    metrics: dict[str, float] = {}
    for _ in range(2):
        rewards = call(vqa.accuracy, completion(), completion(), answer=[None, "red"], log_metric=metrics.__setitem__)
        assert rewards == [0.0, 1.0]
    assert guard.failures["accuracy"] == 2
    assert metrics == {"rewards/accuracy/failed": 1.0}
    assert len([record for record in caplog.records if "accuracy failed" in record.message]) == 1


def _raises(**columns: Any) -> list[float]:
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_raises, [0.0, 0.0]),
        (lambda **columns: [1.0], [0.0, 0.0]),
        (lambda **columns: None, [0.0, 0.0]),
        (lambda **columns: [math.nan, 0.5], [0.0, 0.5]),
        (lambda **columns: ["high", 0.5], [0.0, 0.0]),
        (lambda **columns: [None, True], [None, 1.0]),
    ],
)
def test_a_foreign_reward_cannot_stop_the_training_either(
    function: Callable[..., Any], expected: list[float | None]
) -> None:
    assert call(guard.guarded(function, "foreign"), "a", "b") == expected


def test_an_asynchronous_reward_stays_asynchronous() -> None:
    async def slow(completions: list[str], **columns: Any) -> list[float]:
        if completions == ["bad"]:
            raise RuntimeError("boom")
        return [1.0] * len(completions)

    reward = guard.guarded(slow)
    assert asyncio.iscoroutinefunction(reward)
    assert asyncio.run(call(reward, "a", "b")) == [1.0, 1.0]  # type: ignore[arg-type]
    assert asyncio.run(call(reward, "bad")) == [0.0]  # type: ignore[arg-type]


def test_rewards_load_by_name_and_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_rewards")
    module.length = lambda completions, **columns: [float(len(text)) for text in completions]  # type: ignore[attr-defined]
    module.length.__name__ = "length"
    module.VERSION = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    for name in ("my_rewards:length", "my_rewards.length"):
        rewards = load_rewards(["format", "accuracy", "reasoning", name])
        assert [reward.__name__ for reward in rewards] == ["format", "accuracy", "reasoning", "length"]
        assert call(rewards[-1], "abc") == [3.0]
    with pytest.raises(ConfigurationError, match="int, not a function"):
        load_rewards(["my_rewards:VERSION"])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["acuracy"], "did you mean 'accuracy'"),
        (["zzz"], "package.module:function"),
        (["no_such_module:f"], "cannot be imported"),
        (["json.no_such_function"], "cannot be imported"),
        (["format", "format"], "two reward functions"),
        ([], "no reward function"),
    ],
)
def test_a_reward_that_stands_for_nothing_is_refused(names: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load_rewards(names)


@pytest.fixture
def debug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("DEBUG_MODE", "true")
    monkeypatch.setenv("LOG_PATH", str(tmp_path / "new" / "training_debug.txt"))
    return tmp_path / "new"


def score_all() -> None:
    for reward in REWARDS.values():
        call(reward, completion(), answer=["red"], question=["Which colour?"], reference_steps=[STEPS])


def test_debug_mode_writes_the_guides_files_into_a_new_folder(debug: Path) -> None:
    score_all()
    score_all()
    files = {path.name: path.read_text() for path in debug.iterdir()}
    assert set(files) == {f"training_debug_{name}_vqa.txt" for name in REWARDS}
    assert all(text.count("Content: ") == 2 for text in files.values())
    assert "Solution: red" in files["training_debug_accuracy_vqa.txt"]
    assert "Has valid format: True" in files["training_debug_format_vqa.txt"]
    assert "Match F1: 1.0" in files["training_debug_reasoning_vqa.txt"]


def test_each_rank_writes_files_of_its_own(debug: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        score_all()
    assert len(list(debug.iterdir())) == 6
    assert (debug / "training_debug_format_vqa_rank1.txt").is_file()


def test_debug_logs_stay_away_unless_asked_for(debug: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG_MODE", "false")
    score_all()
    assert not debug.exists()


def test_a_log_path_is_optional_and_needs_no_suffix(debug: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_PATH", str(debug / "run.log"))
    assert debug_log.path_of("format") == debug / "run.log_format_vqa.txt"
    monkeypatch.delenv("LOG_PATH")
    assert debug_log.path_of("format") == Path("training_debug_format_vqa.txt")


def test_a_debug_log_that_cannot_be_written_changes_no_reward(debug: Path) -> None:
    debug.write_text("a file where the folder should be")
    assert call(vqa.format, completion()) == [1.0]
