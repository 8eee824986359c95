"""What the three rewards can be told, apart from their weights, which are TRL's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.scoring.judge import JudgeSettings
from vqa_grpo.scoring.steps import Mode

COMBINATIONS = ("additive", "gated")
FORMATS = ("graded", "binary")
LEXICAL = "lexical"
# Fields of JudgeSettings, and the trainer's names of them.
JUDGE_OPTIONS = {
    **{name: f"judge_{name}" for name in ("url", "model", "concurrency", "cache_dir")},
    "timeout_seconds": "judge_timeout",
    "max_retries": "judge_retries",
}


@dataclass(frozen=True)
class RewardSettings:
    """`combination`: additive pays each reward by itself; gated pays reasoning for a right answer only.
    `format_reward`: graded gives part marks; binary gives 1 for the prompt's object, whatever stands around it, else 0.
    `step_encoder`: a sentence-transformers name or folder; empty is the default one, and "lexical" compares words.
    """

    combination: str = "additive"
    format_reward: str = "graded"
    step_encoder: str = ""
    judge: JudgeSettings | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("reward_combination", self.combination, COMBINATIONS),
            ("format_reward", self.format_reward, FORMATS),
        ):
            if value not in known:
                raise ConfigurationError(f"--{name} {value!r} is unknown: use {' or '.join(known)}")

    @property
    def step_match(self) -> tuple[Mode, str | None]:
        """`mode` and `encoder` of `scoring.steps`."""
        return ("lexical", None) if self.step_encoder == LEXICAL else ("semantic", self.step_encoder or None)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> RewardSettings:
        """From the fields of `training.arguments.VQAArguments`; one left out has its default. ConfigurationError."""
        judge = JudgeSettings(**_given(options, JUDGE_OPTIONS))
        return cls(
            **_given(options, {name: name for name in ("format_reward", "step_encoder")}),
            **_given(options, {"combination": "reward_combination"}),
            judge=judge if options.get("use_judge") else None,
        )


def _given(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {field: options[name] for field, name in names.items() if name in options}
