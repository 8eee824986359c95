"""A run's summary for programs and its report for people, made from the results that its steps published."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from vqa_grpo.report.run import Example, Group, Rates, RunReport

Results = Mapping[str, Mapping[str, Any] | None]
SCORES = ("n", "format_rate", "accuracy", "accuracy_ci", "accuracy_given_format", "by_type")
MODEL = ("name", "version", "alias", "digest", "uri")


def summarise(run_id: str, status: str, results: Results, dataset: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `summary.json` holds. A part is None when the run did not get that far."""
    scores, decided, registered, train = (results.get(k) for k in ("evaluate", "decide", "register", "train"))
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


def run_report(
    summary: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    history: list[dict[str, Any]],
    config: Mapping[str, Any],
    lineage: Mapping[str, str],
) -> RunReport:
    """The data of the HTML report for a run that was evaluated."""
    comparison, blind = evaluation["comparison"], evaluation["blind"]
    types = [
        _group(
            name, evaluation["base"]["by_type"][name], tuned, comparison["by_type"][name], blind["by_type"].get(name)
        )
        for name, tuned in evaluation["tuned"]["by_type"].items()
    ]
    gate = summary["gate"] or {"decision": "", "reasons": []}
    return RunReport(
        title=f"vqa-grpo {summary['run_id']}",
        overall=_group("all", evaluation["base"], evaluation["tuned"], comparison, blind["accuracy"]),
        types=types,
        decision=gate["decision"],
        reasons=gate["reasons"],
        history=history,
        examples=[_example(example) for example in evaluation["examples"]],
        lineage=lineage,
        config=config,
        timings=summary["seconds"],
        notes=[
            f"{evaluation['tuned']['n']} questions of the {evaluation['split']} split, greedy decoding; "
            "an answer that cannot be read counts as wrong.",
            "The blind level is the accuracy of always giving the training set's most frequent answer to the same "
            "question text: what can be had without looking.",
        ],
    )


def _group(name: str, base: Any, tuned: Any, comparison: Any, blind: float | None) -> Group:
    return Group(
        name=name,
        n=tuned["n"],
        base=_rates(base),
        tuned=_rates(tuned),
        blind=blind,
        gain=comparison["gain"],
        gain_ci=comparison["gain_ci"],
        from_format=comparison["from_format"],
        from_answers=comparison["from_answers"],
    )


def _rates(scores: Mapping[str, Any]) -> Rates:
    return Rates(**{key: scores[key] for key in ("accuracy", "accuracy_ci", "format_rate", "accuracy_given_format")})


def _example(example: Mapping[str, Any]) -> Example:
    image = base64.b64decode(example["image"]) if example["image"] else None
    return Example(**{**example, "image": image})
