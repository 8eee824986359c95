"""Progress and records: what a watching process and the next step read."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

from vqa_grpo.training.output import finite
from vqa_grpo.training.progress import ProgressLines


def reports(logs: list[dict[str, Any]], first_rank: bool = True) -> list[tuple[str, int, int, str]]:
    """What is emitted for these logs, one for each step."""
    seen: list[tuple[str, int, int, str]] = []
    callback = ProgressLines(lambda *report: seen.append(report))
    state: Any = SimpleNamespace(global_step=0, max_steps=4, is_world_process_zero=first_rank)
    nothing: Any = None
    callback.on_train_begin(nothing, state, nothing)
    for entry in logs:
        state.global_step += 1
        callback.on_log(nothing, state, nothing, logs=entry)
    return seen


LOGS = {"reward": 1.314, "rewards/format/mean": 0.98, "rewards/format/std": 0.1, "rewards/reasoning/mean": math.nan}


def test_a_report_names_the_rewards() -> None:
    assert reports([LOGS, LOGS])[1:] == [
        ("train", 1, 4, "reward 1.31 format 0.98"),
        ("train", 2, 4, "reward 1.31 format 0.98"),
    ]


def test_the_summary_at_the_end_is_no_report() -> None:
    assert len(reports([{"train_runtime": 3.0}])) == 1


def test_only_the_first_rank_reports() -> None:
    assert reports([LOGS], first_rank=False) == []


def test_the_history_is_json_that_every_reader_takes() -> None:
    assert json.dumps(finite([LOGS, math.inf]), allow_nan=False)
