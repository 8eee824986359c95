"""Signs of life for the supervisor: each rank shows which step it is at and what it turns to."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vqa_grpo.contract import vitals


class Signs(TrainerCallback):
    """Marks where collectives lie between: a rank that stops there is found out, whatever the backend notices.

    A rank alone waits for nobody and has no limit; neither has what comes before the first step and after the last.
    """

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        _beat(args, state, "step begins")

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        _beat(args, state, "part of the step done")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        _beat(args, state, "step done")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        _beat(args, state, "evaluating")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        _beat(args, state, "evaluated")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        _beat(args, state, "saved")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        vitals.beat(state.global_step, "training done", None)


def watched(reward: Callable[..., Any]) -> Callable[..., Any]:
    """The same reward function, with a sign of life before and after each call: it may be the one that hangs."""
    if inspect.iscoroutinefunction(reward):
        return reward

    @functools.wraps(reward)
    def call(*arguments: Any, **columns: Any) -> Any:
        name = getattr(reward, "__name__", type(reward).__name__)
        vitals.still(f"reward {name}")
        try:
            return reward(*arguments, **columns)
        finally:
            vitals.still(f"reward {name} done")

    return call


def _beat(args: TrainingArguments, state: TrainerState, doing: str) -> None:
    vitals.beat(state.global_step, doing, float(args.ddp_timeout) if args.world_size > 1 else None)
