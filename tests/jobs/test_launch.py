"""Which place a job runs in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vqa_grpo import jobs
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs import JobSpec, cluster, local

SPEC = JobSpec(name="x", run_id="r", module="m")


@pytest.mark.parametrize(
    ("launcher", "in_cluster", "place"),
    [
        ("auto", False, "local"),
        ("auto", True, "pytorchjob"),
        ("local", True, "local"),
        ("pytorchjob", False, "pytorchjob"),
    ],
)
def test_auto_is_a_pytorchjob_inside_a_cluster_and_this_machine_elsewhere(
    monkeypatch: pytest.MonkeyPatch, launcher: str, in_cluster: bool, place: str
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(local, "run", lambda spec: ran.append("local"))
    monkeypatch.setattr(cluster, "run", lambda spec: ran.append("pytorchjob"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if in_cluster:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    jobs.launch(SPEC, launcher)
    assert ran == [place]


def test_an_unknown_launcher_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="slurm"):
        jobs.launch(SPEC, "slurm")


def test_there_is_nothing_to_sweep_outside_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert jobs.sweep("r") == []


def test_the_room_loads_no_torch_and_no_kubernetes() -> None:
    code = "import sys, vqa_grpo.jobs.cluster, vqa_grpo.jobs.local; print({'torch', 'kubernetes'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
