"""A run's summary for programs, made from the results that its steps published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Results = Mapping[str, Mapping[str, Any] | None]
SCORES = ("n", "format_rate", "accuracy", "accuracy_ci", "accuracy_given_format", "by_type")
MODEL = ("name", "version", "alias", "digest", "uri")


def summarise(run_id: str, status: str, results: Results) -> dict[str, Any]:
    """What `summary.json` holds, from the results by step. A part is None when the run did not get that far."""
    scores, decided, registered, train = (results.get(k) for k in ("evaluate", "decide", "register", "train"))
    dataset = results.get("convert")
    summary: dict[str, Any] = {
        "run_id": run_id,
        "status": status,
        "base": {key: scores["base"][key] for key in SCORES} if scores else None,
        "tuned": {key: scores["tuned"][key] for key in SCORES} if scores else None,
        "comparison": scores["comparison"] if scores else None,
        "blind": scores["blind"] if scores else None,
        "gate": {"decision": decided["decision"], "reasons": decided["reasons"]} if decided else None,
        "model": _model(registered, train),
        "dataset": {"digest": dataset["digest"], "splits": dataset["splits"]} if dataset else None,
        "seconds": {step: result["seconds"] for step, result in results.items() if result},
    }
    return summary


def _model(registered: Mapping[str, Any] | None, train: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The registered version; before that, or when the gate held it, what was trained."""
    if registered:
        return {key: registered[key] for key in MODEL}
    if train:
        return {"name": None, "version": None, "alias": None, "digest": train["digest"], "uri": train["model_uri"]}
    return None
