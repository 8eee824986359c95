"""Rewards of a rank that comes to grief in the second step: `stuck_reward:hangs`, `:dies` or `:leaves`."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

_calls = 0


def _second_on_rank_1() -> bool:
    global _calls
    _calls += 1
    return _calls == 2 and os.environ.get("RANK") == "1"


def hangs(completions: list[Any], **columns: Any) -> list[float]:
    if _second_on_rank_1():
        time.sleep(600)
    return [0.0] * len(completions)


def dies(completions: list[Any], **columns: Any) -> list[float]:
    if _second_on_rank_1():
        os.kill(os.getpid(), 9)
    return [0.0] * len(completions)


def leaves(completions: list[Any], **columns: Any) -> list[float]:
    """As when machines are drained: the job is asked to stop, and this rank is gone before it could."""
    if _second_on_rank_1():
        os.kill(int(os.environ["SUPERVISOR"]), signal.SIGTERM)
        time.sleep(2)
        os.kill(os.getpid(), 9)
    return [0.0] * len(completions)
