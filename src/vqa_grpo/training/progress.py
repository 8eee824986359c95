"""Progress of a run for the program that watches it: one report per logging step."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Emit = Callable[[str, int, int, str], None]


def lines_wanted() -> bool:
    return os.environ.get("VQA_GRPO_PROGRESS") == "lines"


class ProgressLines(TrainerCallback):
    """Calls `emit` on the first rank whenever the trainer logs a step."""

    def __init__(self, emit: Emit, clock: Callable[[], float] = time.monotonic) -> None:
        self._emit = emit
        self._clock = clock
        self._began = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began, self._first_step = self._clock(), state.global_step
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
            self._emit("train", state.global_step, state.max_steps, self._note(logs, state))

    def _note(self, logs: dict[str, Any], state: TrainerState) -> str:
        parts = [f"reward {float(logs['reward']):.2f}"]
        for key, value in logs.items():
            if key.startswith("rewards/") and key.endswith("/mean") and math.isfinite(float(value)):
                parts.append(f"{key.split('/')[1]} {float(value):.2f}")
        steps = state.global_step - self._first_step
        if steps > 0 and state.global_step < state.max_steps:
            left = (self._clock() - self._began) / steps * (state.max_steps - state.global_step)
            parts.append(f"eta {_span(left)}")
        return " ".join(parts)


def _span(seconds: float) -> str:
    """
    >>> _span(42), _span(150), _span(9000)
    ('42s', '2m30s', '2h30m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
