"""The cluster side against a scripted cluster, and once against HTTP with the real client."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from vqa_grpo.contract.failure import ConfigurationError, FailureReason, JobError
from vqa_grpo.contract.vitals import Failure
from vqa_grpo.jobs import cluster
from vqa_grpo.jobs.kubernetes_api import ApiError, KubernetesApi
from vqa_grpo.jobs.pytorchjob import KIND
from vqa_grpo.jobs.spec import JobSpec, job_name
from vqa_grpo.jobs.verdict import message

RUN = "3f9c1d2a-b4e5-4c7e-9d1e-0a1b2c3d4e5f"
SPEC = JobSpec(name=job_name(RUN), run_id=RUN, module="m", image="i", num_nodes=2, timeout_seconds=3600)
NAME = SPEC.name
MASTER = f"{NAME}-master-0"
RUNNING, SUCCEEDED, FAILED = "Running", "Succeeded", "Failed"


class FakeCluster:
    """A cluster that goes through a script: one status for each look at the job, the last one for ever."""

    def __init__(self, *script: str) -> None:
        self.script = list(script) or [SUCCEEDED]
        self.stored: dict[str, dict[str, Any]] = {}
        self.pod_list: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.errors: list[ApiError | None] = []  # for the next calls, whatever they are
        self.deleted: list[str] = []
        self.created: list[str] = []
        self.pauses: list[float] = []
        self.now = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        self.on_sleep()

    def run(self, spec: JobSpec = SPEC) -> None:
        cluster.run(spec, self, sleep=self.sleep, clock=lambda: self.now)

    def store(self, spec: JobSpec = SPEC, *conditions: str) -> dict[str, Any]:
        job = KIND.build_manifest(spec)
        job["status"] = {"conditions": [condition(kind) for kind in conditions]}
        self.stored[spec.name] = job
        return job

    def _answer(self) -> None:
        if self.errors and (error := self.errors.pop(0)):
            raise error

    def create(self, manifest: Mapping[str, Any]) -> None:
        self._answer()
        name = manifest["metadata"]["name"]
        if name in self.stored:
            raise ApiError(409, "exists")
        self.stored[name] = dict(manifest)
        self.created.append(name)

    def get(self, name: str) -> dict[str, Any]:
        self._answer()
        if name not in self.stored:
            raise ApiError(404, "not found")
        job = self.stored[name]
        if name in self.created or "status" not in job:
            now = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            job = {**job, "status": {"conditions": [condition("Created"), condition(now)]}}
        return job

    def delete(self, name: str, urgent: bool = False) -> None:
        if name not in self.stored:
            raise ApiError(404, "not found")
        del self.stored[name]
        self.deleted.append(f"{name} urgently" if urgent else name)

    def jobs(self, selector: str) -> list[dict[str, Any]]:
        self._answer()
        key, _, value = selector.partition("=")
        return [job for job in self.stored.values() if job["metadata"]["labels"].get(key) == value]

    def pod(self, name: str) -> dict[str, Any]:
        return next(pod for pod in self.pod_list if pod["metadata"]["name"] == name)

    def pods(self, selector: str) -> list[dict[str, Any]]:
        return self.pod_list

    def log(self, pod: str, since_seconds: int | None = None, tail_lines: int | None = None) -> str:
        if pod not in self.logs:
            raise ApiError(404, "no log")
        return self.logs[pod]


def condition(kind: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": "True", "lastTransitionTime": "t", "message": message or f"job is {kind}"}


def failed_pod(name: str, code: int, at: str = "2026-01-01T00:00:00Z", **terminated: str) -> dict[str, Any]:
    ended = {"exitCode": code, "finishedAt": at, **terminated}
    status = {"phase": "Failed", "containerStatuses": [{"name": "pytorch", "state": {"terminated": ended}}]}
    return {"metadata": {"name": name}, "status": status}


def failing(*pods: dict[str, Any]) -> FakeCluster:
    fake = FakeCluster(RUNNING, FAILED)
    fake.pod_list = list(pods)
    return fake


def verdict(fake: FakeCluster) -> JobError:
    with pytest.raises(JobError) as error:
        fake.run()
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
    del fake.store()["status"]
    fake.run()
    assert fake.created == []


def test_a_job_that_had_succeeded_is_not_run_again() -> None:
    fake = FakeCluster()
    fake.store(SPEC, SUCCEEDED)
    fake.run()
    assert (fake.created, fake.pauses) == ([], [])


def test_a_job_that_had_failed_is_followed_by_its_next_attempt() -> None:
    fake = FakeCluster()
    fake.store(SPEC, FAILED)
    fake.run()
    assert fake.created == [job_name(RUN, 1)]


@pytest.mark.parametrize("key", ["labels", "annotations"])
def test_a_job_of_somebody_else_is_refused_and_left_alone(key: str) -> None:
    fake = FakeCluster()
    fake.store()["metadata"][key] = {}
    with pytest.raises(ConfigurationError, match="is not this one"):
        fake.run()
    assert NAME in fake.stored


def test_a_job_on_its_way_out_is_waited_for() -> None:
    fake = FakeCluster()
    fake.store(SPEC, RUNNING)["metadata"]["deletionTimestamp"] = "t"
    fake.on_sleep = lambda: fake.stored.pop(NAME, None) and None
    fake.run()
    assert fake.created == [NAME]


def test_the_job_belongs_to_the_workflow_of_the_pipeline_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCluster()
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "1", "controller": True}
    fake.pod_list = [{"metadata": {"name": "launcher", "uid": "2", "ownerReferences": [workflow]}}]
    monkeypatch.setenv("KFP_POD_NAME", "launcher")
    fake.run()
    owner = workflow | {"controller": False, "blockOwnerDeletion": False}
    assert fake.stored[NAME]["metadata"]["ownerReferences"] == [owner]


@pytest.mark.parametrize(("status", "word"), [(403, "Role"), (404, "operator"), (422, "refused")])
def test_a_refused_creation_says_what_to_do(status: int, word: str) -> None:
    fake = FakeCluster()
    fake.errors = [ApiError(status, "no")]
    with pytest.raises(ConfigurationError, match=word):
        fake.run()
    assert not fake.pauses


# --- the API server's bad days --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 401, 429, 500, 503])
def test_a_passing_trouble_is_tried_again_with_growing_pauses(status: int) -> None:
    fake = FakeCluster()
    fake.errors = [ApiError(status)] * 3
    fake.run()
    assert fake.pauses == [1.0, 2.0, 4.0]


def test_an_api_server_that_stays_away_ends_the_step_and_not_the_job() -> None:
    fake = FakeCluster(RUNNING)
    fake.errors = [None, *[ApiError(503)] * 1000]
    assert verdict(fake).reason is FailureReason.RETRY
    assert NAME in fake.stored
    assert 600 <= fake.now < 700


def test_a_create_that_was_answered_by_an_error_and_still_happened_is_adopted() -> None:
    fake = FakeCluster()
    fake.store(SPEC, SUCCEEDED)
    fake.errors = [ApiError(500)]
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
    return message(Failure(FailureReason(reason), text, rank=3, time=at, peer=peer), ["a line"])


def test_the_supervisors_termination_message_is_believed_first() -> None:
    pod = failed_pod(MASTER, 137, message=said("data", "row 7 has no image", 1), reason="OOMKilled")
    error = verdict(failing(pod))
    assert (error.reason, str(error)) == (FailureReason.DATA, f"job {NAME}: {MASTER}: rank 3: row 7 has no image")


def test_a_pod_that_only_lost_its_peer_is_not_the_cause_even_when_it_ended_first() -> None:
    peer = failed_pod(MASTER, 75, "2026-01-01T00:00:02Z", message=said("retry", "Connection closed", 2, peer=True))
    other = failed_pod(f"{NAME}-worker-0", 65, "2026-01-01T00:00:09Z", message=said("data", "bad row", 1))
    assert verdict(failing(peer, other)).reason is FailureReason.DATA


def test_a_pod_out_of_memory_is_told_apart() -> None:
    error = verdict(failing(failed_pod(MASTER, 1, reason="OOMKilled")))
    assert (error.reason, "job.memory" in str(error)) == (FailureReason.OUT_OF_MEMORY, True)


def test_the_first_pod_to_fail_decides_for_its_peers_only_followed() -> None:
    late = failed_pod(MASTER, 70, "2026-01-01T00:00:09Z")
    first = failed_pod(f"{NAME}-worker-0", 65, "2026-01-01T00:00:05Z")
    assert verdict(failing(late, first)).reason is FailureReason.DATA


def test_an_evicted_pod_is_worth_a_retry() -> None:
    pod = failed_pod(MASTER, 137)
    pod["status"] |= {"reason": "Evicted", "message": "node was low on\nmemory"}
    error = verdict(failing(pod))
    assert (error.reason, "low on memory" in str(error)) == (FailureReason.RETRY, True)


def test_a_pod_that_succeeded_before_its_node_was_drained_is_not_to_blame() -> None:
    drained = {"phase": "Succeeded", "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Drain"}]}
    done = {"metadata": {"name": MASTER}, "status": drained}
    assert verdict(failing(done, failed_pod(f"{NAME}-worker-0", 65))).reason is FailureReason.DATA


def test_a_failed_workers_last_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    worker = f"{NAME}-worker-0"
    fake = failing(failed_pod(worker, 78))
    fake.logs[worker] = "t1 before\nt2 error: rank 3 has no GPU\n"
    assert "rank 3 has no GPU" in str(verdict(fake))
    assert f"[{worker}] before" in capsys.readouterr().out


def test_a_job_that_disappears_is_worth_a_retry() -> None:
    fake = FakeCluster(RUNNING)
    fake.on_sleep = fake.stored.clear
    error = verdict(fake)
    assert (error.reason, "behind our back" in str(error)) == (FailureReason.RETRY, True)


# --- following ------------------------------------------------------------------------------------------------------


def test_the_masters_log_is_printed_once_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeCluster(RUNNING, RUNNING, RUNNING, SUCCEEDED)
    pieces = iter(["t1 one\nt2 two\nt3 thr", "t2 two\nt3 three\n", "t3 three\nt4 three\nt5 five"])

    def grow() -> None:
        fake.logs[MASTER] = next(pieces)

    fake.on_sleep = grow
    fake.run()
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("job ")]
    assert lines == ["one", "two", "three", "three", "five"]


def test_a_pod_that_cannot_start_says_why_once(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeCluster("Created", "Created", SUCCEEDED)
    waiting = {"name": "pytorch", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    fake.pod_list = [{"metadata": {"name": MASTER}, "status": {"phase": "Pending", "containerStatuses": [waiting]}}]
    fake.run()
    assert capsys.readouterr().out.count("ImagePullBackOff: no such image") == 1


def test_a_job_that_takes_too_long_is_deleted() -> None:
    fake = FakeCluster(RUNNING)
    error = verdict(fake)
    assert (fake.deleted, error.reason) == ([NAME], FailureReason.CANCELLED)
    assert "timeout_seconds" in str(error)
    assert fake.now == SPEC.timeout_seconds


# --- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_deletes_the_job(number: signal.Signals) -> None:
    fake = FakeCluster(RUNNING)
    fake.on_sleep = lambda: os.kill(os.getpid(), number)
    before = signal.getsignal(number)
    assert verdict(fake).reason is FailureReason.CANCELLED
    assert fake.deleted == [f"{NAME} urgently"]
    assert signal.getsignal(number) is before


def test_the_job_is_deleted_before_anything_else_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCluster(RUNNING)
    fake.on_sleep = lambda: os.kill(os.getpid(), signal.SIGTERM)
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


def test_a_signal_before_the_job_is_known_to_be_ours_deletes_nothing() -> None:
    fake = FakeCluster()
    fake.store(SPEC, RUNNING)["metadata"]["deletionTimestamp"] = "t"
    fake.on_sleep = lambda: os.kill(os.getpid(), signal.SIGTERM)
    verdict(fake)
    assert not fake.deleted


def test_a_sweep_deletes_what_still_runs_of_one_run_only() -> None:
    fake = FakeCluster()
    other = JobSpec(name=job_name("other"), run_id="other", module="m", image="i")
    fake.store(SPEC, FAILED)
    fake.store(SPEC.next_attempt(), RUNNING)
    fake.store(other, RUNNING)
    assert cluster.sweep(RUN, fake) == [SPEC.next_attempt().name]
    assert sorted(fake.stored) == sorted([NAME, other.name])


# --- the real client ------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """An API server of a few lines: it keeps what was asked, and answers by method and the path's last part."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.answers: dict[str, tuple[int, str]] = {}


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        path, _, query = self.path.partition("?")
        key = f"{self.command} {path.rpartition('/')[2]}"
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{key} {query}".strip())
        if key.endswith(" slow"):
            time.sleep(0.8)
        status, body = self.server.answers.get(key, (404, '{"message": "nothing here"}'))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def kubeconfig(server: Server, tmp_path: Path) -> Path:
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    url = f"http://127.0.0.1:{server.server_port}"
    config = {
        "current-context": "c",
        "contexts": [context],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture
def api(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> KubernetesApi:
    pytest.importorskip("kubernetes")
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return KubernetesApi("team")


def test_the_real_client_asks_what_the_cluster_expects(server: Server, api: KubernetesApi) -> None:
    server.answers = {
        "POST pytorchjobs": (201, "{}"),
        "GET pytorchjobs": (200, '{"items": [{"kind": "PyTorchJob"}]}'),
        "GET x": (200, '{"metadata": {"name": "x"}}'),
        "DELETE x": (200, "{}"),
        "GET pods": (200, '{"items": [{"status": {"containerStatuses": []}}]}'),
        "GET log": (200, '{"loss": 1}'),
    }
    api.create({"kind": "PyTorchJob"})
    assert api.get("x") == {"metadata": {"name": "x"}}
    assert api.jobs("a=b") == [{"kind": "PyTorchJob"}]
    assert api.pods("a=b") == [{"status": {"containerStatuses": []}}]
    assert api.log("x-master-0", since_seconds=7) == '{"loss": 1}'
    api.delete("x", urgent=True)
    assert server.asked[2] == "GET pytorchjobs labelSelector=a%3Db"
    assert server.asked[4] == "GET log container=pytorch&sinceSeconds=7&timestamps=True"
    assert server.asked[5] == "DELETE x propagationPolicy=Background"


def test_the_real_clients_errors_become_ours(server: Server, api: KubernetesApi) -> None:
    server.answers = {"GET busy": (503, "<html>")}
    with pytest.raises(ApiError, match="404 nothing here") as error:
        api.get("gone")
    assert not error.value.transient
    with pytest.raises(ApiError, match="503") as error:
        api.get("busy")
    assert error.value.transient
    with pytest.raises(ApiError) as error:
        api.delete("slow", urgent=True)
    assert (error.value.status, error.value.transient) == (0, True)
    server.shutdown()
    server.server_close()
    with pytest.raises(ApiError) as error:
        api.delete("x", urgent=True)
    assert error.value.status == 0


def test_a_terminated_launcher_deletes_its_job_before_it_ends(server: Server, kubeconfig: Path) -> None:
    pytest.importorskip("kubernetes")
    job = {"metadata": {"name": "x"}, "status": {"conditions": [condition(RUNNING)]}}
    server.answers = {
        "POST pytorchjobs": (201, "{}"),
        "GET x": (200, json.dumps(job)),
        "GET pods": (200, '{"items": []}'),
        "DELETE x": (200, "{}"),
    }
    program = """
        import sys
        from vqa_grpo.contract.failure import JobError
        from vqa_grpo.jobs import JobSpec, launch
        try:
            launch(JobSpec(name="x", run_id="r", module="m", image="i", namespace="team"), "pytorchjob")
        except JobError as error:
            sys.exit(error.reason.exit_code)
    """
    environment = {key: value for key, value in os.environ.items() if key != "KUBERNETES_SERVICE_HOST"}
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment | {"KUBECONFIG": str(kubeconfig)}
    )
    until = time.monotonic() + 30
    while not any(asked.startswith("GET pods") for asked in server.asked):
        assert time.monotonic() < until
        assert launcher.poll() is None
        time.sleep(0.02)
    launcher.terminate()
    assert launcher.wait(30) == FailureReason.CANCELLED.exit_code
    assert any(asked.startswith("DELETE x") for asked in server.asked)
