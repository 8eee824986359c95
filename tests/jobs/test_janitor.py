"""Sweeping up: of one run, and of runs that are gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scripted import FAILED, NAME, RUN, RUNNING, SPEC, FakeCluster, pod

from vqa_grpo.contract.failure import ConfigurationError, JobError
from vqa_grpo.jobs import janitor
from vqa_grpo.jobs.kubernetes_api import ApiError
from vqa_grpo.jobs.pytorchjob import KIND
from vqa_grpo.jobs.spec import job_name
from vqa_grpo.jobs.trainjob import KIND as TRAINJOB

OWNER = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow"}
OTHER = replace(SPEC, name=job_name("other"), run_id="other")


def places(*fakes: FakeCluster) -> list[janitor.Place]:
    return [janitor.Place(kind, fake) for kind, fake in zip((KIND, TRAINJOB), fakes, strict=False)]


def sweep(*fakes: FakeCluster) -> list[str]:
    return janitor.sweep(RUN, places=places(*fakes), sleep=fakes[0].sleep)


def orphans(fake: FakeCluster, dry_run: bool = False) -> list[str]:
    return janitor.sweep_orphans(dry_run=dry_run, places=places(fake), sleep=fake.sleep)


def owned(fake: FakeCluster, kind: str, name: str, uid: str = "1") -> None:
    fake.store(SPEC, RUNNING)["metadata"]["ownerReferences"] = [{"kind": kind, "name": name, "uid": uid}]


def test_a_sweep_deletes_what_still_runs_of_one_run_only() -> None:
    fake = FakeCluster()
    fake.store(SPEC, FAILED)
    fake.store(SPEC.next_attempt(), RUNNING)
    fake.store(OTHER, RUNNING)
    assert sweep(fake) == [SPEC.next_attempt().name]
    assert sorted(fake.stored) == sorted([NAME, OTHER.name])


@pytest.mark.parametrize(
    ("owner", "phase", "goes"),
    [("ours", "Running", True), ("another", "Running", False), ("another", "Succeeded", True), ("gone", "", True)],
)
def test_a_pipeline_run_leaves_alone_what_another_of_its_name_goes_on_with(
    monkeypatch: pytest.MonkeyPatch, owner: str, phase: str, goes: bool
) -> None:
    fake = FakeCluster()
    owned(fake, "Workflow", owner, uid=owner)
    us = pod("us")
    us["metadata"] |= {"uid": "p", "ownerReferences": [{**OWNER, "name": "ours", "uid": "ours"}]}
    fake.pod_list = [us]
    fake.workflows = {name: {"metadata": {"uid": name}, "status": {"phase": phase}} for name in ("ours", "another")}
    monkeypatch.setenv("KFP_POD_NAME", "us")
    assert sweep(fake) == ([NAME] if goes else [])


def test_a_sweep_does_not_wait_long_to_know_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(name: str, urgent: bool = False) -> dict[str, Any]:
        raise ApiError(503, "etcd")

    fake = FakeCluster()
    fake.store(SPEC, RUNNING)
    monkeypatch.setattr(fake, "pod", away)
    monkeypatch.setenv("KFP_POD_NAME", "us")
    monkeypatch.setattr(janitor.time, "monotonic", lambda: fake.now)
    with pytest.raises(JobError, match="get pod us"):  # whose job it is must be known
        sweep(fake)
    assert fake.now < 300


def test_a_sweep_by_hand_asks_no_owner() -> None:
    fake = FakeCluster()
    owned(fake, "Workflow", "another")
    fake.workflows = {"another": {"metadata": {"uid": "1"}, "status": {"phase": "Running"}}}
    assert sweep(fake) == [NAME]


def test_a_sweep_waits_for_an_api_server_that_is_away() -> None:
    fake = FakeCluster()
    fake.store(SPEC, RUNNING)
    fake.errors = [ApiError(503), ApiError(0)]
    assert sweep(fake) == [NAME]


def test_a_sweep_covers_both_kinds_and_needs_no_right_to_the_one_that_is_not_used() -> None:
    fake, absent = FakeCluster(), FakeCluster()
    fake.store(SPEC, RUNNING)
    absent.errors = [ApiError(404)]
    assert sweep(absent, fake) == [NAME]


def test_a_sweep_that_may_list_nothing_says_so() -> None:
    fake = FakeCluster()
    fake.errors = [ApiError(403, "forbidden")]
    with pytest.raises(ConfigurationError, match="Role"):
        sweep(fake)


def test_what_cannot_be_deleted_does_not_save_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCluster()
    fake.store(SPEC, RUNNING)
    fake.store(SPEC.next_attempt(), RUNNING)
    delete = fake.delete

    def refuse_first(name: str, urgent: bool = False) -> None:
        if name == NAME:
            raise ApiError(403, "forbidden")
        delete(name, urgent)

    monkeypatch.setattr(fake, "delete", refuse_first)
    with pytest.raises(JobError, match=NAME):
        sweep(fake)
    assert list(fake.stored) == [NAME]


WORKFLOW = {"metadata": {"uid": "1"}, "spec": {}}


@pytest.mark.parametrize(
    ("workflow", "orphan"),
    [
        ({"status": {"phase": "Running"}}, False),
        ({}, False),
        ({"status": {"phase": "Succeeded"}}, True),
        ({"status": {"phase": "Failed"}}, True),
        ({"spec": {"activeDeadlineSeconds": 0}}, True),
        ({"spec": {"activeDeadlineSeconds": 86_400}}, False),
        ({"metadata": {"uid": "another run of that name"}}, True),
        (None, True),
    ],
)
def test_a_job_is_an_orphan_once_its_run_is_gone_or_over(workflow: dict[str, Any] | None, orphan: bool) -> None:
    fake = FakeCluster()
    owned(fake, "Workflow", "w")
    if workflow is not None:
        fake.workflows["w"] = WORKFLOW | workflow
    assert orphans(fake) == ([NAME] if orphan else [])
    assert (NAME not in fake.stored) is orphan


@pytest.mark.parametrize(("phase", "orphan"), [("Running", False), ("Failed", True), (None, True)])
def test_a_job_of_a_pod_is_an_orphan_once_that_has_ended(phase: str | None, orphan: bool) -> None:
    fake = FakeCluster()
    owned(fake, "Pod", "p")
    if phase:
        found = pod("p", phase)
        found["metadata"]["uid"] = "1"
        fake.pod_list = [found]
    assert orphans(fake) == ([NAME] if orphan else [])


def test_a_job_that_nobody_owns_is_no_orphan() -> None:
    fake = FakeCluster()
    fake.store(SPEC, RUNNING)
    assert orphans(fake) == []


def test_a_dry_run_only_names_them() -> None:
    fake = FakeCluster()
    owned(fake, "Workflow", "gone")
    assert orphans(fake, dry_run=True) == [NAME]
    assert NAME in fake.stored


def test_a_job_whose_owner_cannot_be_read_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCluster()
    owned(fake, "Workflow", "w")

    def forbidden(name: str, urgent: bool = False) -> dict[str, Any]:
        raise ApiError(403, "forbidden")

    monkeypatch.setattr(fake, "workflow", forbidden)
    with pytest.raises(JobError, match="forbidden"):
        orphans(fake)
    assert NAME in fake.stored
