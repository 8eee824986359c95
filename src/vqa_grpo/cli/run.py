"""`vqa-grpo run`: the whole pipeline on this machine, with its own S3, bars, one log file and a summary."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from vqa_grpo import steps
from vqa_grpo.cli.leash import TOKEN, leash
from vqa_grpo.cli.view import View, summary_text
from vqa_grpo.contract.failure import ConfigurationError, FailureReason
from vqa_grpo.contract.layout import step_uri
from vqa_grpo.report.progress import read, read_step
from vqa_grpo.storage import embedded
from vqa_grpo.storage.store import explain_os_error, is_remote, normalise, open_store

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_GRACE_SECONDS = 10
_TAKEN = ("work", "cache", "s3", "latest", "mlflow.db")  # what lies beside the runs' own folders


def run(
    config: str, settings: list[str], runs: Path, storage: str, s3_port: int, run_id: str, verbose: bool, use_json: bool
) -> int:
    """Run the pipeline and return the exit code. A run that was stopped goes on where it was."""
    # Before anything is started or written. The embedded S3's address is known before it runs.
    resolved = steps.resolve(config, settings, storage or f"s3://{embedded.BUCKET}", run_id)
    if resolved.run_id in _TAKEN:
        raise ConfigurationError(f"run id {run_id!r} is a folder of {runs} already: choose another name")
    runs = runs.absolute()
    token = secrets.token_hex(8)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, _interrupt)
    with ExitStack() as stack:
        stack.enter_context(_only_one(runs))
        stack.enter_context(leash(token))
        environment = _environment(runs, token)
        # Steps, S3 and this process itself agree on the same variables.
        os.environ.update(environment)
        _start_storage(stack, runs, storage, s3_port)
        folder = runs / resolved.run_id
        view = View(resolved.run_id, folder / "pipeline.log", quiet=use_json)
        began = time.monotonic()
        try:
            failure = _pipeline(resolved, folder, view, verbose)
        except KeyboardInterrupt:
            view.say("stopped; nothing is left running. The same command goes on from here.")
            return 130
        if failure:  # said first: whatever broke the run may break the collecting too
            view.complain(f"error: {failure['step']}: {failure['error']}; log: {folder / 'pipeline.log'}")
        summary = _collect(resolved, folder, runs)
    if failure:
        return FailureReason(failure["reason"]).exit_code
    _say_summary(summary, runs, folder, storage, time.monotonic() - began, view, use_json)
    return 0


def serve_storage(runs: Path) -> int:
    """Serve the embedded S3 of earlier runs until somebody stops it."""
    runs = runs.absolute()
    if not (runs / "s3").is_dir():
        raise ConfigurationError(f"{runs} has no embedded S3: no run was made there, or it used --storage")
    token = secrets.token_hex(8)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    with _only_one(runs), leash(token):
        os.environ[TOKEN] = token
        try:
            with embedded.serve(runs / "s3") as environment:
                print(f"bucket s3://{embedded.BUCKET}; to reach it from another shell:")
                print("\n".join(f"export {key}={value}" for key, value in environment.items()), flush=True)
                signal.pause()
        except KeyboardInterrupt:
            return 0
    return 0


def _say_summary(
    summary: dict[str, Any], runs: Path, folder: Path, storage: str, seconds: float, view: View, use_json: bool
) -> None:
    view.say(summary_text(summary, folder, os.environ["MLFLOW_TRACKING_URI"], runs, storage, seconds))
    if use_json:
        print(json.dumps(summary, sort_keys=True))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _only_one(runs: Path) -> Iterator[None]:
    """Two runs in one folder would share scratch space and an S3: the second is refused."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        lock = (runs / ".lock").open("w")
    except OSError as error:
        raise explain_os_error(error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"another run is using {runs}: wait for it, or give another folder with --runs"
            ) from None
        shutil.rmtree(runs / "work", ignore_errors=True)  # what a killed run left half-done
        yield


def _environment(runs: Path, token: str) -> dict[str, str]:
    """What every process of the run inherits; settings of the user's own win where they make sense."""
    own = {
        TOKEN: token,
        "VQA_GRPO_PROGRESS": "lines",
        "VQA_GRPO_WORK": str(runs / "work"),
        "VQA_GRPO_CACHE": str(runs / "cache"),
    }
    defaults = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{runs / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # With more threads than free cores, a model of this size becomes many times slower, not faster.
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return own | {key: value for key, value in defaults.items() if not os.environ.get(key)}


def _start_storage(stack: ExitStack, runs: Path, storage: str, s3_port: int) -> None:
    """The output root is plain files, an S3 of the user's, or one started here."""
    if not storage:
        os.environ.update(stack.enter_context(embedded.serve(runs / "s3", s3_port)))
    elif not is_remote(normalise(storage)):
        _check_writable(Path(normalise(storage)))


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise explain_os_error(error) from error


def _pipeline(resolved: steps.Resolved, folder: Path, view: View, verbose: bool) -> dict[str, str] | None:
    """Run the pipeline in a child process; returns what failed, or None."""
    job = json.loads(resolved.config)["job"]
    parameters = {
        "config": resolved.config,
        "output_root": resolved.root,
        "run_id": resolved.run_id,
        "code": resolved.code,
        "num_nodes": job["num_nodes"],
        "gpus_per_node": job["gpus_per_node"],
    }
    command = [sys.executable, "-m", "vqa_grpo.pipelines.local", json.dumps(parameters), str(folder / "kfp")]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    assert child.stdout is not None
    try:
        with view:
            failure = _follow(child.stdout, view, verbose)
        code = child.wait()
    except BaseException:
        _stop(child)
        raise
    if code and failure is None:
        failure = {"step": "pipeline", "error": f"ended with exit code {code}; see the log", "reason": "internal"}
    return failure


def _follow(lines: IO[str], view: View, verbose: bool) -> dict[str, str] | None:
    """Show and log the child's output; returns the first announced failure."""
    failure: dict[str, str] | None = None
    in_executor_json = False
    for raw in lines:
        line = _ANSI.sub("", raw.rstrip())
        # The executor's JSON ends at its closing brace, and surely where somebody else speaks.
        in_executor_json = in_executor_json and line.startswith("    ") and not line.lstrip().startswith("@")
        if (report := read(line)) is not None:
            view.progress(report)
        elif (event := read_step(line)) is not None:
            view.event(event)
            failure = failure or (event if event["event"] == "failed" else None)
        elif verbose:
            view.log(line)
        elif in_executor_json:
            in_executor_json = line.rstrip() != "    }"  # the closing brace at the executor's own indentation
        elif "Got executor_input:" in line:
            in_executor_json = True
        elif "[KFP Executor" not in line and line.strip():
            view.log(line)
    return failure


def _stop(child: subprocess.Popen[str]) -> None:
    """End the pipeline's process group; what has left the group falls to the leash."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(_GRACE_SECONDS)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _collect(resolved: steps.Resolved, folder: Path, runs: Path) -> dict[str, Any]:
    """Copy summary and report out of storage to where people look, and point `latest` at them."""
    store = open_store(step_uri(resolved.root, resolved.run_id, "summary"))
    for name in ("summary.json", "report.html"):
        if (data := store.read(name)) is not None:
            (folder / name).write_bytes(data)
    latest = runs / f".latest-{secrets.token_hex(4)}"
    latest.symlink_to(folder.name)
    latest.replace(runs / "latest")
    summary = folder / "summary.json"
    return json.loads(summary.read_text()) if summary.is_file() else {}
