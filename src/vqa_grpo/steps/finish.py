"""The end of a run, good or bad: its summary, its report, and no job left running."""

from __future__ import annotations

import json
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError, StepError
from vqa_grpo.contract.layout import EVALUATION_STATUS, TRAINING_STATUS, step_uri
from vqa_grpo.report.progress import announce
from vqa_grpo.steps.data_plan import validation_uri
from vqa_grpo.steps.notice import send_notice
from vqa_grpo.steps.shared import OPENED, TINY, UNRECORDED, check_run_id, forget_failure, found, result_of
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import open_store

MLFLOW_STATUS = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}  # Kubeflow's word → MLflow's, FAILED for any other


def finish_run(run_id: str, root: str, status: str, said: str = "") -> str:
    """Write summary and report from what the run's steps published, stop what is left of its jobs, tell of failures.

    Runs after a failure too; `status` and `said` are Kubeflow's words on how the run ended. Both files are derived
    from published results, so they may be written again. Returns the report's HTML, empty for a run that was not
    evaluated.
    """
    from vqa_grpo import jobs
    from vqa_grpo.report.summary import summarise

    check_run_id(run_id)
    announce("finish", "started")
    try:
        results = {step: found(step_uri(root, run_id, step)) for step in ("train", "evaluate", "decide", "register")}
        results["decide"] = results["decide"] or found(step_uri(root, run_id, UNRECORDED))
        if not (results["decide"] or {}).get("mlflow_run_id"):
            _end_mlflow_run(step_uri(root, run_id, "mlflow"), status)
        results |= _inputs_of(results["evaluate"])
        summary = summarise(run_id, status, results)
        store = open_store(step_uri(root, run_id, "summary"))
        store.write("summary.json", json.dumps(summary, indent=1, sort_keys=True, allow_nan=False).encode())
        report = _report(run_id, results, summary["seconds"]) if results["evaluate"] else ""
        if report:
            store.write("report.html", report.encode())
    finally:
        try:
            jobs.sweep(run_id)
        except ConfigurationError as error:  # who may not list jobs, as in a notebook's pod, has made none
            announce("finish", "could not look for jobs", why=str(error))
        finally:
            if status != "SUCCEEDED":
                send_notice(run_id, root, status, said)
    for place in (TRAINING_STATUS, EVALUATION_STATUS):
        forget_failure("finish", step_uri(root, run_id, place))
    announce("finish", "finished")
    return report


def _end_mlflow_run(place: str, status: str) -> None:
    """Close what training opened in MLflow and no decision recorded. MLflow being away costs the run nothing else."""
    from vqa_grpo import registry

    opened = json.loads(open_store(place).read(OPENED) or b"{}")
    if not opened:
        return
    try:
        registry.end_run(opened["tracking_uri"], opened["mlflow_run_id"], MLFLOW_STATUS.get(status, "FAILED"))
    except (StepError, ImportError) as error:
        announce("finish", "left its MLflow run open", why=str(error))


def _inputs_of(evaluation: dict[str, Any] | None) -> dict[str, dict[str, Any] | None]:
    """The results that lie under their inputs' keys and not under the run's id, found through lineage."""
    if evaluation is None:
        return {"convert": None, "validate": None, "prepare": None}
    config = evaluation["config"]  # as it was stored: it may be of older code, or name a folder that is gone
    data_uri = evaluation["dataset_uri"].rpartition("/")[0]
    base = evaluation["lineage"]["base_model"]
    return {
        "convert": result_of(evaluation["dataset_uri"]),
        "validate": found(validation_uri(data_uri, "reasoning" in config["rewards"]["functions"])),
        "prepare": found(base) if config["model"]["base"] == TINY else None,
    }


def _report(run_id: str, results: dict[str, dict[str, Any] | None], seconds: dict[str, float]) -> str:
    """The HTML report of a run that was evaluated, whether or not it was decided on."""
    from vqa_grpo.evaluation.compare import Comparison
    from vqa_grpo.evaluation.gate import Decision
    from vqa_grpo.evaluation.present import run_report
    from vqa_grpo.evaluation.score import BlindLevel, Scores
    from vqa_grpo.report.html import render_run_report
    from vqa_grpo.report.run import Example

    evaluation, decided = results["evaluate"] or {}, results["decide"]
    history = open_store(publish.get(evaluation["model_uri"]).root).read("history.json")
    report = run_report(
        f"vqa-grpo {run_id}",
        Scores.from_dict(evaluation["base"]),
        Scores.from_dict(evaluation["tuned"]),
        Comparison.from_dict(evaluation["comparison"]),
        blind=BlindLevel(**evaluation["blind"]),
        decision=Decision(decided["decision"], decided["reasons"]) if decided else None,
        examples=[Example.from_dict(example) for example in evaluation["examples"]],
        history=json.loads(history or b"[]"),
        lineage=evaluation["lineage"],
        config=evaluation["config"],
        timings=seconds,
    )
    return render_run_report(report)
