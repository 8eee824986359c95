"""Metrics for trackers: flat names, finite numbers. KFP's metrics fail a step that logs NaN; MLflow refuses None."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any


def clean_metrics(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Flatten nested numbers into "outer/inner" names; second, what was dropped and why.

    >>> clean_metrics({"accuracy": 0.5, "by_type": {"color": {"accuracy": float("nan"), "n": 3}}})
    ({'accuracy': 0.5, 'by_type/color/n': 3.0}, {'by_type/color/accuracy': 'nan is not finite'})
    """
    kept: dict[str, float] = {}
    dropped: dict[str, str] = {}
    for name, value in _leaves("", values):
        if value is None:
            dropped[name] = "no value"
        elif isinstance(value, bool) or not isinstance(value, Real):
            dropped[name] = f"{type(value).__name__} is not a number"
        elif name in kept:
            dropped[name] = "the name stands twice"
        else:
            number = _as_float(value)
            if math.isfinite(number):
                kept[name] = number
            else:
                dropped[name] = f"{number} is not finite"
    return kept, dropped


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), part) for index, part in enumerate(value)]
    else:
        yield prefix, value
        return
    for key, part in items:
        yield from _leaves(f"{prefix}/{key}" if prefix else key, part)
