"""Progress of a run for the program that watches it: one report per logging step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Emit = Callable[[str, int, int, str], None]


def lines_wanted() -> bool:
    return os.environ.get("VQA_GRPO_PROGRESS") == "lines"


class ProgressLines(TrainerCallback):
    """Calls `emit` on the first rank whenever the trainer logs a step."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._emit("train", state.global_step, state.max_steps, "starting")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The summary at the end of the run has no reward in it.
        if state.is_world_process_zero and logs and "reward" in logs:
            self._emit("train", state.global_step, state.max_steps, self._note(logs))

    def _note(self, logs: dict[str, Any]) -> str:
        parts = [f"reward {float(logs['reward']):.2f}"]
        for key, value in logs.items():
            if key.startswith("rewards/") and key.endswith("/mean") and math.isfinite(float(value)):
                parts.append(f"{key.split('/')[1]} {float(value):.2f}")
        return " ".join(parts)
