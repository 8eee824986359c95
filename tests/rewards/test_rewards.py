"""The three rewards in TRL's signature: what they give, and that nothing makes them raise."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.completion import Completion, Outcome
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.rewards import debug_log, guard
from vqa_grpo.rewards import round as rounds
from vqa_grpo.rewards.registry import check, load_rewards
from vqa_grpo.rewards.settings import RewardSettings
from vqa_grpo.rewards.vqa import NAMES, VQARewards

STEPS = ["The image shows a red circle."]
# The semantic match has tests of its own; words alone need no model.
LEXICAL = RewardSettings(step_encoder="lexical")
PLAIN = VQARewards(LEXICAL).functions()


def completion(answer: str = "red", steps: list[str] = STEPS) -> str:
    return json.dumps({"reasoning_steps": steps, "answer": answer})


def call(reward: Callable[..., Any], *texts: Any, **columns: Any) -> list[float | None]:
    return reward(prompts=["?"] * len(texts), completions=list(texts), completion_ids=[], **columns)


def test_format_pays_for_the_contract_and_part_of_it_for_an_object_in_prose() -> None:
    assert call(PLAIN["format"], completion(), f"Sure: {completion()}", '{"answer": "red"}', "red", "") == [
        1,
        0.5,
        0.25,
        0,
        0,
    ]


def test_a_completion_may_come_as_chat_messages() -> None:
    assert call(PLAIN["format"], [{"role": "assistant", "content": completion()}]) == [1.0]
    assert call(PLAIN["format"], [{"role": "assistant", "content": [{"type": "text", "text": completion()}]}]) == [1.0]


def test_accuracy_reads_the_answer_from_a_usable_object_only() -> None:
    texts = [completion("Red"), f"So: {completion()}", '{"answer": "red"}', "red", completion("blue")]
    assert call(PLAIN["accuracy"], *texts, answer=["red"] * 5) == [1, 1, 0, 0, 0]


def test_accuracy_takes_the_options_from_either_column() -> None:
    rows: dict[str, Any] = {"answer": ["B", "B"], "choices": [["2003", "2010"], []], "options": [[], ["2003", "2010"]]}
    assert call(PLAIN["accuracy"], completion("2010"), completion("2010"), **rows) == [1, 1]


def test_accuracy_accepts_any_of_several_gold_answers() -> None:
    assert call(PLAIN["accuracy"], completion("scarlet"), answer=[["red", "scarlet"]]) == [1.0]


def test_reasoning_compares_steps_and_does_not_apply_without_references() -> None:
    references = [STEPS, [*STEPS, "It is round and shiny."], [], None]
    scores = call(PLAIN["reasoning"], *[completion()] * 4, reference_steps=references)
    assert scores == [1.0, pytest.approx(2 / 3), None, None]
    assert call(PLAIN["reasoning"], completion()) == [None]
    assert call(PLAIN["reasoning"], "no object", reference_steps=[STEPS]) == [0.0]


@given(st.one_of(st.text(), st.none(), st.lists(st.integers()), st.dictionaries(st.text(), st.text())), st.data())
def test_no_completion_and_no_row_makes_a_reward_raise(text: Any, data: st.DataObject) -> None:
    anything = st.one_of(st.none(), st.text(), st.integers(), st.lists(st.one_of(st.text(), st.none())))
    rows = {name: [data.draw(anything)] for name in ("answer", "choices", "options", "reference_steps", "question")}
    for reward in PLAIN.values():
        (value,) = call(reward, text, **rows)
        assert value is None or 0.0 <= value <= 1.0


GATED = RewardSettings(combination="gated", step_encoder="lexical")
RIGHT_OR_WRONG: dict[str, Any] = {"answer": ["red"] * 4, "reference_steps": [STEPS, STEPS, [], []]}


def test_gated_pays_reasoning_for_a_right_answer_only() -> None:
    texts = [completion("red"), completion("blue"), completion("red"), completion("blue")]
    assert call(PLAIN["reasoning"], *texts, **RIGHT_OR_WRONG) == [1.0, 1.0, None, None]
    gated = VQARewards(GATED).functions()
    assert call(gated["reasoning"], *texts, **RIGHT_OR_WRONG) == [1.0, 0.0, None, None]
    assert call(gated["accuracy"], *texts, **RIGHT_OR_WRONG) == [1, 0, 1, 0]
    assert call(gated["format"], *texts) == [1, 1, 1, 1]


def test_a_missing_encoder_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from vqa_grpo.scoring.steps import encoder

    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package")
    with pytest.raises(ConfigurationError, match="not installed"):
        load_rewards(["reasoning"])
    load_rewards(["format", "accuracy"])
    load_rewards(["reasoning"], LEXICAL)


def test_gated_works_without_the_accuracy_reward_and_pays_nothing_where_the_gold_cannot_be_read() -> None:
    (reasoning,) = load_rewards(["reasoning"], GATED)
    rows = {"answer": ["blue", None], "reference_steps": [STEPS, STEPS]}
    assert call(reasoning, completion(), completion(), **rows) == [0.0, 0.0]


def test_binary_format_pays_for_the_object_whatever_stands_around_it() -> None:
    binary = VQARewards(RewardSettings(format_reward="binary")).functions()["format"]
    assert call(binary, completion(), f"Sure: {completion()}", '{"answer": "red"}', "") == [1, 1, 0, 0]


@pytest.mark.parametrize("wrong", [{"combination": "sum"}, {"format_reward": "strict"}])
def test_a_setting_that_stands_for_nothing_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="is unknown: use"):
        RewardSettings(**wrong)  # type: ignore[arg-type]


def test_a_round_is_read_and_graded_once_for_all_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str) -> None:
        function = getattr(rounds, name)
        monkeypatch.setattr(rounds, name, lambda *given, **named: calls.append(name) or function(*given, **named))

    counted("parse")
    counted("grade")
    texts = [completion("red"), completion("red"), completion("blue")]
    columns: dict[str, Any] = {"answer": ["red"] * 3, "reference_steps": [STEPS] * 3}
    rewards = VQARewards(GATED).functions()
    for _ in range(2):
        for reward in rewards.values():
            reward(prompts=["?"] * 3, completions=texts, completion_ids=[], **columns)
    assert sorted(calls) == ["grade"] * 2 + ["parse"] * 2


def test_a_round_is_not_mistaken_for_another_with_the_same_list() -> None:
    texts = [completion("red")]
    accuracy = VQARewards().functions()["accuracy"]
    score = lambda gold: accuracy(prompts=["?"], completions=texts, answer=[gold])  # noqa: E731
    assert [score("red"), score("blue"), score("red")] == [[1.0], [0.0], [1.0]]
    texts[0] = completion("blue")
    assert score("red") == [0.0]


def test_equal_completions_of_different_questions_are_graded_each_by_its_own_gold() -> None:
    rows = {"answer": ["red", "blue", "A"], "choices": [[], [], ["red", "blue"]]}
    assert call(PLAIN["accuracy"], *[completion("red")] * 3, **rows) == [1, 0, 1]


def test_a_completion_that_breaks_the_match_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    match_many = rounds.match_many

    def fragile(items: list[Any], **options: Any) -> Any:
        if any("poison" in steps for steps, _, _ in items):
            raise ValueError("poison")
        return match_many(items, **options)

    monkeypatch.setattr(rounds, "match_many", fragile)
    poison, fine = completion(steps=["poison"]), completion()
    assert call(PLAIN["reasoning"], fine, poison, fine, reference_steps=[STEPS] * 3) == [1.0, 0.0, 1.0]


def test_a_match_that_works_for_no_row_gives_no_row_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "match_many", _raises)
    metrics: dict[str, float] = {}
    columns: dict[str, Any] = {"reference_steps": [STEPS] * 2, "log_metric": metrics.__setitem__}
    assert call(PLAIN["reasoning"], completion(), completion("blue"), **columns) == [None, None]
    assert metrics == {"rewards/reasoning/failed": 2.0}


def test_the_rewards_report_what_they_are_made_of() -> None:
    metrics: dict[str, float] = {}
    extra: dict[str, list[Any]] = {}
    texts = [completion("red"), completion("blue", ["It is loud.", "It is red."]), "prose"]
    columns: dict[str, Any] = {"answer": ["red"] * 3, "reference_steps": [STEPS] * 3}
    for reward in VQARewards(GATED).functions().values():
        call(reward, *texts, log_metric=metrics.__setitem__, log_extra=extra.__setitem__, **columns)
    shares = {name: value for name, value in metrics.items() if name.startswith("format/outcome/")}
    assert sum(shares.values()) == pytest.approx(1)
    assert len(shares) == len(Outcome), "the mean over rounds would leave out the rounds that had none"
    assert shares["format/outcome/valid"] == pytest.approx(2 / 3)
    assert metrics["accuracy/type/text"] == metrics["reasoning/gate_open"] == pytest.approx(1 / 3)
    assert (metrics["reasoning/steps"], metrics["reasoning/references"]) == (1.0, 1.0)
    assert 0 < metrics["reasoning/precision"] <= metrics["reasoning/recall"] < 1
    assert extra["answer"] == ["red", "blue", None]
    assert {len(values) for values in extra.values()} == {3}


def test_a_column_of_the_completions_table_can_be_written_as_parquet(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    extra: dict[str, list[Any]] = {}
    # The parser lets no lone surrogate through today; the table must not hang on that.
    answers = iter(["\ud800" * 3, "long " * 1000])
    monkeypatch.setattr(rounds, "parse", lambda text: Completion(Outcome.VALID, next(answers), ("It is red.",)))
    texts = [completion("one"), completion("two")]
    for reward in VQARewards(LEXICAL).functions().values():
        reward(
            prompts=["?"] * 2,
            completions=texts,
            completion_ids=[],
            answer=["red"] * 2,
            reference_steps=[STEPS] * 2,
            log_extra=extra.__setitem__,
        )
    assert pa.table(extra).num_rows == 2
    assert max(len(value or "") for value in extra["answer"]) <= 200


def test_a_failing_row_costs_itself_only_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    guard.failures.clear()
    metrics: dict[str, float] = {}
    for _ in range(2):
        rewards = call(
            PLAIN["accuracy"], completion(), completion(), answer=[None, "red"], log_metric=metrics.__setitem__
        )
        assert rewards == [0.0, 1.0]
    assert guard.failures["accuracy"] == 2
    assert metrics == {"rewards/accuracy/failed": 1.0, "accuracy/type/text": 1.0}
    assert len([record for record in caplog.records if "accuracy failed" in record.message]) == 1


def _raises(*given: Any, **columns: Any) -> list[float]:
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_raises, [None, None]),
        (lambda **columns: [1.0], [None, None]),
        (lambda **columns: None, [None, None]),
        (lambda **columns: [math.nan, 0.5], [0.0, 0.5]),
        (lambda **columns: ["high", 0.5], [None, None]),
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
    assert asyncio.run(call(reward, "bad")) == [None]  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"reward_funcs": ["acuracy"]}, "did you mean 'accuracy'"),
        ({"reward_funcs": []}, "at least one of"),
        ({"reward_funcs": ["format", "accuracy", "format"]}, "two reward functions are called 'format'"),
        ({"reward_funcs": ["accuracy", "mine.rewards:accuracy"]}, "two reward functions are called 'accuracy'"),
        ({"reward_funcs": ["one:brevity", "two.brevity"]}, "two reward functions are called 'brevity'"),
        *(
            ({"reward_funcs": [name]}, "package.module:function")
            for name in ("a:", ":b", "a b:c", "./a.py:f", "a..b", "")
        ),
        ({"reward_weights": [1.0]}, "1 numbers for 2 rewards .*one for each"),
        ({"reward_weights": [1.0, float("nan")]}, "finite"),
        ({"reward_combination": "product"}, "additive or gated"),
        ({"format_reward": "strict"}, "graded or binary"),
        ({"step_encoder": "/no/such/folder"}, "'/no/such/folder' is no folder with"),
        ({"step_encoder": "./models/mine"}, "is no folder with"),
        ({"step_encoder": "~/model"}, "whole path"),
        ({"step_encoder": "Lexical"}, "write 'lexical'"),
        ({"step_encoder": "https://huggingface.co/a/b"}, "neither a model's name"),
        ({"step_encoder": "two words"}, "neither a model's name"),
        ({"use_judge": True, "judge_url": "localhost:11434"}, "'localhost:11434' is no http.*give for example"),
        ({"use_judge": True, "judge_url": "http://host:port/v1"}, "no http"),
        ({"use_judge": True, "judge_timeout": 0}, "timeout 0 must lie"),
        ({"use_judge": True, "judge_retries": 11}, "retries 11 must lie"),
        ({"use_judge": True, "judge_concurrency": 0}, "concurrency 0 must lie"),
        ({"use_judge": True, "judge_model": ""}, "no model: give"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        check(wrong)


def test_settings_that_can_work_are_read_from_the_trainers_options(tmp_path: Path) -> None:
    assert check({}) == RewardSettings()
    judged = check(
        {"use_judge": True, "judge_url": "http://judge:8000/v1", "judge_timeout": 5, "format_reward": "binary"}
    )
    assert judged.judge is not None
    assert (judged.judge.url, judged.judge.timeout_seconds, judged.format_reward) == (
        "http://judge:8000/v1",
        5,
        "binary",
    )
    check({"reward_funcs": ["format", "mine.rewards:brevity", "theirs.length"], "reward_weights": [1, 0.5, 2]})
    for name in ("", "lexical", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        assert check({"step_encoder": name}).step_encoder == name
    (tmp_path / "modules.json").write_text("[]")
    check({"step_encoder": str(tmp_path)})
    check({"step_encoder": "/only/in/the/cluster"}, local=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="is a file: name a folder"):
        check({"use_judge": True, "judge_cache_dir": str(tmp_path / "file")})


def test_the_check_needs_neither_torch_nor_the_users_module() -> None:
    code = (
        "import sys; from vqa_grpo.rewards.registry import check; check({'reward_funcs': ['nowhere.to_be:found']});"
        "assert not {'torch', 'transformers', 'sentence_transformers', 'nowhere'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_step_encoder_that_is_not_there_is_refused_with_the_rewards() -> None:
    with pytest.raises(ConfigurationError, match="check the path"):
        load_rewards(["reasoning"], RewardSettings(step_encoder="/no/such/folder"))


@pytest.fixture
def debug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("DEBUG_MODE", "true")
    monkeypatch.setenv("LOG_PATH", str(tmp_path / "new" / "training_debug.txt"))
    return tmp_path / "new"


def score_all() -> None:
    for reward in PLAIN.values():
        call(reward, completion(), answer=["red"], question=["Which colour?"], reference_steps=[STEPS])


def test_debug_mode_writes_the_guides_files_into_a_new_folder(debug: Path) -> None:
    score_all()
    score_all()
    files = {path.name: path.read_text() for path in debug.iterdir()}
    assert set(files) == {f"training_debug_{name}_vqa.{kind}" for name in NAMES for kind in ("txt", "jsonl")}
    assert all(text.count("Content: ") == 2 for name, text in files.items() if name.endswith(".txt"))
    assert "Solution: red" in files["training_debug_accuracy_vqa.txt"]
    assert "Has valid format: True" in files["training_debug_format_vqa.txt"]
    assert "Match F1: 1.0" in files["training_debug_reasoning_vqa.txt"]


def test_each_rank_writes_files_of_its_own(debug: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        score_all()
    assert len(list(debug.iterdir())) == 12
    assert (debug / "training_debug_format_vqa_rank1.txt").is_file()


def test_the_jsonl_twin_holds_the_same_records_for_programs(debug: Path) -> None:
    hostile = completion(answer="red\n------------- \ud800")
    call(PLAIN["accuracy"], hostile, answer=["red"], question=["Which colour?"])
    (line,) = (debug / "training_debug_accuracy_vqa.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["reward"], record["rank"], record["solution"], record["accuracy"]) == ("accuracy", 0, "red", 0.0)
    assert record["content"] == hostile


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
    assert call(PLAIN["format"], completion()) == [1.0]
