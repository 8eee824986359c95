"""A reward for tests: as it is imported it begins to note what TRL gathers over the ranks, in the file GATHERED."""

from __future__ import annotations

import json
import os
import pickle
from typing import Any

import trl.trainer.grpo_trainer as grpo

_gather = grpo.gather_object


def _noted(values: Any) -> Any:
    data = pickle.dumps(values)
    note = {"rank": os.environ.get("RANK", "0"), "bytes": len(data), "picture": b"PIL" in data, "text": str(values)}
    with open(os.environ["GATHERED"], "a") as file:
        file.write(json.dumps(note) + "\n")
    return _gather(values)


grpo.gather_object = _noted


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(ids) % 97 / 97 for ids in completion_ids]
