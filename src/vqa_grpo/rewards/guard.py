"""Rewards never raise: an exception on one rank would leave the others waiting at TRL's gather for ever."""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

Rewards = list[float | None]

logger = logging.getLogger(__name__)
failures: Counter[str] = Counter()


def guarded(function: Callable[..., Any], name: str | None = None) -> Callable[..., Any]:
    """Wrap a reward function of TRL's signature, so that it always returns one usable number, or None, per row.

    A call that fails as a whole (an exception, a wrong number of rewards) gives None for every row, so that no
    completion is set above another by accident. A single value that is no finite number counts as 0.0: TRL would
    sum a lone None as 0 anyway. Either is logged once per reward, counted in `failures`, and shows in the training
    log as the metric `rewards/<name>/failed`, so that a broken reward is seen and cannot pass for a bad model.
    """
    label = str(name or getattr(function, "__name__", type(function).__name__))

    @functools.wraps(function)
    def call(prompts: list[Any], completions: list[Any], **columns: Any) -> Rewards:
        try:
            returned = function(prompts=prompts, completions=completions, **columns)
        except Exception as error:
            return _all_failed(label, error, len(completions), columns)
        return _checked(label, returned, len(completions), columns)

    @functools.wraps(function)
    async def call_async(prompts: list[Any], completions: list[Any], **columns: Any) -> Rewards:
        try:
            returned = await function(prompts=prompts, completions=completions, **columns)
        except Exception as error:
            return _all_failed(label, error, len(completions), columns)
        return _checked(label, returned, len(completions), columns)

    asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the question is whether it is a coroutine, not whether it exists
    )
    wrapper = call_async if asynchronous else call
    wrapper.__name__ = label  # TRL names the metrics after it
    return wrapper


def text_of(completion: Any) -> str:
    """The text of a completion, which TRL hands over as a string or as a list of chat messages."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def note_failure(name: str, error: BaseException | str) -> None:
    failures[name] += 1
    if failures[name] == 1:
        info = error if isinstance(error, BaseException) else None
        logger.error("reward %s failed (said once; see rewards/%s/failed): %s", name, name, error, exc_info=info)


def _all_failed(name: str, error: BaseException | str, rows: int, columns: dict[str, Any]) -> Rewards:
    note_failure(name, error)
    report_failed(name, rows, columns)
    return [None] * rows


def _checked(name: str, returned: Any, rows: int, columns: dict[str, Any]) -> Rewards:
    try:
        values = [None if value is None else float(value) for value in returned]
    except Exception as error:
        return _all_failed(name, error, rows, columns)
    if len(values) != rows:
        return _all_failed(name, f"returned {len(values)} rewards for {rows} completions", rows, columns)
    wrong = [value for value in values if value is not None and not math.isfinite(value)]
    if wrong:
        note_failure(name, f"returned {wrong[0]}")
        report_failed(name, len(wrong), columns)
    return [0.0 if value is not None and not math.isfinite(value) else value for value in values]


def report_failed(name: str, rows: int, columns: dict[str, Any]) -> None:
    """The number of failed rows as a metric of the training log."""
    # TRL gathers the metrics' names over the ranks first, so a metric that only one rank has is safe.
    log = columns.get("log_metric")
    if callable(log):
        log(f"rewards/{name}/failed", float(rows))
