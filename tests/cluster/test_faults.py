"""The launcher through the real client against an API and pods that misbehave by script."""

from __future__ import annotations

import time
from typing import Any

import pytest
from emulator import NAMESPACE, Call, Cluster
from fake_operator import Operator, Script, exits, running

from vqa_grpo.contract.failure import FailureReason, JobError
from vqa_grpo.jobs import cluster as launcher
from vqa_grpo.jobs.kubernetes_api import KubernetesApi
from vqa_grpo.jobs.spec import JobSpec, job_name

RUN = "3f9c1d2a-b4e5-4c7e-9d1e-0a1b2c3d4e5f"
SPEC = JobSpec(
    name=job_name(RUN), run_id=RUN, module="m", image="i", num_nodes=2, namespace=NAMESPACE, timeout_seconds=3600
)
SPEED = 100


def play(cluster: Cluster, **parts: Any) -> Operator:
    """An operator whose pods go on by one step whenever the launcher looks at its job."""
    operator = Operator(cluster, Script(cluster, {key.replace("_", "-"): steps for key, steps in parts.items()}))

    def tick(call: Call) -> None:
        if str(call) == "get pytorchjobs":
            operator.tick()

    cluster.on_call = tick
    return operator


def launch(spec: JobSpec = SPEC) -> None:
    """The launcher, in a hurry: its pauses are short and its time runs as much faster."""
    launcher.run(
        spec,
        KubernetesApi(NAMESPACE),
        sleep=lambda seconds: time.sleep(seconds / SPEED),
        clock=lambda: time.monotonic() * SPEED,
    )


def test_a_job_is_followed_to_its_end_and_its_masters_log_printed_once(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = play(cluster)
    launch()
    assert cluster.created == [SPEC.name]
    assert operator.running() == []
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if not line.startswith("job ")] == ["one", "two", "three"]


def test_a_worker_that_fails_first_gives_the_verdict(cluster: Cluster) -> None:
    operator = play(cluster, master_0=[running], worker_0=[running, exits(78, "error: no such column")])
    with pytest.raises(JobError, match="worker-0: no such column") as error:
        launch()
    assert error.value.reason is FailureReason.CONFIGURATION
    operator.tick()
    assert operator.running() == []
