"""The decision on a tuned model, and whether there is anything new to decide on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.contract.layout import key_of, step_uri
from vqa_grpo.steps.shared import MEASURED, UNRECORDED, config_of, once, result_of
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import open_store

LAST_DECISION = "decisions/last.json"


@dataclass(frozen=True)
class Decided:
    promote: bool
    decision: str
    reasons: list[str]


def decide_promotion(config: str, run_id: str, root: str, fingerprint: str, code: str, evaluation_uri: str) -> Decided:
    """Compare with the gate's rules, and record the numbers in MLflow whatever the verdict."""
    from vqa_grpo import registry
    from vqa_grpo.evaluation import gate
    from vqa_grpo.evaluation.compare import Comparison
    from vqa_grpo.evaluation.score import Scores
    from vqa_grpo.report.metrics import clean_metrics

    run = config_of(config)
    scores = result_of(evaluation_uri)

    def build(folder: Path) -> dict[str, Any]:
        base, tuned = Scores.from_dict(scores["base"]), Scores.from_dict(scores["tuned"])
        verdict = gate.decide(base, tuned, Comparison.from_dict(scores["comparison"]), run.gate)
        if not registry.is_configured(run.registry.tracking_uri):
            # A smoke run on a cluster without MLflow: everything can be seen but registration.
            reason = (
                "No MLflow is configured (registry.tracking_uri or MLFLOW_TRACKING_URI): nothing can be registered."
            )
            return {"decision": "hold", "reasons": [reason, *verdict.reasons], "mlflow_run_id": ""}
        mlflow_run_id = registry.record_run(
            run.registry.tracking_uri,
            run.registry.experiment,
            run_id,
            metrics=clean_metrics({name: scores[name] for name in MEASURED})[0],
            params={"config": run.canonical()},
            tags=scores["lineage"] | {"decision": verdict.decision, "code": code, "source": fingerprint},
        )
        return {**asdict(verdict), "mlflow_run_id": mlflow_run_id}

    # A verdict without MLflow lies apart, so that the same run can be decided on once there is one.
    place = "decide" if registry.is_configured(run.registry.tracking_uri) else UNRECORDED
    result = once("decide", step_uri(root, run_id, place), build)
    if result["mlflow_run_id"]:
        last = {"key": _decision_key(config, fingerprint, code), "run_id": run_id, "decision": result["decision"]}
        open_store(root).write(LAST_DECISION, json.dumps(last).encode())
    return Decided(result["decision"] == "promote", result["decision"], result["reasons"])


def needs_training(config: str, root: str, fingerprint: str, code: str) -> bool:
    """False when the last decision was on the same source, code and configuration, whatever it was.

    A promotion counts only once its model is registered: a night on which MLflow was away is not the last word.
    """
    data = open_store(root).read(LAST_DECISION)
    last = json.loads(data) if data else {}
    if last.get("key") != _decision_key(config, fingerprint, code):
        return True
    return last["decision"] == "promote" and not publish.is_published(step_uri(root, last["run_id"], "register"))


def _decision_key(config: str, fingerprint: str, code: str) -> str:
    return key_of(config_of(config).deciding(), fingerprint, code)
