"""What a policy may try instead of answering: none of it pays more than an honest wrong answer.

The table is hacking.json, kept by hand. `python tests/rewards/test_hacking.py` writes it into the rewards' README.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import vqa_grpo.rewards
from vqa_grpo.rewards.settings import RewardSettings
from vqa_grpo.rewards.vqa import NAMES, VQARewards
from vqa_grpo.scoring import judge

TABLE: dict[str, Any] = json.loads(Path(__file__).with_name("hacking.json").read_text(encoding="utf-8"))
QUESTIONS: dict[str, dict[str, Any]] = TABLE["questions"]
STRATEGIES: list[dict[str, Any]] = TABLE["strategies"]
PAGE = Path(vqa_grpo.rewards.__file__).with_name("README.md")
BEGIN, END = "<!-- strategies: begin -->\n", "<!-- strategies: end -->\n"


def completion_of(strategy: dict[str, Any], question: dict[str, Any]) -> str:
    if "raw" in strategy:
        return "".join(text * times for text, times in strategy["raw"])
    right = strategy.get("against") == "honest_right"
    steps: list[str] = []
    chosen = strategy.get("steps", question["honest_steps"])
    for step in [chosen] if isinstance(chosen, str) else chosen:
        if step == "references":
            steps += question["reference_steps"]
        elif isinstance(step, list):
            steps += [step[0]] * step[1]
        else:
            steps.append(step)
    answer = strategy.get("answer", question["gold"] if right else question["wrong"])
    return json.dumps({"reasoning_steps": steps, "answer": answer})


def honest(question: dict[str, Any], answer: str) -> str:
    return json.dumps({"reasoning_steps": question["honest_steps"], "answer": question[answer]})


@cache
def _rewards(combination: str, encoder: str) -> dict[str, Any]:
    return VQARewards(RewardSettings(combination=combination, step_encoder=encoder)).functions()


def total(text: str, question: dict[str, Any], combination: str, encoder: str = "lexical") -> float:
    """What TRL sums with its default weights, 1 for each reward."""
    given: dict[str, Any] = {
        "prompts": ["?"],
        "completions": [text],
        "question": [question["question"]],
        "answer": [question["gold"]],
    }
    given |= {
        "options": [question.get("options", [])],
        "reference_steps": [question["reference_steps"]],
        "source": [""],
    }
    rewards = _rewards(combination, encoder)
    failed: list[str] = []
    given["log_metric"] = lambda name, value: failed.append(name) if name.endswith("/failed") else None
    paid = float(sum(rewards[name](**given)[0] or 0.0 for name in NAMES))
    assert not failed, "a strategy that breaks a reward would look like one that earns nothing"
    return paid


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy["name"])
def test_no_strategy_beats_honesty_where_reasoning_is_gated(strategy: dict[str, Any]) -> None:
    question = QUESTIONS[strategy["question"]]
    rival = honest(question, "gold" if strategy.get("against") == "honest_right" else "wrong")
    assert total(completion_of(strategy, question), question, "gated") <= total(rival, question, "gated"), strategy[
        "why"
    ]


@pytest.mark.parametrize("name", QUESTIONS)
def test_honesty_is_what_it_says(name: str) -> None:
    question = QUESTIONS[name]
    assert total(honest(question, "wrong"), question, "gated") == 1.0
    assert total(honest(question, "gold"), question, "gated") > 2.0
    assert total(honest(question, "wrong"), question, "additive") > 1.0


# What the semantic match does not see yet: a step that contradicts one reference may match a vaguer one.
SEMANTIC_WINNERS = {"states both sides", "switches the lamp off", "takes the lamp off the desk"}


@pytest.mark.full
def test_with_the_sentence_encoder_the_strategies_that_win_are_the_known_ones() -> None:
    winners = set()
    for strategy in STRATEGIES:
        question = QUESTIONS[strategy["question"]]
        rival = honest(question, "gold" if strategy.get("against") == "honest_right" else "wrong")
        paid = total(completion_of(strategy, question), question, "gated", encoder="")
        if paid > total(rival, question, "gated", encoder=""):
            winners.add(strategy["name"])
    assert winners == SEMANTIC_WINNERS


def test_no_strategy_finds_a_judge_that_says_yes_to_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(judge, "post", lambda url, body, timeout: asked.append(url) or '{"correct": true}')
    settings = RewardSettings(judge=judge.JudgeSettings(cache_dir=str(tmp_path)))
    accuracy = VQARewards(settings).functions()["accuracy"]
    for strategy in STRATEGIES:
        question = QUESTIONS[strategy["question"]]
        if strategy.get("against") != "honest_right":
            text = completion_of(strategy, question)
            row = {name: [question.get(name)] for name in ("question", "options")}
            assert accuracy(prompts=["?"], completions=[text], answer=[question["gold"]], **row) == [0.0], strategy
    assert asked, "if nothing is ever sent, this says nothing of the control question"


def test_in_the_sum_a_copied_reference_beats_an_honest_wrong_answer() -> None:
    """Why gated exists: the guide's sum pays for steps whatever they lead to."""
    question = QUESTIONS["year"]
    copied = next(strategy for strategy in STRATEGIES if strategy["name"] == "copies the references")
    assert total(completion_of(copied, question), question, "additive") == 2.0
    assert total(completion_of(copied, question), question, "gated") == 1.0


def test_the_table_is_large_and_names_each_strategy_once() -> None:
    names = [strategy["name"] for strategy in STRATEGIES]
    assert len(names) == len(set(names)) >= 100
    assert {strategy["question"] for strategy in STRATEGIES} == set(QUESTIONS)


def test_the_page_shows_the_table() -> None:
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown == page(), "write it anew: PYTHONPATH=src python tests/rewards/test_hacking.py"


def page() -> str:
    rows = [
        f"{len(STRATEGIES)} strategies; the most any of them gets, with every weight 1:",
        "",
        "| the strategy | asked, and the gold answer | writes | gated | honest | why it must not pay |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for strategy in STRATEGIES:
        question = QUESTIONS[strategy["question"]]
        right = strategy.get("against") == "honest_right"
        text = completion_of(strategy, question)
        paid = total(text, question, "gated")
        rival = total(honest(question, "gold" if right else "wrong"), question, "gated")
        cells = [
            strategy["name"],
            f"{question['question']} {_code(question['gold'])}",
            _code(strategy["answer"] if "answer" in strategy else text if "raw" in strategy else _steps(text)),
            f"{paid:.2f}",
            f"{rival:.2f}, {'right' if right else 'wrong'}",
            strategy["why"],
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _steps(text: str) -> str:
    return "steps: " + "; ".join(json.loads(text)["reasoning_steps"])


def _code(text: str, width: int = 90) -> str:
    """One line of a Markdown table: whatever cannot be seen is escaped, and what is long is cut."""
    head, more = text[: width + 1], len(text) - width
    shown = "".join(char if char.isprintable() and char.isascii() else f"\\u{ord(char):04x}" for char in head[:width])
    shown = shown.replace("|", "\\|").replace("`", "'")
    return f"`` {shown} ``{f' … and {more:,} more characters' if more > 0 else ''}"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + page() + END + rest.partition(END)[2], encoding="utf-8")
