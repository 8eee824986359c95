"""The launcher against a scripted cluster: one job a run, followed to a verdict, and nothing left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from scripted import (
    CREATED,
    FAILED,
    MASTER,
    NAME,
    PATIENT,
    RUN,
    RUNNING,
    SPEC,
    SUCCEEDED,
    SUSPENDED,
    WORKER,
    FakeCluster,
    condition,
    failed_pod,
    failing,
    lines,
    pod,
    stamp,
    waiting_pod,
)

from vqa_grpo.contract.failure import ConfigurationError, FailureReason, JobError, RetryError
from vqa_grpo.contract.vitals import Failure
from vqa_grpo.jobs import record
from vqa_grpo.jobs.kubernetes_api import ApiError
from vqa_grpo.jobs.spec import HASH_ANNOTATION, JobSpec, job_name
from vqa_grpo.jobs.verdict import message


def verdict(fake: FakeCluster, spec: JobSpec = SPEC) -> JobError:
    with pytest.raises(JobError) as error:
        fake.run(spec)
    assert "\n" not in str(error.value)
    return error.value


# --- create, adopt ------------------------------------------------------------------------------------------------


def test_a_job_that_succeeds_returns_and_is_left_with_its_logs(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeCluster("Created", RUNNING, RUNNING, SUCCEEDED)
    fake.run()
    assert fake.created == [NAME]
    assert not fake.deleted
    assert fake.pauses == [5.0, 5.0, 5.0]
    assert capsys.readouterr().out.count(f"job {NAME} Running") == 1


def test_a_running_job_of_ours_is_adopted() -> None:
    fake = FakeCluster(RUNNING, SUCCEEDED)
    fake.store()
    fake.run()
    assert fake.created == []


def test_a_job_that_had_succeeded_is_not_run_again() -> None:
    fake = FakeCluster()
    fake.store(SPEC, SUCCEEDED)
    fake.run()
    assert (fake.created, fake.pauses) == ([], [])


@pytest.mark.parametrize("key", ["labels", "annotations"])
def test_a_job_of_somebody_else_is_refused_and_left_alone(key: str) -> None:
    fake = FakeCluster()
    fake.store()["metadata"][key] = {}
    with pytest.raises(ConfigurationError, match="is not this one"):
        fake.run()
    assert NAME in fake.stored


def test_a_job_that_was_changed_after_it_failed_takes_the_next_attempt_s_name() -> None:
    fake = FakeCluster(SUCCEEDED)
    fake.store(replace(SPEC, memory="2Gi"), FAILED)
    fake.run()
    assert fake.created == [job_name(RUN, 1)]


def test_a_job_on_its_way_out_is_waited_for() -> None:
    fake = FakeCluster()
    fake.store(SPEC, RUNNING)["metadata"]["deletionTimestamp"] = "t"
    fake.on_sleep = lambda: fake.stored.pop(NAME, None) and None
    fake.run()
    assert fake.created == [NAME]


def test_a_webhook_that_refuses_is_no_matter_of_rights() -> None:
    fake = FakeCluster()
    text = 'admission webhook "validator.trainjob" denied the request: TrainingRuntime not found'
    fake.errors = [None, ApiError(403, text)]
    with pytest.raises(ConfigurationError, match="was refused") as error:
        fake.run()
    assert "Role" not in str(error.value)


@pytest.mark.parametrize(("status", "word"), [(403, "Role"), (404, "operator"), (422, "refused")])
@pytest.mark.parametrize("calls_before", [0, 1])
def test_a_refused_creation_says_what_to_do(status: int, word: str, calls_before: int) -> None:
    fake = FakeCluster()
    fake.errors = [*[None] * calls_before, ApiError(status, "no")]
    with pytest.raises(ConfigurationError, match=word):
        fake.run()
    assert not fake.pauses


# --- running it again -----------------------------------------------------------------------------------------------


def test_a_job_that_lost_a_node_is_run_again_as_a_whole() -> None:
    fake = FakeCluster(RUNNING, FAILED, then=(RUNNING, SUCCEEDED))
    evicted = failed_pod(WORKER, 137)
    evicted["status"] |= {"reason": "Evicted"}
    fake.pod_list = [evicted]
    fake.run(PATIENT)
    assert fake.created == [NAME, job_name(RUN, 1)]
    assert not fake.deleted


def test_the_next_attempt_waits_for_the_last_checkpoints_of_the_one_before() -> None:
    fake = FakeCluster(RUNNING, FAILED, then=(SUCCEEDED,))
    fake.pod_list = [failed_pod(WORKER, 75), pod(MASTER)]  # the master has its grace

    def end() -> None:
        if fake.now >= 60:
            fake.pod_list[1] = pod(MASTER, "Failed")

    fake.on_sleep = end
    fake.run(PATIENT)
    assert fake.created == [NAME, job_name(RUN, 1)]
    assert 60 <= fake.now < 60 + SPEC.grace_seconds


def test_a_pod_that_never_goes_holds_the_next_attempt_up_for_its_grace_only() -> None:
    fake = FakeCluster(RUNNING, FAILED, then=(SUCCEEDED,))
    fake.pod_list = [failed_pod(WORKER, 75), pod(MASTER)]
    fake.run(PATIENT)
    assert SPEC.grace_seconds <= fake.now < 2 * SPEC.grace_seconds


def test_the_next_attempt_would_rather_not_run_where_the_one_before_failed() -> None:
    fake = FakeCluster(RUNNING, FAILED, then=(SUCCEEDED,))
    on_a_bad_node = {**failed_pod(WORKER, 70), "spec": {"nodeName": "gpu-7"}}
    its_peer = {**failed_pod(MASTER, 75, message=said("retry", "lost", 1, peer=True)), "spec": {"nodeName": "gpu-8"}}
    fake.pod_list = [on_a_bad_node, its_peer]
    fake.run(PATIENT)
    made = [fake.stored[name]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"] for name in fake.created]
    assert "affinity" not in made[0]
    (preferred,) = made[1]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["preference"]["matchExpressions"] == [
        {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["gpu-7"]}
    ]
    hashes = {job["metadata"]["annotations"][HASH_ANNOTATION] for job in fake.stored.values()}
    assert len(hashes) == 1
    fake = FakeCluster(RUNNING, FAILED, then=(SUCCEEDED,))
    fake.pod_list = [its_peer]  # that another is to blame does not say which
    fake.run(PATIENT)
    assert "affinity" not in str(fake.stored[job_name(RUN, 1)])


def test_a_job_that_hangs_is_run_again_like_one_that_lost_a_node() -> None:
    fake = FakeCluster(RUNNING, then=(SUCCEEDED,))
    fake.pod_list = [pod(MASTER), pod(WORKER)]
    fake.logs[MASTER] = lines("step 1")
    fake.run(replace(PATIENT, stall_timeout_seconds=300))
    assert (fake.created, fake.deleted) == ([NAME, job_name(RUN, 1)], [NAME])


def test_a_job_is_run_again_so_often_and_no_more() -> None:
    fake = FakeCluster(FAILED)
    error = verdict(fake, PATIENT)
    assert fake.created == [job_name(RUN, attempt) for attempt in (0, 1, 2)]
    assert "restarted 2 times" in str(error)


@pytest.mark.parametrize(("code", "reason"), [(78, "configuration"), (65, "data"), (137, "out_of_memory")])
def test_what_would_fail_again_is_not_run_again(code: int, reason: str) -> None:
    fake = failing(failed_pod(MASTER, code, reason="OOMKilled" if code == 137 else "Error"))
    assert verdict(fake, PATIENT).reason == reason
    assert fake.created == [NAME]


def test_what_nobody_foresaw_is_run_again_until_it_is_seen_to_come_again() -> None:
    fake = FakeCluster(FAILED)
    fake.pod_list = [failed_pod(job_name(RUN, at) + "-worker-0", 70, message="error: a mistake") for at in range(3)]
    assert "the same again" in str(verdict(fake, PATIENT))
    assert len(fake.created) == 2
    fake = FakeCluster(FAILED)
    fake.pod_list = [failed_pod(job_name(RUN, at) + "-worker-0", 70, message=f"error: {at}") for at in range(3)]
    assert "restarted 2 times" in str(verdict(fake, PATIENT))


def test_a_launcher_that_is_tried_again_counts_on_from_the_last_attempt() -> None:
    fake = FakeCluster(FAILED)
    fake.store(replace(PATIENT, name=job_name(RUN, 1)), FAILED)  # time to live has removed the one before it
    verdict(fake, PATIENT)
    assert fake.created == [job_name(RUN, 2)]


def test_a_later_attempt_that_runs_is_adopted_though_the_first_is_gone() -> None:
    fake = FakeCluster(RUNNING, SUCCEEDED)
    fake.store(replace(SPEC, name=job_name(RUN, 12)))
    fake.store(replace(SPEC, name=job_name(RUN, 9)), FAILED)
    fake.run()
    assert fake.created == []


def test_a_configuration_error_of_before_stands_until_its_job_is_deleted() -> None:
    fake = FakeCluster()
    fake.store(PATIENT, FAILED)
    fake.pod_list = [failed_pod(MASTER, 78, message="error: data.limit is wrong")]
    error = verdict(fake, PATIENT)
    assert (error.reason, fake.created) == (FailureReason.CONFIGURATION, [])
    assert "data.limit is wrong" in str(error)
    assert f"delete job {NAME}" in str(error)


def test_jobs_of_the_same_run_with_another_purpose_are_no_attempts_of_this_one() -> None:
    fake = FakeCluster()
    fake.store(replace(SPEC, name=job_name(RUN, 3, prefix="evaluate")), FAILED)
    fake.run()
    assert fake.created == [NAME]


def test_a_pod_killed_from_outside_is_no_wish_of_ours() -> None:
    assert verdict(failing(failed_pod(MASTER, 143))).reason is FailureReason.RETRY


def test_the_operators_own_deadline_is_final() -> None:
    fake = FakeCluster()
    fake.store(PATIENT)["status"] = {
        "conditions": [condition(FAILED, "Job x was active longer than specified deadline")]
    }
    fake.pod_list = [failed_pod(MASTER, 143)]
    error = verdict(fake, PATIENT)
    assert (error.reason, fake.created) == (FailureReason.CANCELLED, [])
    assert "job.timeout_seconds" in str(error)


# --- the API server's bad days --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 401, 429, 500, 503])
def test_a_passing_trouble_is_tried_again_with_growing_pauses(status: int) -> None:
    fake = FakeCluster()
    fake.errors = [ApiError(status)] * 3
    fake.run()
    assert fake.pauses == [1.0, 2.0, 4.0]


def test_the_server_says_when_to_come_back_within_reason() -> None:
    fake = FakeCluster()
    fake.errors = [ApiError(429, retry_after=7), ApiError(503, retry_after=86_400)]
    fake.run()
    assert fake.pauses == [7.0, 120.0]


def test_a_token_that_stays_refused_is_no_passing_trouble() -> None:
    fake = FakeCluster()
    fake.errors = [ApiError(401)] * 1000
    with pytest.raises(ConfigurationError, match="Role"):
        fake.run()
    assert 120 <= fake.now < 200


def test_an_api_server_that_stays_away_ends_the_step_and_not_the_job() -> None:
    fake = FakeCluster(RUNNING)
    fake.errors = [None, None, *[ApiError(503)] * 1000]
    assert verdict(fake).reason is FailureReason.RETRY
    assert NAME in fake.stored
    assert 3600 <= fake.now < 3700


def test_a_create_that_was_answered_by_an_error_and_still_happened_is_adopted() -> None:
    fake = FakeCluster()
    fake.store(SPEC, SUCCEEDED)
    fake.errors = [None, ApiError(500)]
    fake.run()
    assert fake.created == []


# --- verdicts -------------------------------------------------------------------------------------------------------


def test_a_failed_job_always_fails_its_step_even_with_no_pod_left() -> None:
    error = verdict(failing())
    assert (error.reason, NAME in str(error)) == (FailureReason.RETRY, True)


def test_the_reason_is_the_pods_exit_code_and_the_message_its_last_error() -> None:
    error = verdict(failing(failed_pod(MASTER, 78, message="noise\nerror: data.limit is wrong\nmore noise")))
    assert (error.reason, str(error)) == (FailureReason.CONFIGURATION, f"job {NAME}: {MASTER}: data.limit is wrong")


def said(reason: str, text: str, second: int, peer: bool = False) -> str:
    """A supervisor's termination message."""
    at = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC).timestamp()
    return message(Failure(FailureReason(reason), text, rank=3, time=at, peer=peer), [f"{reason} was the last line"])


def test_the_supervisors_termination_message_is_believed_first() -> None:
    failed = failed_pod(MASTER, 137, message=said("data", "row 7 has no image", 1), reason="OOMKilled")
    error = verdict(failing(failed))
    assert (error.reason, str(error)) == (FailureReason.DATA, f"job {NAME}: {MASTER}: rank 3: row 7 has no image")


def test_a_pod_that_only_lost_its_peer_is_not_the_cause_even_when_it_ended_first() -> None:
    peer = failed_pod(MASTER, 75, "2026-01-01T00:00:02Z", message=said("retry", "Connection closed", 2, peer=True))
    other = failed_pod(WORKER, 65, "2026-01-01T00:00:09Z", message=said("data", "bad row", 1))
    assert verdict(failing(peer, other)).reason is FailureReason.DATA


def test_the_pod_at_fault_is_waited_for_when_its_peer_ended_first() -> None:
    peer = failed_pod(MASTER, 75, message=said("retry", "Connection closed", 2, peer=True))
    fake = failing(peer, pod(WORKER))

    def worker_ends() -> None:
        if fake.now > 5:
            fake.pod_list[1] = failed_pod(WORKER, 65, message=said("data", "bad row", 1))

    fake.on_sleep = worker_ends
    assert verdict(fake).reason is FailureReason.DATA


def test_a_pod_that_never_ends_is_not_waited_for_long() -> None:
    fake = failing(failed_pod(MASTER, 75, message=said("retry", "Connection closed", 2, peer=True)), pod(WORKER))
    assert verdict(fake).reason is FailureReason.RETRY
    assert fake.now <= 20


def test_a_pod_out_of_memory_is_told_apart() -> None:
    error = verdict(failing(failed_pod(MASTER, 1, reason="OOMKilled")))
    assert (error.reason, "job.memory" in str(error)) == (FailureReason.OUT_OF_MEMORY, True)


@pytest.mark.parametrize(
    ("code", "why"), [(137, "ContainerStatusUnknown"), (137, "Error"), (255, "Unknown"), (255, "Error")]
)
def test_a_container_that_was_ended_from_outside_is_worth_a_retry_and_no_cause(code: int, why: str) -> None:
    lost = failed_pod(WORKER, code, at="0001-01-01T00:00:00Z", reason=why)
    assert verdict(failing(lost)).reason is FailureReason.RETRY
    cause = failed_pod(MASTER, 65, at="2026-01-01T00:00:09Z")
    assert verdict(failing(lost, cause)).reason is FailureReason.DATA


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("Pod ephemeral local storage usage exceeds the total limit of containers 200Gi.", "ephemeral_storage"),
        ('Container pytorch exceeded its local ephemeral storage limit "10Gi".', "ephemeral_storage"),
        ('Usage of EmptyDir volume "shm" exceeds the limit "64Gi".', "shared_memory"),
    ],
)
def test_a_pod_evicted_for_a_limit_of_its_own_would_be_so_again(text: str, option: str) -> None:
    fake = failing(pod(WORKER, FAILED, reason="Evicted", message=text))
    error = verdict(fake, PATIENT)
    assert (error.reason, fake.created) == (FailureReason.CONFIGURATION, [NAME])
    assert f"raise job.{option}" in str(error)


def test_a_sidecar_among_the_init_containers_decides_nothing() -> None:
    failed = failed_pod(MASTER, 78)
    ended = {"exitCode": 143, "finishedAt": "2026-01-01T00:00:00Z"}
    failed["status"]["initContainerStatuses"] = [{"name": "gcsfuse", "state": {"terminated": ended}}]
    assert verdict(failing(failed)).reason is FailureReason.CONFIGURATION


def test_workers_that_wait_for_the_master_in_vain_are_tried_again_and_are_no_cause() -> None:
    status = [{"name": "init-pytorch", "state": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z"}}}]
    ours = [{"name": "pytorch", "state": {"waiting": {"reason": "PodInitializing"}}}]
    worker = pod(WORKER, FAILED, initContainerStatuses=status, containerStatuses=ours)
    assert "pytorch-init-container-max-tries" in str(verdict(failing(worker)))
    fake = failing(worker)
    assert verdict(fake, PATIENT).reason is FailureReason.RETRY
    assert len(fake.created) == 3
    assert verdict(failing(worker, failed_pod(MASTER, 78))).reason is FailureReason.CONFIGURATION


def test_the_first_pod_to_fail_decides_for_its_peers_only_followed() -> None:
    late = failed_pod(MASTER, 70, "2026-01-01T00:00:09Z")
    first = failed_pod(WORKER, 65, "2026-01-01T00:00:05Z")
    assert verdict(failing(late, first)).reason is FailureReason.DATA


def test_an_evicted_pod_is_worth_a_retry() -> None:
    evicted = failed_pod(MASTER, 137)
    evicted["status"] |= {"reason": "Evicted", "message": "node was low on\nmemory"}
    error = verdict(failing(evicted))
    assert (error.reason, "low on memory" in str(error)) == (FailureReason.RETRY, True)


def test_a_pod_that_succeeded_before_its_node_was_drained_is_not_to_blame() -> None:
    drained = [{"type": "DisruptionTarget", "status": "True", "reason": "Drain"}]
    done = pod(MASTER, SUCCEEDED, conditions=drained)
    assert verdict(failing(done, failed_pod(WORKER, 65))).reason is FailureReason.DATA


def test_every_failed_pods_reason_and_last_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    other = f"{NAME}-worker-1"
    fake = failing(
        failed_pod(WORKER, 78), failed_pod(other, 75, message=said("retry", "Connection closed", 2, peer=True))
    )
    fake.logs[WORKER] = lines("before", "error: rank 3 has no GPU")
    assert "rank 3 has no GPU" in str(verdict(fake))
    out = capsys.readouterr().out
    assert f"[{WORKER}] before" in out
    assert f"pod {WORKER} failed (configuration): rank 3 has no GPU" in out
    assert f"[{other}] retry was the last line" in out  # its log is gone, its termination message is not
    assert out.index(WORKER) < out.index(other)


def test_pods_that_linger_of_a_job_of_the_same_name_say_nothing_of_this_one() -> None:
    fake = FakeCluster()
    fake.store(SPEC, FAILED, created=1000.0)
    left, own = failed_pod(WORKER, 78, "2026-01-01T00:00:00Z"), failed_pod(MASTER, 65, "2026-01-01T00:00:09Z")
    left["metadata"]["creationTimestamp"] = "1970-01-01T00:16:39+00:00"
    own["metadata"]["creationTimestamp"] = "1970-01-01T00:16:40+00:00"
    fake.pod_list = [left, own]
    assert verdict(fake).reason is FailureReason.DATA


def test_a_job_s_own_pods_are_known_by_their_owner_whatever_the_clocks_say() -> None:
    fake = FakeCluster(RUNNING, FAILED)
    job = fake.store(SPEC, created=100.0)
    job["metadata"]["uid"] = "1"
    for code, uid, at in ((65, "1", "1970-01-01T00:01:39Z"), (78, "0", "1970-01-01T00:01:41Z")):
        failed = failed_pod(f"{NAME}-worker-{code}", code)
        owner = {"kind": "PyTorchJob", "name": NAME, "uid": uid}
        failed["metadata"] |= {"creationTimestamp": at, "ownerReferences": [owner]}
        fake.pod_list.append(failed)
    assert verdict(fake).reason is FailureReason.DATA


def test_a_role_that_is_applied_anew_does_not_end_a_job_that_is_followed() -> None:
    fake = FakeCluster(RUNNING, SUCCEEDED)
    fake.on_sleep = lambda: fake.errors.append(ApiError(403, "RBAC: role not found")) if fake.now < 60 else None
    fake.run()
    assert fake.now > 60


def test_a_role_that_is_gone_for_good_ends_it() -> None:
    fake = FakeCluster(RUNNING)
    fake.on_sleep = lambda: fake.errors.append(ApiError(403, "RBAC: role not found"))
    with pytest.raises(ConfigurationError, match="Role"):
        fake.run()
    assert 120 <= fake.now < 300


def test_a_job_that_disappears_is_worth_a_retry() -> None:
    fake = FakeCluster(RUNNING)
    fake.on_sleep = fake.stored.clear
    error = verdict(fake)
    assert (error.reason, "behind our back" in str(error)) == (FailureReason.RETRY, True)


def test_an_operator_that_is_away_for_a_moment_deleted_nothing() -> None:
    fake = FakeCluster(RUNNING, SUCCEEDED)
    fake.errors = [None, None, None, ApiError(404)]
    fake.run()


# --- following ------------------------------------------------------------------------------------------------------


def test_the_masters_log_is_printed_once_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeCluster(RUNNING, RUNNING, RUNNING, SUCCEEDED)
    fake.pod_list = [pod(WORKER), pod(MASTER)]
    whole = lines("one", "two", "three", "three", "five").removesuffix("\n")
    pieces = iter([whole[:40], whole[:100], whole])

    def grow() -> None:
        fake.logs[MASTER] = next(pieces)

    fake.on_sleep = grow
    fake.run()
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("job ")]
    assert printed == ["one", "two", "three", "three", "five"]


def test_pods_that_cannot_start_say_why_once(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeCluster(CREATED, CREATED, SUCCEEDED)
    fake.pod_list = [waiting_pod(name, "ImagePullBackOff", "no such image") for name in (MASTER, WORKER)]
    fake.run()
    assert capsys.readouterr().out.count("ImagePullBackOff: no such image") == 1


def test_what_only_events_know_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeCluster(*[CREATED] * 30, SUCCEEDED)
    about = {"kind": "PyTorchJob", "name": NAME}
    quota = {"involvedObject": about, "reason": "FailedCreatePod", "message": "exceeded quota: gpus, used 8, limited 8"}
    about = {"kind": "Workload", "name": f"pytorchjob-{NAME}-1a2b3"}
    kueue = {"involvedObject": about, "reason": "Pending", "message": "insufficient quota for nvidia.com/gpu"}
    foreign = {"involvedObject": {"kind": "Pod", "name": f"{NAME}0-master-0"}, "reason": "Failed", "message": "foreign"}
    fake.store(created=1000.0)
    old = {"involvedObject": about, "reason": "Old", "message": "x", "lastTimestamp": "1970-01-01T00:16:39Z"}
    fake.events = [quota, kueue, foreign, old]
    fake.run()
    out = capsys.readouterr().out
    assert out.count("FailedCreatePod: exceeded quota") == 1
    assert out.count("Pending: insufficient quota") == 1
    assert "foreign" not in out
    assert "Old" not in out


def test_a_suspended_job_is_queued_and_says_so_at_every_turn(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeCluster(SUSPENDED, SUSPENDED, RUNNING, SUCCEEDED)
    fake.run()
    assert capsys.readouterr().out.count(f"job {NAME} queued: job is Suspended") == 1


def test_a_trainjob_is_followed_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    spec = replace(SPEC, kind="trainjob")
    first = pod(f"{NAME}-node-0-0-x7k2p")
    first["metadata"]["labels"] = {"batch.kubernetes.io/job-completion-index": "0"}
    fake = FakeCluster(CREATED, SUSPENDED, "Complete")
    fake.pod_list = [pod(f"{NAME}-node-0-1-h2j4k"), first]
    fake.logs[first["metadata"]["name"]] = lines("one", "two")
    fake.run(spec)
    assert fake.stored[NAME]["kind"] == "TrainJob"
    assert "\none\ntwo\n" in capsys.readouterr().out
    fake = FakeCluster(FAILED)
    ended = {"name": "node", "state": {"terminated": {"exitCode": 65, "message": "error: bad row"}}}
    fake.pod_list = [pod(f"{NAME}-node-0-1-h2j4k", FAILED, containerStatuses=[ended])]
    assert (verdict(fake, spec).reason, fake.created) == (FailureReason.DATA, [NAME])


# --- its time -------------------------------------------------------------------------------------------------------


def test_a_job_that_takes_too_long_is_deleted() -> None:
    fake = FakeCluster(RUNNING)
    error = verdict(fake)
    assert (fake.deleted, error.reason) == ([NAME], FailureReason.CANCELLED)
    assert "timeout_seconds" in str(error)
    assert fake.now == SPEC.timeout_seconds


def test_the_time_of_all_attempts_counts_whoever_launched_them() -> None:
    fake = FakeCluster(RUNNING)
    fake.now = 100_000.0
    fake.store(SPEC, FAILED, created=1000.0, ended=2000.0)
    fake.store(SPEC.next_attempt(), RUNNING, created=99_500.0)
    assert "timeout_seconds" in str(verdict(fake))
    assert fake.now == 100_000 + SPEC.timeout_seconds - 1000 - 500


def test_a_job_that_is_gone_when_its_time_is_up_is_deleted_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str, urgent: bool = False) -> None:
        raise ApiError(404, "not found")

    fake = FakeCluster(RUNNING)
    monkeypatch.setattr(fake, "delete", gone)
    assert verdict(fake).reason is FailureReason.CANCELLED


def test_a_job_that_never_gets_its_nodes_is_deleted_with_what_it_waited_for() -> None:
    fake = FakeCluster(CREATED)
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    fake.pod_list = [pod(MASTER, "Pending", conditions=[unschedulable])]
    error = verdict(fake, replace(SPEC, queue_timeout_seconds=60))
    assert (fake.deleted, error.reason, fake.now) == ([NAME], FailureReason.RETRY, 60)
    assert "Unschedulable: 0/3 nodes" in str(error)
    assert "job.queue_timeout_seconds" in str(error)


def test_a_job_with_a_pod_that_waits_is_not_started() -> None:
    fake = FakeCluster(RUNNING)
    fake.pod_list = [pod(MASTER), pod(WORKER, "Pending")]
    verdict(fake, replace(SPEC, queue_timeout_seconds=60))
    assert fake.now == 60


def test_a_job_whose_workers_cannot_be_made_is_not_started_though_its_master_runs() -> None:
    fake = FakeCluster(RUNNING)
    fake.pod_list = [pod(MASTER)]
    about = {"kind": "PyTorchJob", "name": NAME}
    fake.events = [{"involvedObject": about, "reason": "FailedCreatePod", "message": "exceeded quota"}]
    error = verdict(fake, replace(SPEC, queue_timeout_seconds=60))
    assert (fake.now, error.reason) == (60, FailureReason.RETRY)
    assert "exceeded quota" in str(error)


def test_a_running_job_whose_pods_cannot_be_listed_is_not_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(selector: str) -> list[dict[str, Any]]:
        raise ApiError(403, "forbidden")

    fake = FakeCluster(*[RUNNING] * 100, SUCCEEDED)
    monkeypatch.setattr(fake, "pods", forbidden)
    fake.run(replace(SPEC, queue_timeout_seconds=60))


def test_time_in_the_queue_counts_anew_after_a_preemption() -> None:
    fake = FakeCluster(*[RUNNING] * 100, SUSPENDED)
    verdict(fake, replace(SPEC, queue_timeout_seconds=60))
    assert fake.now == 560


def test_an_image_that_cannot_be_pulled_does_not_hold_its_nodes_for_long() -> None:
    fake = FakeCluster(RUNNING)
    fake.pod_list = [pod(MASTER), waiting_pod(WORKER, "ErrImagePull", "unauthorized")]
    error = verdict(fake)
    assert (fake.deleted, error.reason) == ([NAME], FailureReason.CONFIGURATION)
    assert "unauthorized" in str(error)
    assert fake.now < 1000


@pytest.mark.parametrize(
    "why",
    [
        'pods "x" is forbidden: violates PodSecurity "restricted:latest"',
        "unable to validate against any security context constraint",
        'admission webhook "policy.example" denied the request',
    ],
)
def test_pods_that_the_cluster_does_not_let_in_are_not_waited_for_long(why: str) -> None:
    fake = FakeCluster(RUNNING)
    fake.pod_list = [pod(MASTER)]
    about = {"kind": "PyTorchJob", "name": NAME}
    fake.events = [{"involvedObject": about, "reason": "FailedCreatePod", "message": why}]
    error = verdict(fake, replace(SPEC, timeout_seconds=86_400))
    assert (fake.deleted, error.reason) == ([NAME], FailureReason.CONFIGURATION)
    assert (why in str(error), fake.now < 1000) == (True, True)


def test_pods_that_were_let_in_after_all_are_waited_for() -> None:
    fake = FakeCluster(*[RUNNING] * 400, SUCCEEDED)
    fake.pod_list = [pod(MASTER)]
    about = {"kind": "PyTorchJob", "name": NAME}
    fake.events = [{"involvedObject": about, "reason": "FailedCreatePod", "message": "violates PodSecurity"}]

    def let_in() -> None:
        if fake.now > 600 and len(fake.pod_list) == 1:
            fake.pod_list.append(pod(WORKER, "Pending"))

    fake.on_sleep = let_in
    fake.run(replace(SPEC, timeout_seconds=86_400))


def test_a_refusal_of_before_says_nothing_of_pods_that_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(selector: str) -> list[dict[str, Any]]:
        raise ApiError(403, "forbidden")

    fake = FakeCluster(*[CREATED] * 20, *[RUNNING] * 400, SUCCEEDED)
    about = {"kind": "PyTorchJob", "name": NAME}
    fake.events = [{"involvedObject": about, "reason": "FailedCreatePod", "message": "denied the request"}]
    monkeypatch.setattr(fake, "pods", forbidden)
    fake.run()


def test_nodes_that_come_one_by_one_have_their_time_each() -> None:
    fake = FakeCluster(CREATED)
    fake.pod_list = [pod(MASTER)]

    def arrive() -> None:
        """Each pulls its image for 20 minutes, one after the other."""
        fake.pod_list[1:] = [{**pod(f"{NAME}-worker-{int(fake.now // 1200)}", "Pending"), "spec": {"nodeName": "n"}}]

    fake.on_sleep = arrive
    error = verdict(fake, replace(SPEC, timeout_seconds=20_000))
    assert (error.reason, fake.now) == (FailureReason.CANCELLED, 20_000)


def test_a_pod_that_has_a_node_and_does_not_start_does_not_hold_it_for_ever() -> None:
    fake = FakeCluster(CREATED)
    fake.pod_list = [{**pod(MASTER, "Pending"), "spec": {"nodeName": "gpu-1"}}]
    about = {"kind": "Pod", "name": MASTER}
    fake.events = [{"involvedObject": about, "reason": "FailedMount", "message": "pvc not found"}]
    error = verdict(fake, replace(SPEC, timeout_seconds=86_400))
    assert (fake.deleted, error.reason, fake.now) == ([NAME], FailureReason.CONFIGURATION, 3600)
    assert "pvc not found" in str(error)


def test_a_job_whose_log_stands_still_is_deleted() -> None:
    fake = FakeCluster(RUNNING)
    fake.pod_list = [pod(MASTER), pod(WORKER)]
    fake.logs[MASTER] = lines("step 1")
    error = verdict(fake, replace(SPEC, stall_timeout_seconds=300))
    assert (fake.deleted, error.reason) == ([NAME], FailureReason.RETRY)
    assert "job.stall_timeout_seconds" in str(error)


def test_a_master_that_waits_for_its_workers_in_silence_is_not_stalled() -> None:
    fake = FakeCluster(*[RUNNING] * 200, SUCCEEDED)
    fake.pod_list = [pod(MASTER)]
    fake.logs[MASTER] = lines("waiting for the others")
    fake.run(replace(SPEC, stall_timeout_seconds=300))


def test_a_job_that_writes_is_not_stalled() -> None:
    fake = FakeCluster(RUNNING)
    fake.pod_list = [pod(MASTER), pod(WORKER)]
    fake.logs[MASTER] = ""

    def write() -> None:
        fake.logs[MASTER] += f"{stamp(fake.now)} step\n"

    fake.on_sleep = write
    assert verdict(fake, replace(SPEC, stall_timeout_seconds=300)).reason is FailureReason.CANCELLED


def test_a_log_that_cannot_be_read_is_no_stall() -> None:
    fake = FakeCluster(RUNNING)
    fake.pod_list = [pod(MASTER), pod(WORKER)]
    assert verdict(fake, replace(SPEC, stall_timeout_seconds=300)).reason is FailureReason.CANCELLED


# --- stopping -------------------------------------------------------------------------------------------------------


def at_the_first_pause(fake: FakeCluster, number: int = signal.SIGTERM) -> FakeCluster:
    fake.on_sleep = lambda: os.kill(os.getpid(), number)
    return fake


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_deletes_the_job(number: signal.Signals) -> None:
    fake = at_the_first_pause(FakeCluster(RUNNING), number)
    before = signal.getsignal(number)
    assert verdict(fake).reason is FailureReason.CANCELLED
    assert fake.deleted == [f"{NAME} urgently"]
    assert signal.getsignal(number) is before


def test_the_job_is_deleted_before_anything_else_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = at_the_first_pause(FakeCluster(RUNNING))
    in_handler: list[bool] = []
    delete = fake.delete

    def watched(name: str, urgent: bool = False) -> None:
        in_handler.append(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)
        delete(name, urgent)

    monkeypatch.setattr(fake, "delete", watched)
    verdict(fake)
    assert in_handler[0]


def test_a_job_whose_creation_was_under_way_at_the_signal_is_deleted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCluster()
    create = fake.create

    def late(manifest: Mapping[str, Any]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            create(manifest)

    monkeypatch.setattr(fake, "create", late)
    assert verdict(fake).reason is FailureReason.CANCELLED
    assert (fake.created, fake.stored) == ([NAME], {})


@pytest.mark.parametrize("call", ["create", "get"])
def test_a_signal_while_our_own_job_is_being_adopted_deletes_it(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCluster(RUNNING)
    fake.store()
    original = getattr(fake, call)

    def stopped(asked: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(asked)

    monkeypatch.setattr(fake, call, stopped)
    assert verdict(fake).reason is FailureReason.CANCELLED
    assert not fake.stored


def test_a_signal_before_the_job_is_known_to_be_ours_deletes_nothing() -> None:
    fake = at_the_first_pause(FakeCluster())
    fake.store(SPEC, RUNNING)["metadata"]["deletionTimestamp"] = "t"
    assert "left alone" in str(verdict(fake))
    assert not fake.deleted


def test_a_stop_whose_delete_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, urgent: bool = False) -> None:
        raise ApiError(503, "etcd")

    fake = at_the_first_pause(FakeCluster(RUNNING))
    monkeypatch.setattr(fake, "delete", refuse)
    error = verdict(fake)
    assert (error.reason, "may still run" in str(error)) == (FailureReason.CANCELLED, True)


@pytest.fixture
def in_kfp(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """A running job whose launcher is a step of a pipeline run."""
    fake = FakeCluster(RUNNING)
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "1", "controller": True}
    ours = pod("launcher")
    ours["metadata"] |= {"uid": "2", "ownerReferences": [workflow]}
    fake.pod_list = [ours]
    fake.workflows["w"] = {"metadata": {"uid": "1"}, "spec": {}, "status": {"phase": "Running"}}
    monkeypatch.setenv("KFP_POD_NAME", "launcher")
    return fake


def test_the_job_belongs_to_the_workflow_of_the_pipeline_run(in_kfp: FakeCluster) -> None:
    in_kfp.scripts = [[SUCCEEDED]]
    in_kfp.run()
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "1"}
    assert in_kfp.stored[NAME]["metadata"]["ownerReferences"] == [
        owner | {"controller": False, "blockOwnerDeletion": False}
    ]


def test_a_launcher_that_is_only_evicted_leaves_its_job_to_the_next_try(in_kfp: FakeCluster) -> None:
    in_kfp.pod_list[0]["metadata"]["deletionTimestamp"] = "t"
    error = verdict(at_the_first_pause(in_kfp))
    assert (error.reason, in_kfp.deleted) == (FailureReason.RETRY, [])
    assert "left running" in str(error)
    in_kfp.on_sleep = lambda: None
    in_kfp.scripts = [[RUNNING, SUCCEEDED]]
    in_kfp.run()
    assert in_kfp.created == [NAME]


def test_an_evicted_launcher_deletes_its_job_where_it_is_told_to(in_kfp: FakeCluster) -> None:
    in_kfp.pod_list[0]["metadata"]["deletionTimestamp"] = "t"
    assert verdict(at_the_first_pause(in_kfp), replace(SPEC, on_eviction="delete")).reason is FailureReason.CANCELLED
    assert not in_kfp.stored


@pytest.mark.parametrize(
    "called_off",
    [
        {"spec": {"activeDeadlineSeconds": 0}},
        {"spec": {"shutdown": "Terminate"}},
        {"status": {"phase": "Failed"}},
        None,
    ],
)
def test_a_run_that_is_called_off_deletes_its_job_whatever_happens_to_the_launcher(
    in_kfp: FakeCluster, called_off: dict[str, Any] | None
) -> None:
    in_kfp.pod_list[0]["metadata"]["deletionTimestamp"] = "t"
    at_the_first_pause(in_kfp)
    in_kfp.workflows = {"w": {"metadata": {"uid": "1"}, **called_off}} if called_off else {}
    assert verdict(in_kfp).reason is FailureReason.CANCELLED
    assert not in_kfp.stored


def test_in_doubt_the_job_is_deleted(in_kfp: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(name: str, urgent: bool = False) -> dict[str, Any]:
        raise ApiError(0, "timed out")

    in_kfp.pod_list[0]["metadata"]["deletionTimestamp"] = "t"
    monkeypatch.setattr(in_kfp, "workflow", slow)
    assert verdict(at_the_first_pause(in_kfp)).reason is FailureReason.CANCELLED
    assert not in_kfp.stored


@pytest.mark.parametrize("how", ["terminated", "deleted"])
def test_a_run_that_is_called_off_is_noticed_without_a_signal(in_kfp: FakeCluster, how: str) -> None:
    def stop() -> None:
        if how == "deleted":
            in_kfp.workflows.clear()
        else:
            in_kfp.workflows["w"]["spec"]["activeDeadlineSeconds"] = 0

    in_kfp.on_sleep = stop
    assert verdict(in_kfp).reason is FailureReason.CANCELLED
    assert in_kfp.deleted == [NAME]
    assert in_kfp.now < 60


def test_a_launcher_that_may_not_read_workflows_follows_its_job_all_the_same(
    in_kfp: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(name: str, urgent: bool = False) -> dict[str, Any]:
        raise ApiError(403, "forbidden")

    monkeypatch.setattr(in_kfp, "workflow", forbidden)
    in_kfp.scripts = [[*[RUNNING] * 30, SUCCEEDED]]
    in_kfp.run()
    assert capsys.readouterr().out.count("workflow w cannot be read") == 1


def test_pods_that_cannot_be_listed_at_first_still_give_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = failing(failed_pod(MASTER, 65))
    pods, trouble = fake.pods, [ApiError(503)] * 5

    def flaky(selector: str) -> list[dict[str, Any]]:
        if trouble:
            raise trouble.pop()
        return pods(selector)

    monkeypatch.setattr(fake, "pods", flaky)
    assert verdict(fake).reason is FailureReason.DATA


# --- word of a failure --------------------------------------------------------------------------------------------


def in_storage(folder: Path, **changes: Any) -> JobSpec:
    return replace(SPEC, status_uri=str(folder), **changes)


def test_a_job_that_was_deleted_for_good_is_not_made_anew_when_its_step_is_tried_again(
    in_kfp: FakeCluster, tmp_path: Path
) -> None:
    """Kubeflow retries a failed step whatever its exit code."""
    first = verdict(in_kfp, in_storage(tmp_path))
    assert (first.reason, in_kfp.created) == (FailureReason.CANCELLED, [NAME])
    for _ in range(2):
        again = verdict(in_kfp, in_storage(tmp_path))
        assert (again.reason, in_kfp.created) == (FailureReason.CANCELLED, [NAME])
        assert str(again).startswith(str(first))
        assert str(again).count("tried before") == 1
    assert f"delete {tmp_path}/failure.json" in str(again)
    record.forget(str(tmp_path))
    verdict(in_kfp, in_storage(tmp_path))
    assert in_kfp.created == [NAME, NAME]


def test_a_job_that_was_deleted_and_may_do_better_goes_on_with_what_is_left_of_its_time(
    in_kfp: FakeCluster, tmp_path: Path
) -> None:
    in_kfp.scripts = [[CREATED]]
    spec = in_storage(tmp_path, queue_timeout_seconds=2400)
    assert verdict(in_kfp, spec).reason is FailureReason.RETRY
    in_kfp.now += 5000.0  # which is nobody's time
    error = verdict(in_kfp, spec)
    assert (error.reason, in_kfp.now) == (FailureReason.CANCELLED, 2400 + 5000 + SPEC.timeout_seconds - 2400)
    assert in_kfp.created == [NAME, NAME]


def test_restarts_count_on_though_the_last_job_was_deleted(in_kfp: FakeCluster, tmp_path: Path) -> None:
    second = PATIENT.next_attempt().name
    in_kfp.scripts = [[RUNNING, FAILED], [CREATED]]
    spec = in_storage(tmp_path, max_restarts=1, queue_timeout_seconds=60)
    assert verdict(in_kfp, spec).reason is FailureReason.RETRY
    assert in_kfp.created == [NAME, second]
    del in_kfp.stored[NAME]  # its time to live is over
    in_kfp.scripts = [[RUNNING, FAILED]]
    assert "restarted 1 times" in str(verdict(in_kfp, spec))
    assert in_kfp.created == [NAME, second, second]


@pytest.mark.parametrize("other", ["run", "job", "no pipeline"])
def test_another_run_or_another_job_is_not_held_to_it(
    in_kfp: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    verdict(in_kfp, in_storage(tmp_path))
    if other == "run":
        in_kfp.pod_list[0]["metadata"]["ownerReferences"][0]["uid"] = "another"
    elif other == "no pipeline":
        monkeypatch.delenv("KFP_POD_NAME")
    in_kfp.scripts = [[SUCCEEDED]]
    in_kfp.run(in_storage(tmp_path, arguments=("--other",) if other == "job" else ()))
    assert in_kfp.created == [NAME, NAME]


def test_a_job_that_runs_is_followed_whatever_was_said_before(in_kfp: FakeCluster, tmp_path: Path) -> None:
    """As when storage did not answer the try before, which then knew of nothing."""
    spec = in_storage(tmp_path)
    in_kfp.pod_list.append(waiting_pod(MASTER, "ErrImagePull", "unauthorized"))
    assert verdict(in_kfp, spec).reason is FailureReason.CONFIGURATION
    in_kfp.pod_list.pop()
    in_kfp.scripts = [[*[RUNNING] * 9, SUCCEEDED]]
    in_kfp.store(spec)
    in_kfp.run(spec)
    assert in_kfp.created == [NAME]


def test_a_job_that_is_on_its_way_out_is_no_job_that_runs(in_kfp: FakeCluster, tmp_path: Path) -> None:
    spec = in_storage(tmp_path)
    verdict(in_kfp, spec)
    in_kfp.store(spec, created=0.0)["metadata"]["deletionTimestamp"] = "t"  # finalizers take their time
    assert "tried before" in str(verdict(in_kfp, spec))
    assert in_kfp.created == [NAME]


def test_the_time_of_a_job_that_was_deleted_counts_whatever_came_after_it(in_kfp: FakeCluster, tmp_path: Path) -> None:
    spec = in_storage(tmp_path, queue_timeout_seconds=1800)
    in_kfp.scripts = [[CREATED]]
    assert verdict(in_kfp, spec).reason is FailureReason.RETRY  # 1800 s in the queue
    in_kfp.errors = [None, ApiError(403, "a Role that is being applied anew")]
    with pytest.raises(ConfigurationError):
        in_kfp.run(spec)  # which is no reason to hold the next try to it
    in_kfp.store(spec, created=in_kfp.now - 600)  # by a launcher that was lost: 600 s
    in_kfp.scripts, began = [[RUNNING]], in_kfp.now
    assert verdict(in_kfp, spec).reason is FailureReason.CANCELLED
    assert in_kfp.now - began == SPEC.timeout_seconds - 1800 - 600


@pytest.mark.parametrize("call", [2, 3])
def test_what_a_refused_try_of_a_step_says_binds_no_later_one(in_kfp: FakeCluster, tmp_path: Path, call: int) -> None:
    """Neither a list nor a create that is refused, after a job was deleted that may do better."""
    spec = in_storage(tmp_path, queue_timeout_seconds=600)
    in_kfp.scripts = [[CREATED]]
    verdict(in_kfp, spec)
    in_kfp.errors = [None] * (call - 2) + [ApiError(403, "exceeded quota")]
    with pytest.raises(ConfigurationError):
        in_kfp.run(spec)
    in_kfp.scripts = [[SUCCEEDED]]
    in_kfp.run(spec)
    assert in_kfp.created == [NAME, NAME]


def test_a_try_that_is_refused_does_not_make_the_next_forget_a_verdict(in_kfp: FakeCluster, tmp_path: Path) -> None:
    spec = in_storage(tmp_path)
    verdict(in_kfp, spec)
    in_kfp.errors = [ApiError(403, "a Role that is being applied anew")]
    with pytest.raises(ConfigurationError, match="Role"):
        in_kfp.run(spec)
    assert "tried before" in str(verdict(in_kfp, spec))
    assert in_kfp.created == [NAME]


def test_a_hang_that_used_up_the_restarts_is_final(in_kfp: FakeCluster, tmp_path: Path) -> None:
    spec = in_storage(tmp_path, stall_timeout_seconds=300)
    in_kfp.pod_list += [pod(MASTER), pod(WORKER)]
    in_kfp.logs[MASTER] = lines("step 1")
    for _ in range(2):
        assert verdict(in_kfp, spec).reason is FailureReason.RETRY
        assert in_kfp.created == [NAME]


def test_a_job_that_fails_by_itself_after_one_hung_is_left_to_the_cluster(in_kfp: FakeCluster, tmp_path: Path) -> None:
    spec = in_storage(tmp_path, max_restarts=1, stall_timeout_seconds=300)
    in_kfp.pod_list += [pod(MASTER), pod(WORKER)]
    in_kfp.logs[MASTER] = lines("step 1")
    in_kfp.scripts = [[RUNNING], [FAILED]]
    assert verdict(in_kfp, spec).reason is FailureReason.RETRY
    left = record.read(str(tmp_path))
    assert left is not None
    assert (left.job, left.final) == (job_name(RUN, 1), False)


def test_the_time_of_a_deleted_attempt_counts_though_the_launcher_lost_sight_of_the_next(
    in_kfp: FakeCluster, tmp_path: Path
) -> None:
    spec = in_storage(tmp_path, max_restarts=1, stall_timeout_seconds=300, timeout_seconds=20_000)
    in_kfp.pod_list += [pod(MASTER), pod(WORKER)]
    in_kfp.logs[MASTER] = lines("step 1")

    def then_away() -> None:
        if len(in_kfp.created) == 2 and not in_kfp.errors:
            del in_kfp.pod_list[1:]
            born = datetime.fromtimestamp(in_kfp.now, UTC).isoformat()
            in_kfp.stored[job_name(RUN, 1)]["metadata"]["creationTimestamp"] = born
            in_kfp.errors = [ApiError(503)] * 1000

    in_kfp.on_sleep = then_away
    assert "does not answer" in str(verdict(in_kfp, spec))
    in_kfp.errors, in_kfp.on_sleep = [], lambda: None
    left = record.read(str(tmp_path))
    assert left is not None
    assert (left.job, left.seconds >= 300) == (job_name(RUN, 1), True)
    assert verdict(in_kfp, spec).reason is FailureReason.CANCELLED
    between_attempts = SPEC.grace_seconds + 30
    assert in_kfp.now <= 20_000 + between_attempts


def test_the_time_of_attempts_before_one_that_was_deleted_counts_once(in_kfp: FakeCluster, tmp_path: Path) -> None:
    spec = in_storage(tmp_path, max_restarts=1, queue_timeout_seconds=600)
    in_kfp.now = 1000.0
    in_kfp.store(spec, FAILED, created=0.0, ended=1000.0)
    in_kfp.scripts = [[CREATED]]
    assert verdict(in_kfp, spec).reason is FailureReason.RETRY
    left = record.read(str(tmp_path))
    assert left is not None
    assert left.job == job_name(RUN, 1)
    in_kfp.scripts, began = [[RUNNING]], in_kfp.now
    assert verdict(in_kfp, spec).reason is FailureReason.CANCELLED
    assert in_kfp.now - began == SPEC.timeout_seconds - left.seconds


def test_a_job_that_fails_by_itself_after_one_was_deleted_is_left_to_the_cluster(
    in_kfp: FakeCluster, tmp_path: Path
) -> None:
    spec = in_storage(tmp_path, queue_timeout_seconds=600)
    in_kfp.scripts = [[CREATED]]
    verdict(in_kfp, spec)
    in_kfp.scripts = [[FAILED]]
    in_kfp.pod_list.append(failed_pod(MASTER, 78))
    verdict(in_kfp, spec)
    left = record.read(str(tmp_path))
    assert left is not None
    assert (left.reason, left.final) == (FailureReason.CONFIGURATION, False)


def test_a_launcher_lost_while_a_job_that_hung_is_made_anew_leaves_its_count_and_time(
    in_kfp: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(BaseException):
        pass

    spec = in_storage(tmp_path, max_restarts=1, stall_timeout_seconds=300)
    in_kfp.pod_list += [pod(MASTER), pod(WORKER)]
    in_kfp.logs[MASTER] = lines("step 1")

    def lose() -> None:
        if in_kfp.deleted:
            raise Lost

    in_kfp.on_sleep = lose
    with pytest.raises(Lost):
        in_kfp.run(spec)
    in_kfp.on_sleep, before = lambda: None, in_kfp.now
    del in_kfp.pod_list[1:]
    in_kfp.scripts = [[FAILED]]
    assert "restarted 1 times" in str(verdict(in_kfp, spec))
    assert in_kfp.created == [NAME, job_name(RUN, 1)]
    left = record.read(str(tmp_path))
    assert left is not None
    assert left.seconds >= before - 10


def test_who_launches_by_hand_may_try_again_as_they_like(tmp_path: Path) -> None:
    fake = FakeCluster(RUNNING)
    verdict(fake, in_storage(tmp_path))
    verdict(fake, in_storage(tmp_path))
    assert fake.created == [NAME, NAME]


def test_word_is_left_of_a_job_that_failed_by_itself_too(tmp_path: Path) -> None:
    fake = failing(failed_pod(MASTER, 75))
    error = verdict(fake, in_storage(tmp_path))
    left = record.read(str(tmp_path))
    assert left is not None
    assert (left.job, left.reason, left.sentence, left.final) == ("", FailureReason.RETRY, str(error), False)


def test_a_store_that_is_away_costs_the_job_nothing(
    in_kfp: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: Any) -> None:
        raise RetryError("storage does not answer")

    for call in ("read", "leave"):
        monkeypatch.setattr(record, call, away)
    assert verdict(in_kfp, in_storage(tmp_path)).reason is FailureReason.CANCELLED
    in_kfp.scripts = [[SUCCEEDED]]
    in_kfp.run(in_storage(tmp_path))
    assert capsys.readouterr().out.count("storage does not answer") == 3


@pytest.mark.parametrize("left", ["", "{", "[]", "{}", '{"job": "x", "reason": "unheard of"}'])
def test_a_record_of_other_code_is_none(tmp_path: Path, left: str) -> None:
    (tmp_path / "failure.json").write_text(left)
    assert record.read(str(tmp_path)) is None
