"""What several steps use: publishing a result once, finding it again, and local folders of published things."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqa_grpo import config as configuration
from vqa_grpo.config import RunConfig
from vqa_grpo.contract.failure import ConfigurationError, StepError
from vqa_grpo.report.progress import announce, emit, transferring
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import open_store

RESULT = "result.json"
EASY_VQA = "builtin:easy-vqa"
TINY = "builtin:tiny"
MEASURED = ("base", "tuned", "comparison", "blind")
UNRECORDED = "decide-without-mlflow"
OPENED = "run.json"  # in RUN/mlflow: the run that was opened there


def once(step: str, uri: str, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Publish what `build` makes, unless it is there already; returns its result with `root` and `seconds`."""
    announce(step, "started")
    reused = publish.is_published(uri)

    def timed(folder: Path) -> dict[str, Any]:
        began = time.monotonic()
        figures = build(folder)
        result = {**figures, "seconds": round(time.monotonic() - began, 2)}
        (folder / RESULT).write_text(json.dumps(result, indent=1, sort_keys=True, allow_nan=False))
        return {"step": step}

    publish.publish(uri, timed, publish.work_folder())
    result = result_of(uri)
    announce(step, "reused" if reused else "finished", seconds=result["seconds"])
    return result


def result_of(uri: str) -> dict[str, Any]:
    """The figures that a step published at `uri`, with `root`, the folder that holds them."""
    published = publish.get(uri)
    result = json.loads(open_store(published.root).read(RESULT) or b"{}")
    return {**result, "root": published.root}


def found(uri: str) -> dict[str, Any] | None:
    """As `result_of`; None where nothing is published."""
    return result_of(uri) if publish.is_published(uri) else None


def forget_failure(step: str, place: str) -> None:
    """Take back what the launcher of a job left word of at `place`: the job's result is there after all, or the run is
    over, and whoever tries it again may have mended the cause."""
    from vqa_grpo.jobs import record

    try:
        record.forget(place)
    except StepError as error:
        announce(step, "left word of a failure", why=str(error))


def config_of(text: str) -> RunConfig:
    """The configuration that `resolve` put into a run, from its JSON."""
    return configuration.from_tree(json.loads(text), "of the run")


def dataset_folder(uri: str) -> Path:
    with transferring("download") as progress:
        return publish.fetch(uri, publish.cache_folder(), progress)


def stages(step: str) -> Callable[[str, int, int], None]:
    return lambda stage, done, total: emit(f"{step} {stage}", done, total)


def check_run_id(run_id: str) -> None:
    """A run's name is a folder's name in storage, and text in a URI and in MLflow's filters."""
    if run_id.startswith(".") or len(run_id) > 100 or re.search(r'[/\\"\x00-\x1f]', run_id):
        raise ConfigurationError(
            f"run id {run_id[:120]!r} cannot name a folder: leave out / \\ and double quotes, "
            "a dot at its beginning, and what is beyond 100 characters"
        )
