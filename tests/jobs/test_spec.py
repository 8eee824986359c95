"""Names, digests and the configuration's job section."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.config import Job
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs.spec import JobSpec, job_name, run_label

RUN = "3f9c1d2a-b4e5-4c7e-9d1e-0a1b2c3d4e5f"


@given(run_id=st.text(max_size=120), attempt=st.integers(0, 999))
def test_every_run_id_makes_a_valid_name_and_label(run_id: str, attempt: int) -> None:
    name = job_name(run_id, attempt)
    assert len(name) <= 50
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert name == job_name(run_id, attempt)
    assert len(run_label(run_id)) <= 63
    assert re.fullmatch(r"([a-z0-9]([-a-z0-9]*[a-z0-9])?)?", run_label(run_id))


@given(st.lists(st.text(max_size=60), min_size=2, max_size=2, unique=True))
def test_different_runs_never_share_a_name(runs: list[str]) -> None:
    assert job_name(runs[0]) != job_name(runs[1])


def test_a_kfp_run_id_stays_readable_in_the_name() -> None:
    assert job_name(RUN, 2) == f"vqa-grpo-{RUN}-a2"


def test_the_next_attempt_differs_in_the_name_alone() -> None:
    spec = JobSpec(name=job_name(RUN, 9), run_id=RUN, module="m")
    assert spec.next_attempt().name == job_name(RUN, 10)
    assert spec.next_attempt().spec_hash == spec.spec_hash


def test_the_digest_follows_what_is_run() -> None:
    spec = JobSpec(name=job_name(RUN), run_id=RUN, module="m", arguments=("a",))
    other = JobSpec(name=job_name(RUN), run_id=RUN, module="m", arguments=("b",))
    assert spec.spec_hash != other.spec_hash


@pytest.mark.parametrize("wrong", [{"name": "9-starts-wrong"}, {"name": "x" * 51}, {"num_nodes": 0}])
def test_an_impossible_spec_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigurationError):
        JobSpec(**({"name": "x", "run_id": RUN, "module": "m"} | wrong))


@pytest.mark.parametrize(
    ("job", "processes"),
    [(Job(), 1), (Job(gpus_per_node=8), 8), (Job(processes_per_node=2), 2), (Job(num_nodes=2, gpus_per_node=4), 8)],
)
def test_the_configuration_decides_the_number_of_processes(job: Job, processes: int) -> None:
    assert JobSpec.from_config("x", RUN, "m", job, image="i").total_processes == processes
