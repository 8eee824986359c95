"""The real client against HTTP: what it asks, and how it takes trouble."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted import RUNNING, condition, pod, stamp

from vqa_grpo.contract.failure import FailureReason
from vqa_grpo.jobs import janitor
from vqa_grpo.jobs.kubernetes_api import ApiError, KubernetesApi
from vqa_grpo.jobs.pytorchjob import KIND


class Server(http.server.ThreadingHTTPServer):
    """An API server of a few lines: it keeps what was asked, and answers by method and the path's last part."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.answers: dict[str, tuple[int, str]] = {}
        self.headers: dict[str, str] = {}
        self.token = ""
        self.stream: list[str | None] = []  # of a log that is followed; None waits for `go_on`; the end is cut off
        self.go_on = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        path, _, query = self.path.partition("?")
        key = f"{self.command} {path.rpartition('/')[2]}"
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{key} {query}".strip())
        if key.endswith(" slow"):
            time.sleep(0.8)
        if self.server.stream and "follow" in query:
            self.write_stream()
            return
        status, body = self.server.answers.get(key, (404, '{"message": "nothing here"}'))
        if self.server.token and self.headers.get("Authorization") != self.server.token:
            status, body = 401, "{}"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def write_stream(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in self.server.stream:
            if piece is None:
                self.server.go_on.wait(30)
            else:
                self.wfile.write(f"{len(piece):x}\r\n{piece}\r\n".encode())
                self.wfile.flush()
        self.close_connection = True

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
    return KubernetesApi("team", KIND)


def test_the_real_client_asks_what_the_cluster_expects(server: Server, api: KubernetesApi) -> None:
    server.answers = {
        "POST pytorchjobs": (201, "{}"),
        "GET pytorchjobs": (200, '{"items": [{"kind": "PyTorchJob"}]}'),
        "GET x": (200, '{"metadata": {"name": "x"}}'),
        "DELETE x": (200, "{}"),
        "GET pods": (200, '{"items": [{"status": {"containerStatuses": []}}]}'),
        "GET events": (200, '{"items": [{"reason": "FailedMount"}]}'),
        "GET log": (200, '{"loss": 1}'),
    }
    api.create({"kind": "PyTorchJob"})
    assert api.get("x") == {"metadata": {"name": "x"}}
    assert api.jobs("a=b") == [{"kind": "PyTorchJob"}]
    assert api.pods("a=b") == [{"status": {"containerStatuses": []}}]
    assert api.warnings() == [{"reason": "FailedMount"}]
    assert api.workflow("x") == {"metadata": {"name": "x"}}
    since = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    assert api.log("x-master-0", since) == '{"loss": 1}'
    assert list(api.follow_log("x-master-0", tail_lines=7)) == []  # no whole line
    api.delete("x", urgent=True)
    assert server.asked == [
        "POST pytorchjobs",
        "GET x",
        "GET pytorchjobs labelSelector=a%3Db",
        "GET pods labelSelector=a%3Db",
        "GET events fieldSelector=type%3DWarning",
        "GET x",
        "GET log container=pytorch&timestamps=true&sinceTime=2026-01-02T03%3A04%3A05Z",
        "GET log container=pytorch&timestamps=true&follow=true&tailLines=7",
        "DELETE x propagationPolicy=Background",
    ]


def test_the_real_clients_errors_become_ours(server: Server, api: KubernetesApi) -> None:
    server.answers = {"GET busy": (503, "<html>"), "GET half": (200, '{"metadata": {"na')}
    with pytest.raises(ApiError, match="404 nothing here") as error:
        api.get("gone")
    assert not error.value.transient
    with pytest.raises(ApiError, match="404 nothing here"):
        api.follow_log("gone")
    for name in ("busy", "half"):
        with pytest.raises(ApiError) as error:
            api.get(name)
        assert error.value.transient
    with pytest.raises(ApiError) as error:
        api.delete("slow", urgent=True)
    assert (error.value.status, error.value.transient) == (0, True)
    server.shutdown()
    server.server_close()
    with pytest.raises(ApiError) as error:
        api.delete("x", urgent=True)
    assert error.value.status == 0


def test_a_busy_server_is_asked_once_and_its_wish_is_passed_on(server: Server, api: KubernetesApi) -> None:
    server.answers = {"GET x": (429, "{}")}
    server.headers["Retry-After"] = "3600"
    with pytest.raises(ApiError) as error:
        api.get("x")
    assert error.value.retry_after == 3600
    assert len(server.asked) == 1


def test_a_replaced_token_is_read_at_once(server: Server, kubeconfig: Path, api: KubernetesApi) -> None:
    server.token = "Bearer new"  # noqa: S105 - no secret of anybody
    server.answers = {"GET x": (200, "{}")}
    config = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
    config["users"][0]["user"]["token"] = "new"  # noqa: S105
    kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(ApiError) as error:
        api.get("x")
    assert (error.value.status, error.value.transient) == (401, True)
    assert api.get("x") == {}


def test_a_stream_gives_each_line_as_it_is_written_and_says_when_it_breaks(server: Server, api: KubernetesApi) -> None:
    server.stream = [f"{stamp(0)} one\n{stamp(1)} tw", "o\n", None, f"{stamp(2)} thr"]
    stream = api.follow_log("x-master-0")
    assert [next(stream), next(stream)] == [f"{stamp(0)} one", f"{stamp(1)} two"]
    server.go_on.set()
    with pytest.raises(ApiError) as error:
        next(stream)
    assert error.value.transient


def test_orphans_of_both_kinds_are_swept_up(server: Server, api: KubernetesApi) -> None:
    owner = {"kind": "Workflow", "name": "w", "uid": "1"}
    job = {"metadata": {"name": "x", "ownerReferences": [owner]}, "status": {"conditions": [condition(RUNNING)]}}
    server.answers = {
        "GET pytorchjobs": (200, json.dumps({"items": [job]})),  # trainjobs are not installed
        "GET w": (200, '{"metadata": {"uid": "1"}, "status": {"phase": "Failed"}}'),
        "DELETE x": (200, "{}"),
    }
    assert janitor.sweep_orphans("team") == ["x"]
    assert [asked.partition("?")[0].split(" label")[0] for asked in server.asked] == [
        "GET pytorchjobs",
        "GET w",
        "DELETE x propagationPolicy=Background",
        "GET trainjobs",
    ]


PROGRAM = """
    import sys
    from vqa_grpo.contract.failure import JobError
    from vqa_grpo.jobs import JobSpec, launch
    try:
        launch(JobSpec(name="x", run_id="r", module="m", image="i", namespace="team"), "pytorchjob")
    except JobError as error:
        sys.exit(error.reason.exit_code)
"""


@pytest.fixture
def launcher(server: Server, kubeconfig: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher that follows a job on the server; nobody reads what it prints."""
    pytest.importorskip("kubernetes")
    job = {"metadata": {"name": "x"}, "status": {"conditions": [condition(RUNNING)]}}
    server.answers = {
        "POST pytorchjobs": (201, "{}"),
        "GET x": (200, json.dumps(job)),
        "GET pods": (200, json.dumps({"items": [pod("x-master-0")]})),
        "DELETE x": (200, "{}"),
    }
    environment = {key: value for key, value in os.environ.items() if key != "KUBERNETES_SERVICE_HOST"}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env=environment | {"KUBECONFIG": str(kubeconfig)},
        stdout=subprocess.PIPE,
    )
    yield process
    process.kill()
    process.communicate()


def wait_for(server: Server, asked: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while not any(line.startswith(asked) for line in server.asked):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)


def test_a_terminated_launcher_deletes_its_job_before_it_ends(
    server: Server, launcher: subprocess.Popen[bytes]
) -> None:
    wait_for(server, "GET log", launcher)
    launcher.terminate()
    assert launcher.wait(30) == FailureReason.CANCELLED.exit_code
    assert any(asked.startswith("DELETE x") for asked in server.asked)


def test_neither_a_log_that_hangs_nor_a_stdout_that_nobody_reads_holds_up_the_delete(
    server: Server, launcher: subprocess.Popen[bytes]
) -> None:
    server.stream = [*(f"{stamp(number / 1000)} {'x' * 4000}\n" for number in range(100)), None]
    wait_for(server, "GET log", launcher)
    time.sleep(2)  # for the pipe to fill up
    launcher.terminate()
    wait_for(server, "DELETE x", launcher)
    server.go_on.set()
    launcher.communicate(timeout=30)
    assert launcher.returncode == FailureReason.CANCELLED.exit_code
