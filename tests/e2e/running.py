"""Start `vqa-grpo run` the way a person does, small enough for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

# A model that knows nothing on a handful of questions, and a gate that lets anything pass: only the plumbing counts.
SMALL = {
    "model.recipe": "micro",
    "data.limit": 400,
    "train.max_steps": 2,
    "train.per_device_train_batch_size": 16,
    "evaluate.sample": 40,
    "gate.min_format_rate": 0,
    "gate.min_accuracy_gain": -1,
    "gate.interval_above_zero": "false",
    "gate.max_type_drop": 1,
}
# Secrets that a run on this machine has no use for: none of them may turn up anywhere.
CANARIES = {
    name: f"canary-of-{name.lower()}"
    for name in ("HF_TOKEN", "VQA_GRPO_JUDGE_API_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
}
STEPS = ("validate", "convert", "prepare", "train", "evaluate", "decide", "register", "finish")


def command(runs: Path, **changes: Any) -> list[str]:
    settings = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    program = str(Path(sys.executable).with_name("vqa-grpo"))
    return [program, "run", "--config", "quick", "--runs", str(runs), "--json", *words]


def start(runs: Path, **changes: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(runs, **changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    )


def run(runs: Path, **changes: Any) -> tuple[int, dict[str, Any], str]:
    """Exit code, the summary that was printed for programs, and what a person would have seen."""
    done = subprocess.run(command(runs, **changes), capture_output=True, text=True, env=_environment(), timeout=500)
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


def _environment() -> dict[str, str]:
    """A shell without settings of its own for what a run decides, and with secrets that are none of its business."""
    ours = ("AWS_", "MLFLOW_", "VQA_GRPO_", "PYTEST_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return kept | CANARIES | {"OMP_NUM_THREADS": "1"}


def processes_of(runs: Path) -> list[psutil.Process]:
    """Whatever still runs on behalf of a run in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("VQA_GRPO_WORK") == str(runs / "work"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.05)


def log_of(runs: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in sorted(runs.glob("*/pipeline.log")))
