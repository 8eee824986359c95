"""Names, digests and the configuration's job section."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from vqa_grpo import config
from vqa_grpo.config import Job
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs.kind import kind_named
from vqa_grpo.jobs.spec import KINDS, SECRETS, JobSpec, job_name, run_label

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


def test_every_setting_of_the_job_section_reaches_the_job() -> None:
    fields = set(JobSpec.__dataclass_fields__)
    assert set(Job.model_fields) - fields == {"launcher"}
    changed = {"num_nodes": 3, "grace_seconds": 60, "on_eviction": "delete", "labels": {"a": "b"}, "queue": "q"}
    spec = JobSpec.from_config("x", RUN, "m", Job(**changed))
    assert {name: getattr(spec, name) for name in changed} == changed


def test_the_configuration_adds_variables_and_secrets_to_those_that_every_job_gets() -> None:
    job = Job(environment={"NCCL_IB_HCA": "mlx5", "A": "theirs"}, secrets={"WANDB_API_KEY": "wandb"})
    spec = JobSpec.from_config("x", RUN, "m", job, environment={"A": "ours"})
    assert spec.environment == {"NCCL_IB_HCA": "mlx5", "A": "ours"}
    assert spec.secrets == {**SECRETS, "WANDB_API_KEY": "wandb"}


def test_more_patience_is_no_other_job_and_another_place_is_one() -> None:
    """A step that is called again after its timeout was raised goes on with the job that runs."""
    spec = JobSpec(name=job_name(RUN), run_id=RUN, module="m")
    patient = {"timeout_seconds": 9, "queue_timeout_seconds": 9, "stall_timeout_seconds": 9, "max_restarts": 9}
    same = {**patient, "on_eviction": "delete", "namespace": "n", "kind": "trainjob"}
    assert {replace(spec, **{key: value}).spec_hash for key, value in same.items()} == {spec.spec_hash}
    others = {"node_selector": {"a": "b"}, "memory": "9Gi", "image": "i", "overrides": {"spec": {"x": 1}}, "queue": "q"}
    assert spec.spec_hash not in {replace(spec, **{key: value}).spec_hash for key, value in others.items()}


# --- every option, in every kind of job -------------------------------------------------------------------------------


def texts(alias: Any) -> st.SearchStrategy[str]:
    """What the configuration takes for a type of `config`, whatever it looks like."""
    return st.from_regex(TypeAdapter(alias).json_schema()["pattern"], fullmatch=True).filter(
        lambda text: len(text) <= 60
    )


few: Any = {"max_size": 3}
EFFECT = st.sampled_from(["", "NoSchedule"])
NODE = st.one_of(
    st.fixed_dictionaries({"key": texts(config.Label), "value": texts(config.LabelValue), "effect": EFFECT}),
    st.fixed_dictionaries({"operator": st.just("Exists"), "effect": EFFECT}),
)
OVERRIDES: list[dict[str, Any]] = [
    {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "ib"}}},
    {"spec": {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}}},
    {"spec": {"securityContext": {"fsGroup": 7, "seccompProfile": None}, "volumes": [{"name": "x", "emptyDir": {}}]}},
]
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "num_nodes": st.integers(1, 99),
    "gpus_per_node": st.integers(0, 16),
    "processes_per_node": st.integers(0, 16),
    "cpu": texts(config.Cpu).filter(lambda text: text.strip("0.mkKMGTPi")),
    "memory": texts(config.Bytes).filter(lambda text: text.strip("0.mkKMGTPi")),
    "shared_memory": texts(config.NoBytes),
    "ephemeral_storage": texts(config.NoBytes),
    "resources": st.dictionaries(texts(config.Label), texts(config.Amount), **few),
    "environment": st.dictionaries(texts(config.Variable), st.text(max_size=9), **few),
    "secrets": st.dictionaries(texts(config.Variable), texts(config.ObjectName).filter(bool), **few),
    "labels": st.dictionaries(texts(config.Label), texts(config.LabelValue), **few),
    "node_selector": st.dictionaries(texts(config.Label), texts(config.LabelValue), **few),
    "tolerations": st.lists(NODE, **few),
    "priority_class": texts(config.ObjectName),
    "overrides": st.sampled_from(OVERRIDES),
    "queue": texts(config.LabelValue),
    "service_account": texts(config.ObjectName),
    "image_pull_secrets": st.lists(texts(config.ObjectName), unique=True, **few),
    "cache_claim": texts(config.ObjectName),
    "grace_seconds": st.integers(30, 9999),
    "timeout_seconds": st.integers(1, 10**6),
}


@given(options=st.fixed_dictionaries({}, optional=OPTIONS), kind=st.sampled_from(KINDS))
def test_what_the_configuration_lets_through_the_operator_takes(
    faults_of: Callable[[dict], list[str]], options: dict, kind: str
) -> None:
    """Or the job itself refuses it in words: two that name one variable, one that the operator sets, a secret, what a
    TrainJob cannot say."""
    if shared := options.get("shared_memory"):
        options |= {"memory": shared} if shared.strip("0.kKMGTPi") else {}
    spec = JobSpec.from_config(job_name(RUN), RUN, "m", Job(launcher=kind, **options), image="i")
    try:
        manifest = kind_named(kind).build_manifest(spec)
    except ConfigurationError:
        assert (
            options.get("environment") or options.get("secrets") or (kind == "trainjob" and options["priority_class"])
        )
        return
    assert faults_of(manifest) == []
