"""A reward of somebody else's, for the tests: named on the command line as `length_reward:ids`."""

from __future__ import annotations

from typing import Any


def ids(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [sum(tokens) / 1000 for tokens in completion_ids]
