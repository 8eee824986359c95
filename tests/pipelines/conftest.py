"""Compiled pipelines, and two local runs of the real pipeline, made once for all tests of this room."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

STEPS_IMAGE = "registry.example/steps@sha256:" + "1" * 64
TRAINER_IMAGE = "registry.example/trainer@sha256:" + "2" * 64
RUN_ID = "o'brien's run"


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from vqa_grpo.pipelines.package import package

    return {path.stem: path for path in package(tmp_path_factory.mktemp("compiled"), STEPS_IMAGE, TRAINER_IMAGE)}


@pytest.fixture(scope="session", params=["train", "retrain"])
def compiled(packaged: dict[str, Path], request: pytest.FixtureRequest) -> dict[str, Any]:
    return next(yaml.safe_load_all(packaged[request.param].read_text()))  # the second document is for the platform


@dataclass(frozen=True)
class LocalRun:
    """What a run of `python -m vqa_grpo.pipelines.local` left behind."""

    code: int
    output: str  # without colours
    work: Path
    run_id: str

    @property
    def executed(self) -> list[str]:
        """The tasks in the order in which Kubeflow's runner began them."""
        return re.findall(r"Executing task '(.*)'$", self.output, re.MULTILINE)

    def published(self, step: str) -> dict[str, Any]:
        """The result that a step of the run published."""
        ready = json.loads((self.work / "out" / self.run_id / step / "READY").read_text())
        return json.loads((self.work / "out" / self.run_id / step / ready["attempt"] / "result.json").read_text())

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.work / "out" / self.run_id / "summary" / "summary.json").read_text())

    def executor_output(self, task: str) -> dict[str, Any]:
        """What a component told Kubeflow."""
        (path,) = (self.work / self.run_id).glob(f"*/{task}/executor_output.json")
        return json.loads(path.read_text())


def run(
    stand_in: Callable[..., dict[str, str]],
    source: Path,
    work: Path,
    run_id: str = RUN_ID,
    output_root: str | None = None,
    **more: Any,
) -> LocalRun:
    parameters = {
        "overrides": f"data.source={json.dumps(str(source))}\nregistry.model_name=o'brien's model",
        "output_root": str(work / "out") if output_root is None else output_root,
        "run_id": run_id,
        "num_nodes": 1,
    }
    command = [sys.executable, "-m", "vqa_grpo.pipelines.local", json.dumps(parameters), str(work / run_id)]
    done = subprocess.run(
        command, env=stand_in(work, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return LocalRun(done.returncode, re.sub(r"\x1b\[\d*m", "", done.stdout), work, run_id)


@pytest.fixture(scope="session")
def good(stand_in: Callable[..., dict[str, str]], source: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    """A run whose texts are full of apostrophes and whose figures hold NaN; its model is worth registering."""
    return run(stand_in, source, tmp_path_factory.mktemp("good"), nan=True)


@pytest.fixture(scope="session")
def failed(stand_in: Callable[..., dict[str, str]], source: Path, good: LocalRun) -> LocalRun:
    """A run over the same data whose training runs out of memory."""
    return run(stand_in, source, good.work, run_id="failed", blame="train")


@pytest.fixture(scope="session")
def held(stand_in: Callable[..., dict[str, str]], source: Path, good: LocalRun) -> LocalRun:
    """A run over the same data whose model is no better than its base."""
    return run(stand_in, source, good.work, run_id="held", tuned="-")


@pytest.fixture(scope="session")
def local_run() -> Callable[..., LocalRun]:
    return run
