"""The launcher through the real client, against an API and pods that misbehave by script.

Whatever happens: the right verdict, one job for each attempt, and nothing that runs on. `jobs/README.md` counts these.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import hasty
import pytest
import yaml
from emulator import Call, Cluster, Trouble, certificate, serve, write_kubeconfig
from fake_operator import (
    HAPPY,
    Operator,
    Script,
    Step,
    event,
    evicted,
    exits,
    image_missing,
    pending,
    pods_of,
    running,
    says,
    terminated,
    unschedulable,
)

from vqa_grpo.contract.failure import FailureReason, StepError
from vqa_grpo.contract.vitals import Failure
from vqa_grpo.jobs.kind import kind_named
from vqa_grpo.jobs.spec import KINDS, JobSpec, job_name
from vqa_grpo.jobs.verdict import message

LINES = ["one", "two", "three"]
Reset = 0


def full(*values: Any) -> Any:
    """A case of a test that runs with the long ones."""
    return pytest.param(*values, marks=pytest.mark.full)


def spec(run: str = "run", **changes: Any) -> JobSpec:
    fields: dict[str, Any] = {"num_nodes": 2, "timeout_seconds": 7200, "max_restarts": 1} | changes
    return JobSpec(name=job_name(run), run_id=run, module="m", image="i", **fields)


def play(cluster: Cluster, **parts: Any) -> Operator:
    """An operator whose pods go on by one step whenever the launcher looks at its job or at its pods."""
    operator = Operator(cluster, Script(cluster, parts))

    def tick(call: Call) -> None:
        if str(call) in ("get pytorchjobs", "get trainjobs", "list pods"):
            operator.tick()

    cluster.on_call = tick
    return operator


def fails(operator: Operator, job: JobSpec, speed: int = hasty.SPEED) -> StepError:
    """The verdict on a job that must fail, in one line; and nothing may hold a node afterwards."""
    with pytest.raises(StepError) as error:
        hasty.launch(job, speed)
    settle(operator)
    assert "\n" not in str(error.value)
    return error.value


def settle(operator: Operator) -> None:
    """Some time after the launcher has gone, no pod may hold a node."""
    for _ in range(50):
        operator.tick()
    assert operator.running() == []


def names(*attempts: int, run: str = "run") -> list[str]:
    return [job_name(run, attempt) for attempt in attempts]


def printed(said: str) -> list[str]:
    """What of the launcher's output is the pod's."""
    return [line for line in said.splitlines() if line in LINES]


# --- the API's bad days -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_is_followed_to_its_end_and_its_log_printed_once(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    operator = play(cluster)
    hasty.launch(spec(kind=kind))
    assert cluster.created == names(0)
    assert operator.running() == []
    assert printed(capsys.readouterr().out) == LINES


TROUBLES = [
    pytest.param(status, happens, id=f"{status or 'reset'}{' but done' if happens else ''}")
    for status in (Reset, 401, 429, 500, 502, 503, 504)
    for happens in (False, True)
]


def once(at: int, status: int, happens: bool) -> Callable[[Call], Trouble | None]:
    """Trouble with one call, counted from 0."""

    def trouble(call: Call) -> Trouble | None:
        if call.number != at:
            return None
        return Trouble(status, happens and call.resource != "pods/log", {"Retry-After": "1"} if status == 429 else {})

    return trouble


@pytest.mark.full
@pytest.mark.parametrize(("status", "happens"), TROUBLES)
def test_a_call_that_fails_once_changes_nothing_whichever_it_is(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], status: int, happens: bool
) -> None:
    at, calls = 0, 1
    while at < calls:
        run = f"run-{at}"
        play(cluster)
        cluster.calls.clear()
        cluster.trouble = once(at, status, happens)
        hasty.launch(spec(run))
        assert [name for name in cluster.created if f"-{run}-" in name] == names(0, run=run)
        assert printed(capsys.readouterr().out) == LINES
        at, calls = at + 1, len(cluster.calls)
    print(f"{calls} calls")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "happens"), TROUBLES)
def test_every_call_may_fail_the_first_time(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], status: int, happens: bool, kind: str
) -> None:
    play(cluster)
    seen: set[tuple[str, str]] = set()

    def trouble(call: Call) -> Trouble | None:
        if (str(call), call.name) in seen:
            return None
        seen.add((str(call), call.name))
        return once(call.number, status, happens)(call)

    cluster.trouble = trouble
    hasty.launch(spec(kind=kind))
    assert cluster.created == names(0)
    assert printed(capsys.readouterr().out) == LINES


@pytest.mark.parametrize("status", [503, full(Reset), full(429)])
def test_an_api_that_stays_away_ends_the_step_and_a_retry_finds_the_job_again(cluster: Cluster, status: int) -> None:
    play(cluster)
    cluster.trouble = lambda call: Trouble(status) if call.number > 5 else None
    with pytest.raises(StepError) as error:
        hasty.launch(spec(), speed=1000)
    assert error.value.reason is FailureReason.RETRY
    cluster.trouble = lambda _call: None
    hasty.launch(spec())
    assert cluster.created == names(0)


@pytest.fixture
def kubeconfig(cluster: Cluster) -> tuple[Cluster, Callable[[str], None]]:
    """A cluster, and how its launcher is given another token: in a kubeconfig."""
    path = Path(os.environ["KUBECONFIG"])
    url = yaml.safe_load(path.read_text())["clusters"][0]["cluster"]["server"]
    return cluster, lambda token: write_kubeconfig(path, url, token) and None


@pytest.fixture
def service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, Callable[[str], None]]]:
    """The same as in a pod: over TLS, with the token in a file that the kubelet replaces."""
    from kubernetes.config import incluster_config

    authority, made, token = tmp_path / "ca.crt", Cluster(), tmp_path / "token"
    with serve(made, certificate(authority)) as url:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", url.rpartition(":")[2])
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
        yield made, lambda text: token.write_text(text) and None


@pytest.mark.parametrize("late", [0, 1, 5])
@pytest.mark.parametrize("place", ["kubeconfig", "service_account"])
def test_a_replaced_token_is_taken_up(request: pytest.FixtureRequest, place: str, late: int) -> None:
    cluster, give = request.getfixturevalue(place)
    give("first")
    cluster.bearer = "first"
    refused = 0

    def rotate(call: Call) -> None:
        if call.number == 6:
            cluster.bearer = "second"
            if not late:
                give("second")

    def count() -> None:
        nonlocal refused
        refused += 1
        if refused == late:  # the new one comes to the pod some calls after the old one has ended
            give("second")

    play(cluster)
    cluster.on_unauthorized = count
    cluster.trouble = lambda call: Trouble(None, True, first=lambda: rotate(call))
    hasty.launch(spec(), speed=10)
    assert cluster.created == names(0)
    assert refused >= max(late, 1)


def test_a_token_that_is_never_taken_is_a_matter_of_rights(cluster: Cluster) -> None:
    cluster.bearer = "another"
    with pytest.raises(StepError, match="Role") as error:
        hasty.launch(spec())
    assert error.value.reason is FailureReason.CONFIGURATION
    assert cluster.created == []


# --- the log ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("cuts", [[0], [1], [2], [3], [0, 0, 0], [1, 1, 1], [2, 0, 1]])
def test_a_log_stream_that_breaks_or_begins_anew_loses_and_doubles_nothing(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], cuts: list[int], repeats: bool
) -> None:
    play(cluster, master=[running, says("one"), *[running] * 5, says("two", "three"), *[running] * 5, exits()])
    cluster.log_cuts, cluster.log_repeats = list(cuts), repeats
    hasty.launch(spec())
    assert printed(capsys.readouterr().out) == LINES


def test_equal_lines_are_all_printed(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    play(cluster, master=[running, says("one", "one"), running, says("one"), exits()])
    cluster.log_repeats = True
    hasty.launch(spec())
    assert printed(capsys.readouterr().out) == ["one"] * 3


def test_a_log_that_cannot_be_had_does_not_change_the_verdict(cluster: Cluster) -> None:
    play(cluster)
    cluster.trouble = lambda call: Trouble(500) if call.resource == "pods/log" else None
    hasty.launch(spec())


# --- pods that fail -----------------------------------------------------------------------------------------------


def said(reason: str, text: str, second: int, peer: bool = False) -> str:
    """A supervisor's termination message."""
    return message(Failure(FailureReason(reason), text, rank=1, time=1_700_000_000 + second, peer=peer), ["a line"])


WAITS: list[Step] = [running, says("one"), running]
PEER = said("retry", "Connection closed by peer", 2, peer=True)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (78, "configuration"),
        *(pytest.param(*each, marks=pytest.mark.full) for each in ((65, "data"), (70, "internal"))),
    ],
)
def test_the_pod_at_fault_gives_the_verdict_whichever_ends_first(cluster: Cluster, code: int, reason: str) -> None:
    at_fault = [*WAITS, exits(code, said(reason, "the cause", 1))]
    follows = [*WAITS, exits(75, PEER)]
    early, late = [running, exits(75, PEER)], [*[running] * 4, exits(code, said(reason, "the cause", 1))]
    for number, (master, worker) in enumerate([(at_fault, follows), (follows, at_fault), (early, late), (late, early)]):
        run = f"run-{number}"
        operator = play(cluster, master=master, worker=worker)
        error = fails(operator, spec(run), speed=10)
        assert (error.reason, "the cause" in str(error)) == (FailureReason(reason), True)
        attempts = (0, 1) if reason == "internal" else (0,)  # what nobody foresaw may not come again
        assert [name for name in cluster.created if run in name] == names(*attempts, run=run)


PODS = ("master", "worker")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pod", PODS)
def test_a_pod_out_of_memory_is_named_and_not_run_again(cluster: Cluster, pod: str, kind: str) -> None:
    operator = play(cluster, **(dict.fromkeys(PODS, WAITS) | {pod: [*WAITS, exits(137, reason="OOMKilled")]}))
    error = fails(operator, spec(kind=kind))
    assert error.reason is FailureReason.OUT_OF_MEMORY
    assert (f"-{pod}-0: " if kind == "pytorchjob" else f"-node-0-{PODS.index(pod)}-") in str(error)
    assert cluster.created == names(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pod", PODS)
def test_a_job_whose_pod_is_evicted_is_run_again(cluster: Cluster, pod: str, kind: str) -> None:
    first = dict.fromkeys((f"a0_{each}" for each in PODS), WAITS)
    operator = play(cluster, **(first | {f"a0_{pod}": [*WAITS, evicted]}))
    hasty.launch(spec(kind=kind))
    assert cluster.created == names(0, 1)
    assert operator.running() == []


def test_restarts_are_bounded_whoever_launches(cluster: Cluster) -> None:
    operator = play(cluster, worker=[*WAITS, evicted], master=WAITS)
    for _ in range(2):
        assert fails(operator, spec(max_restarts=2)).reason is FailureReason.RETRY
        assert cluster.created == names(0, 1, 2)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_job_deleted_behind_our_back_is_worth_a_retry(cluster: Cluster, steps: int) -> None:
    operator = play(cluster, master=WAITS, worker=WAITS)
    tick, looks = cluster.on_call, 0

    def delete(call: Call) -> None:
        nonlocal looks
        looks += str(call) == "get pytorchjobs"
        if looks == steps:
            cluster.remove("pytorchjobs", names(0)[0])
        tick(call)

    cluster.on_call = delete
    error = fails(operator, spec())
    assert (error.reason, "behind our back" in str(error)) == (FailureReason.RETRY, True)
    assert cluster.created == names(0)


def test_pods_that_linger_of_a_job_of_the_same_name_are_not_this_jobs(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after Terminate: the job is gone, its pods have their grace, and the run is started again."""
    old = kind_named("pytorchjob").build_manifest(spec())
    old["metadata"] |= {"uid": "old", "creationTimestamp": "2026-01-01T00:00:00Z"}
    left = pods_of("pytorchjobs", old)
    for pod in left:
        running(cluster, pod)
        pod["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        cluster.put("pods", pod)
        cluster.log(pod).add("old words")

    class Lingering(Script):
        looks = 0

        def stop(self, pod: dict[str, Any]) -> bool:
            self.looks += 1
            pod["status"] = terminated(pod, 78, "error: an old failure")
            return self.looks > 40

    operator = Operator(cluster, Lingering(cluster))
    cluster.on_call = lambda call: operator.tick() if str(call) in ("get pytorchjobs", "list pods") else None
    hasty.launch(spec())
    assert "old words" not in capsys.readouterr().out
    assert cluster.created == names(0)


# --- pods that do not start ---------------------------------------------------------------------------------------


def test_a_job_whose_workers_cannot_be_made_is_deleted(cluster: Cluster) -> None:
    """As with a quota: the master runs, and so does the job by its operator's word."""
    operator = play(cluster, master=[running])
    tick = cluster.on_call

    def refuse(call: Call) -> None:
        tick(call)
        cluster.remove("pods", f"{names(0)[0]}-worker-0")
        for job in cluster.read("pytorchjobs"):
            event(cluster, job, "FailedCreatePod", "exceeded quota", "PyTorchJob")

    cluster.on_call = refuse
    error = fails(operator, spec(queue_timeout_seconds=120))
    assert (error.reason, "exceeded quota" in str(error)) == (FailureReason.RETRY, True)
    assert cluster.read("pytorchjobs") == []


@pytest.mark.parametrize(
    ("why", "reason"), [("timeout_seconds", FailureReason.CANCELLED), ("image", FailureReason.CONFIGURATION)]
)
def test_a_job_deleted_for_good_is_not_made_again_by_the_step_s_next_try(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, reason: FailureReason
) -> None:
    operator = play(cluster, master=[image_missing() if why == "image" else unschedulable()], worker=[running])
    pipeline_run(cluster, False)
    monkeypatch.setenv("KFP_POD_NAME", "us")
    job = spec(status_uri=str(tmp_path), timeout_seconds=7200 if why == "image" else 120)
    said = {str(fails(operator, job, speed=1000)) for _ in range(3)}
    assert len(said) == 2  # the first, and the first with a word on how to have another try
    assert fails(operator, job, speed=1000).reason is reason
    assert cluster.created == names(0)


@pytest.mark.parametrize("limit", ["queue_timeout_seconds", "timeout_seconds"])
def test_a_job_that_never_gets_its_nodes_is_deleted(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], limit: str
) -> None:
    operator = play(cluster, master=[running], worker=[unschedulable()])
    error = fails(operator, spec(**{limit: 120}))
    assert error.reason is (FailureReason.RETRY if limit.startswith("queue") else FailureReason.CANCELLED)
    assert limit in str(error)
    assert "Insufficient nvidia.com/gpu" in capsys.readouterr().out
    assert cluster.read("pytorchjobs") == []


@pytest.mark.parametrize(
    "reason",
    [
        "ImagePullBackOff",
        *(pytest.param(each, marks=pytest.mark.full) for each in ("ErrImagePull", "InvalidImageName")),
    ],
)
def test_an_image_that_is_not_there_is_a_matter_of_configuration(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    operator = play(cluster, master=[image_missing(reason)], worker=[image_missing(reason)])
    error = fails(operator, spec(), speed=1000)
    assert error.reason is FailureReason.CONFIGURATION
    assert reason in capsys.readouterr().out
    assert cluster.read("pytorchjobs") == []
    assert cluster.created == names(0)


def test_an_image_that_comes_late_is_waited_for(cluster: Cluster) -> None:
    play(cluster, worker=[image_missing("ErrImagePull"), image_missing(), *HAPPY])
    hasty.launch(spec())


def test_a_job_that_falls_silent_is_deleted(cluster: Cluster) -> None:
    operator = play(cluster, master=WAITS, worker=WAITS)
    error = fails(operator, spec(stall_timeout_seconds=300, max_restarts=0))
    assert (error.reason, "log" in str(error)) == (FailureReason.RETRY, True)
    assert cluster.read("pytorchjobs") == []


# --- the launcher itself goes -------------------------------------------------------------------------------------


def at_every_call(cluster: Cluster, number: signal.Signals) -> Iterator[tuple[JobSpec, ForkServerProcess]]:
    """Launcher after launcher, each with a job of its own and sent a signal at one call later than the one before:
    ahead of what it asked for, and after that. The last ones have ended before their call."""
    for at in range(200):
        sent = 0
        for when in ("first", "then"):
            job, due = spec(f"run-{at}-{when}"), len(cluster.calls) + at
            started: list[ForkServerProcess] = []

            def send(started: list[ForkServerProcess] = started) -> None:
                nonlocal sent
                while not started:
                    time.sleep(0.001)
                if started[0].is_alive():
                    os.kill(started[0].pid, number)
                    sent += 1

            def trouble(call: Call, due: int = due, when: str = when, send: Any = send) -> Trouble | None:
                return Trouble(None, True, **{when: send}) if call.number == due else None

            cluster.trouble = trouble
            started.append(hasty.start(job))
            yield job, started[0]
            cluster.trouble = lambda _call: None
        if not sent:
            return


def _created(cluster: Cluster, job: JobSpec) -> list[str]:
    return [name for name in cluster.created if f"-{job.run_id}-" in name]


@pytest.mark.full
def test_a_launcher_killed_at_any_call_is_followed_by_one_that_goes_on_with_its_job(cluster: Cluster) -> None:
    operator = play(cluster)
    tried = 0
    for job, first in at_every_call(cluster, signal.SIGKILL):
        first.join(60)
        assert first.exitcode in (-signal.SIGKILL, 0), job
        tried += first.exitcode != 0
        second = hasty.start(job)
        second.join(60)
        assert second.exitcode == 0, job
        assert _created(cluster, job) == [job.name]
        assert operator.running() == []
    print(f"killed at {tried} moments")
    assert tried > 20


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_told_to_stop_at_any_call_leaves_nothing_running(cluster: Cluster, number: signal.Signals) -> None:
    operator = play(cluster)
    tried = 0
    for job, process in at_every_call(cluster, number):
        process.join(60)
        assert process.exitcode in (FailureReason.CANCELLED.exit_code, 0), job
        if process.exitcode:
            tried += 1
            assert [each for each in cluster.read("pytorchjobs") if each["metadata"]["name"] == job.name] == []
        settle(operator)
    print(f"stopped at {tried} moments")
    assert tried > 20


@pytest.mark.parametrize("status", [Reset, 429, 503])
def test_a_stop_whose_first_delete_fails_leaves_nothing_running(cluster: Cluster, status: int) -> None:
    operator = play(cluster, master=WAITS, worker=WAITS)
    deletes = 0

    def trouble(call: Call) -> Trouble | None:
        nonlocal deletes
        if call.number == 8:
            return Trouble(None, True, first=lambda: os.kill(process.pid, signal.SIGTERM))
        deletes += call.verb == "delete"
        return Trouble(status) if call.verb == "delete" and deletes == 1 else None

    cluster.trouble = trouble
    process = hasty.start(spec())
    process.join(60)
    assert process.exitcode == FailureReason.CANCELLED.exit_code
    assert cluster.read("pytorchjobs") == []
    settle(operator)


WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "w", "uid": "w-1"}}


def pipeline_run(cluster: Cluster, evicted: bool, **workflow: Any) -> None:
    """A launcher's pod and the Workflow that it belongs to."""
    cluster.put("workflows", {**WORKFLOW, **workflow})
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "w-1"}
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    status = {"phase": "Running", "conditions": [condition] if evicted else []}
    cluster.put("pods", {"metadata": {"name": "us", "uid": "p-1", "ownerReferences": [owner]}, "status": status})


@pytest.mark.parametrize(
    ("evicted", "workflow", "on_eviction", "kept"),
    [
        (True, {}, "keep", True),
        (True, {}, "delete", False),
        (False, {}, "keep", False),
        (True, {"spec": {"activeDeadlineSeconds": 0}}, "keep", False),
        (True, {"spec": {"shutdown": "Terminate"}}, "keep", False),
        (True, {"status": {"phase": "Failed"}}, "keep", False),
    ],
)
def test_only_a_launcher_that_is_merely_evicted_keeps_its_job(
    cluster: Cluster, evicted: bool, workflow: dict[str, Any], on_eviction: str, kept: bool
) -> None:
    operator = play(cluster, master=[pending, *[running] * 20, exits()], worker=[running])
    pipeline_run(cluster, False)
    job = spec(on_eviction=on_eviction)

    def evict() -> None:
        pipeline_run(cluster, evicted, **workflow)
        os.kill(launcher.pid, signal.SIGTERM)

    cluster.trouble = lambda call: Trouble(None, True, first=evict) if call.number == 8 else None
    launcher = hasty.start(job, KFP_POD_NAME="us")
    launcher.join(60)
    assert launcher.exitcode == (FailureReason.RETRY if kept else FailureReason.CANCELLED).exit_code
    assert bool(cluster.read("pytorchjobs")) is kept
    if kept:
        again = hasty.start(job, KFP_POD_NAME="us")
        again.join(60)
        assert again.exitcode == 0
        assert cluster.created == names(0)
    settle(operator)
