"""What the three rewards can be told, apart from their weights, which are TRL's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.scoring.judge import JudgeSettings
from vqa_grpo.scoring.steps import Mode

COMBINATIONS = ("additive", "gated")
FORMATS = ("graded", "binary")
LEXICAL = "lexical"


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
    def from_options(cls, options: dict[str, Any]) -> RewardSettings:
        """From the fields of `training.arguments.VQAArguments`. Raises ConfigurationError."""
        judge = JudgeSettings(
            url=options["judge_url"],
            model=options["judge_model"],
            timeout_seconds=options["judge_timeout"],
            max_retries=options["judge_retries"],
            concurrency=options["judge_concurrency"],
            cache_dir=options["judge_cache_dir"],
        )
        return cls(
            combination=options["reward_combination"],
            format_reward=options["format_reward"],
            step_encoder=options["step_encoder"],
            judge=judge if options["use_judge"] else None,
        )
