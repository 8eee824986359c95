"""A training's metrics in MLflow, as a child of the pipeline's run. MLflow being away never stops training.

transformers' own MLflowCallback talks to MLflow in the training loop and raises when it does not answer, and it
cannot tell a real resume from a fresh start under the same run id. This one sends from a thread of its own.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from vqa_grpo.contract.layout import MLFLOW_RUN_TAG, RUN_VARIABLE
from vqa_grpo.training.checkpoints import say_aloud

TRAINING_TAG = "vqa_grpo.training"
MAX_WAITING = 100_000  # metrics kept while MLflow is away; the oldest go first
MAX_BATCH = 1000  # metrics that MLflow takes at once
MAX_PARAMS = 100
# What is left may take so long to send; a failure must reach the other ranks sooner.
FINISH_SECONDS = {"FINISHED": 60.0, "KILLED": 20.0, "FAILED": 5.0}


class MLflowRun(TrainerCallback, ExportableState):
    """Reports what the trainer logs, on the first rank alone.

    `training` names this training: it travels in every checkpoint, and MLflow's run is found or made by it. So a run
    that goes on from its own checkpoint goes on in MLflow too, on whatever machine, and a fresh start is a new run.
    """

    def __init__(self, training: str, params: Mapping[str, Any] | None = None, reports: bool = True) -> None:
        self.training = training
        self._sender = Sender(training, params or {}) if reports else None

    def state(self) -> dict[str, Any]:
        return {"args": {"training": self.training}, "attributes": {}}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._sender:
            self._sender.send(state.global_step, logs or {})

    def finish(self, status: str) -> None:
        """Send what is left and close MLflow's run as FINISHED, FAILED or KILLED; waits for FINISH_SECONDS at most."""
        if self._sender:
            self._sender.finish(status)


def continued(checkpoint: Path) -> str | None:
    """The training that a checkpoint belongs to; None where it was not reported."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        found = state["stateful_callbacks"][MLflowRun.__name__]["args"]["training"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


class Sender:
    """A thread that makes the run and sends metrics. What fails waits for the next time something is logged."""

    def __init__(self, training: str, params: Mapping[str, Any]) -> None:
        self._training, self._params = training, params
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._waiting: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step
        self._client: Any = None
        self._run_id = ""
        self._said = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def send(self, step: int, logs: Mapping[str, Any]) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [
            (metric_name(name), float(value), now, step)
            for name, value in logs.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        self._queue.put(("", metrics))

    def finish(self, status: str) -> None:
        self._queue.put((status, []))
        self._thread.join(FINISH_SECONDS[status])

    def _work(self) -> None:
        status = ""
        while not status:
            status, metrics = self._queue.get()
            self._waiting = [*self._waiting, *metrics][-MAX_WAITING:]
            try:
                self._send_waiting()
                if status:
                    self._client.set_terminated(self._run_id, status)
            except Exception as error:
                self._say(error)

    def _send_waiting(self) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        if not self._run_id:
            self._open()
        while self._waiting:
            batch = self._waiting[:MAX_BATCH]
            try:
                self._client.log_batch(self._run_id, metrics=[Metric(*metric) for metric in batch])
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                self._say(error)  # it would be refused again
            del self._waiting[: len(batch)]

    def _open(self) -> None:
        """Find the run of this training, or make it."""
        # MLflow's own seven retries take minutes each time; here the next log is the next try.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)

        def by_tag(tag: str, value: str) -> str:
            found = self._client.search_runs([experiment_id], f'tags.`{tag}` = "{value}"', max_results=1)
            return str(found[0].info.run_id) if found else ""

        if known := by_tag(TRAINING_TAG, self._training):
            self._client.update_run(known, status="RUNNING")
            self._run_id = known
            return
        tags = {**json.loads(os.environ.get("MLFLOW_TAGS") or "{}"), TRAINING_TAG: self._training}
        pipeline = os.environ.get(RUN_VARIABLE, "")
        if pipeline and (parent := by_tag(MLFLOW_RUN_TAG, pipeline)):
            tags["mlflow.parentRunId"] = parent
        self._run_id = self._client.create_run(experiment_id, run_name="training", tags=tags).info.run_id
        params = [Param(metric_name(key), str(value)[:6000]) for key, value in self._params.items()]
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + MAX_PARAMS])

    def _say(self, error: Exception) -> None:
        if not self._said:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            say_aloud(f"MLflow does not take this training's metrics, which goes on (said once): {text}")
        self._said = True


def metric_name(name: str) -> str:
    """With what MLflow refuses in names replaced: rewards may be named after anything."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]
