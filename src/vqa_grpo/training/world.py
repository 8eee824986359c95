"""How many processes train together, as the launcher that started them says in the environment."""

from __future__ import annotations

import os


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)


def processes_of_a_node() -> int:
    """torchrun and accelerate say it by one name, DeepSpeed's launcher by another."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or processes())
