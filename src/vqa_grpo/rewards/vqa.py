"""The guide's three rewards: format, accuracy and reasoning.

>>> rewards = VQARewards(RewardSettings(step_encoder="lexical")).functions()
>>> good = '{"reasoning_steps": ["A red circle is shown."], "answer": "red"}'
>>> rewards["format"](prompts=["?"], completions=[good])
[1.0]
>>> rewards["accuracy"](prompts=["?"], completions=[good], answer=["blue"])
[0.0]
>>> rewards["reasoning"](prompts=["?"], completions=[good], reference_steps=[[]])
[None]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from vqa_grpo.contract.completion import Outcome
from vqa_grpo.contract.verdict import Verdict
from vqa_grpo.rewards import debug_log
from vqa_grpo.rewards.guard import Rewards, guarded, note_failure, report_failed
from vqa_grpo.rewards.round import Round
from vqa_grpo.rewards.settings import RewardSettings
from vqa_grpo.scoring.judge import Judge

NAMES = ("format", "accuracy", "reasoning")
STEP_FIGURES = (
    *("precision", "recall", "f1", "length_controlled"),
    *("steps", "references", "duplicates", "echoes", "conflicts"),
)
COLUMN_WIDTH = 200  # of a text in TRL's table of completions, which every rank gathers


class VQARewards:
    """The rewards of one training run. They share a round's work, so all three cost one parse and one grade."""

    def __init__(self, settings: RewardSettings | None = None) -> None:
        self.settings = settings or RewardSettings()
        self.judge = Judge(self.settings.judge) if self.settings.judge else None
        self._round: Round | None = None

    def functions(self) -> dict[str, Callable[..., Any]]:
        """The rewards by name, in TRL's signature; none of them ever raises."""
        made = {"format": self._format, "accuracy": self._accuracy, "reasoning": self._reasoning}
        return {name: guarded(function, name) for name, function in made.items()}

    def _rows(self, completions: list[Any], columns: dict[str, Any]) -> Round:
        if self._round is None or not self._round.serves(completions, columns):
            self._round = Round(completions, columns, self.settings, self.judge)
        return self._round

    def _format(self, prompts: list[Any], completions: list[Any], **columns: Any) -> Rewards:
        rows = self._rows(completions, columns)
        rewards: Rewards = []
        for row, completion in enumerate(rows.parsed):
            if isinstance(completion, Exception):
                rewards.append(0.0)
                continue
            exact = completion.format_reward == 1.0
            binary = self.settings.format_reward == "binary"
            reward = completion.binary_format_reward if binary else completion.format_reward
            rewards.append(reward)
            problems = ", ".join(completion.reasons) or "none"
            debug_log.write(
                "format",
                rows.texts[row],
                {
                    "Has valid format": exact,
                    "Format reward": reward,
                    "Outcome": completion.outcome,
                    "Problems": problems,
                },
            )
        read = _scored("format", rows.parsed, columns)
        log = _Log(columns)
        for outcome in Outcome:  # every one in every round, or the mean over rounds would leave the zeros out
            log.metric(f"format/outcome/{outcome}", [completion.outcome == outcome for completion in read])
        log.column("outcome", [getattr(completion, "outcome", None) for completion in rows.parsed])
        log.column("answer", [getattr(completion, "answer", None) for completion in rows.parsed])
        return rewards

    def _accuracy(self, prompts: list[Any], completions: list[Any], **columns: Any) -> Rewards:
        rows = self._rows(completions, columns)
        rewards: Rewards = []
        by_type: dict[str, list[float]] = defaultdict(list)
        for row, verdict in enumerate(rows.verdicts):
            if isinstance(verdict, Exception):
                rewards.append(0.0)
                continue
            rewards.append(verdict.reward)
            by_type[verdict.gold_type].append(verdict.correct)
            debug_log.write(
                "accuracy",
                rows.texts[row],
                {
                    "Problem": rows.question(row),
                    "Solution": rows.value("answer", row),
                    "Accuracy": verdict.reward,
                    "Rule": verdict.rule,
                    "Why": verdict.explanation,
                },
            )
        _scored("accuracy", rows.verdicts, columns)
        log = _Log(columns)
        for gold_type, correct in by_type.items():
            log.metric(f"accuracy/type/{gold_type}", correct)
        if self.judge:
            for label in ("right", "wrong", "cached", "off_menu", "failed"):
                log.metric(f"judge/{label}", [rows.judge_counts.get(label, 0)])
        for name in ("rule", "explanation"):
            log.column(name, [getattr(verdict, name, None) for verdict in rows.verdicts])
        return rewards

    def _reasoning(self, prompts: list[Any], completions: list[Any], **columns: Any) -> Rewards:
        """Match F1. None says that a question has no reference steps, which holds for its whole group: TRL leaves it
        out, where 0.0 would punish a model for a gap in the data. Gated, a wrong answer's steps earn nothing."""
        rows = self._rows(completions, columns)
        gated = self.settings.combination == "gated"
        rewards: Rewards = []
        for row, match in enumerate(rows.matches):
            if isinstance(match, Exception):
                rewards.append(0.0)
                continue
            paid = match is not None and (not gated or _right(rows.verdicts[row]))
            reward = None if match is None else match.f1 if paid else 0.0
            rewards.append(reward)
            debug_log.write(
                "reasoning",
                rows.texts[row],
                {
                    "Reference steps": list(rows.references(row)),
                    "Match F1": getattr(match, "f1", None),
                    "Precision": getattr(match, "precision", None),
                    "Recall": getattr(match, "recall", None),
                    "Conflicts": getattr(match, "conflicts", None),
                    "Reasoning reward": reward,
                },
            )
        matches = [match for match in _scored("reasoning", rows.matches, columns) if match is not None]
        log = _Log(columns)
        for name in STEP_FIGURES:
            log.metric(f"reasoning/{name}", [getattr(match, name) for match in matches])
        if gated:
            log.metric("reasoning/gate_open", [_right(verdict) for verdict in rows.verdicts])
        log.column("match_f1", [getattr(match, "f1", None) for match in rows.matches])
        return rewards


def _right(verdict: Verdict | Exception) -> bool:
    return isinstance(verdict, Verdict) and verdict.correct


def _scored(name: str, values: Sequence[Any], columns: dict[str, Any]) -> list[Any]:
    """The values without the failures, which are counted and logged under the reward's name."""
    errors = [value for value in values if isinstance(value, Exception)]
    for error in errors:
        note_failure(name, error)
    if errors:
        report_failed(name, len(errors), columns)
    return [value for value in values if not isinstance(value, Exception)]


class _Log:
    """TRL's log_metric and log_extra, which are there in training and absent where a reward is called by hand."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._metric = columns.get("log_metric")
        self._extra = columns.get("log_extra")

    def metric(self, name: str, values: Sequence[float]) -> None:
        """The mean of the round's values. TRL averages these over ranks and logging steps."""
        if callable(self._metric) and values:
            self._metric(name, sum(map(float, values)) / len(values))

    def column(self, name: str, values: Sequence[Any]) -> None:
        if callable(self._extra):
            # A lone surrogate would end the run where TRL writes the table as Parquet.
            shown = [
                value[:COLUMN_WIDTH].encode(errors="replace").decode() if isinstance(value, str) else value
                for value in values
            ]
            self._extra(name, shown)
