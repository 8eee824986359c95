"""The Roles grant what is asked of the API server, and no more: the calls are recorded from the real client."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from checking import named, overlay, site

from vqa_grpo.contract.failure import StepError
from vqa_grpo.jobs import cluster, janitor
from vqa_grpo.jobs.kind import kind_named
from vqa_grpo.jobs.kubernetes_api import KubernetesApi
from vqa_grpo.jobs.spec import KINDS, JobSpec, job_name

Right = tuple[str, str, str]  # API group, resource or resource/subresource, verb
RUN = "3f9c1d2a-b4e5-4c7e-9d1e-0a1b2c3d4e5f"
SPEC = JobSpec(
    name=job_name(RUN), run_id=RUN, module="m", image="i", num_nodes=2, namespace="team", timeout_seconds=600
)
VERBS = {"POST": "create", "DELETE": "delete", "PATCH": "patch", "PUT": "update"}


class ApiServer(http.server.ThreadingHTTPServer):
    """Notes the right that each request needs. Jobs are kept; everything else is answered from a script."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rights: set[Right] = set()
        self.jobs: dict[tuple[str, str], dict[str, Any]] = {}  # by resource and name
        self.conditions = ["Running"]  # of a job, look by look; the last one for ever
        self.exit_code = 0  # of every pod

    def answer(self, method: str, resource: str, name: str, part: str, body: Any) -> tuple[int, Any]:
        if resource in ("pytorchjobs", "trainjobs"):
            return self._job(method, resource, name, body)
        if resource == "pods":
            pods = [
                self._pod(name or f"{SPEC.name}-{role}-0", index) for index, role in enumerate(("master", "worker"))
            ]
            log = b"2026-01-01T00:00:00.0Z error: no such column\n"
            return 200, log if part == "log" else pods[0] if name else {"items": pods}
        if not name:
            return 200, {"items": []}
        phase = "Succeeded" if name == "over" else "Running"
        return 200, {"metadata": {"name": name, "uid": "u"}, "spec": {}, "status": {"phase": phase}}

    def _job(self, method: str, resource: str, name: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            if (resource, body["metadata"]["name"]) in self.jobs:
                return 409, {"message": "exists"}
            self.jobs[resource, body["metadata"]["name"]] = body
            return 201, body
        if not name:
            return 200, {"items": [job for (kind, _), job in self.jobs.items() if kind == resource]}
        if (resource, name) not in self.jobs:
            return 404, {"message": "not found"}
        if method == "DELETE":
            return 200, self.jobs.pop((resource, name))
        now = self.conditions.pop(0) if len(self.conditions) > 1 else self.conditions[0]
        status = {"conditions": [{"type": now, "status": "True"}], "jobsStatus": [{"name": "node", "ready": 1}]}
        return 200, {**self.jobs[resource, name], "status": status}

    def _pod(self, name: str, index: int) -> dict[str, Any]:
        """The first one runs and the other waits for its image, or both have failed."""
        state: dict[str, Any] = {"terminated": {"exitCode": self.exit_code, "finishedAt": "2026-01-01T00:00:00Z"}}
        if not self.exit_code:
            state = {"waiting": {"reason": "ImagePullBackOff"}} if index else {"running": {}}
        labels = {"batch.kubernetes.io/job-completion-index": str(index)}
        return {
            "metadata": {"name": name, "uid": "u", "labels": labels, "ownerReferences": [owner("Workflow", "w")]},
            "status": {
                "phase": "Failed" if self.exit_code else "Pending" if index else "Running",
                "containerStatuses": [{"name": container, "state": state} for container in ("pytorch", "node")],
            },
        }


def owner(kind: str, name: str) -> dict[str, str]:
    version = {"Workflow": "argoproj.io/v1alpha1", "Pod": "v1"}[kind]
    return {"apiVersion": version, "kind": kind, "name": name, "uid": "u"}


class Handler(http.server.BaseHTTPRequestHandler):
    server: ApiServer

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "null")
        # /api/v1/namespaces/NS/RESOURCE[/NAME[/PART]] or /apis/GROUP/VERSION/namespaces/…
        words = url.path.strip("/").split("/")
        group, words = ("", words[2:]) if words[0] == "api" else (words[1], words[3:])
        assert words[:2] == ["namespaces", "team"], self.path  # else a Role could not grant it
        resource, name, part = [*words[2:], "", ""][:3]
        verb = VERBS.get(self.command) or ("get" if name else "list")
        if verb == "list" and parse_qs(url.query).get("watch", ["false"])[0].lower() in ("true", "1"):
            verb = "watch"
        self.server.rights.add((group, f"{resource}/{part}" if part else resource, verb))
        status, answer = self.server.answer(self.command, resource, name, part, body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = handle_any

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server that the real client finds through a kubeconfig, as from inside a pipeline step's pod."""
    kube_config = pytest.importorskip("kubernetes.config.kube_config")
    with ApiServer() as server:
        entry = {"cluster": {"server": f"http://127.0.0.1:{server.server_port}"}, "user": {}}
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "clusters": [{"name": "c", "cluster": entry["cluster"]}],
            "users": [{"name": "c", "user": {}}],
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setenv("KFP_POD_NAME", "launcher")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of KubernetesApi's methods that were called."""
    names: set[str] = set()
    for name in public(KubernetesApi):
        monkeypatch.setattr(KubernetesApi, name, _noted(names, name, getattr(KubernetesApi, name)))
    return names


def _noted(names: set[str], name: str, method: Any) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        names.add(name)
        return method(*arguments, **options)

    return call


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def launch(server: ApiServer, kind: str, *conditions: str, exit_code: int = 0, at_sleep: Any = None) -> None:
    """Follow a job through `conditions` to its end, whatever it is."""
    server.conditions, server.exit_code = list(conditions), exit_code
    now = [time.time()]

    def sleep(seconds: float) -> None:
        now[0] += 60 + seconds
        if at_sleep:
            at_sleep()

    spec = replace(SPEC, kind=kind)
    try:
        cluster.run(spec, KubernetesApi("team", kind_named(kind)), sleep=sleep, clock=lambda: now[0])
    except StepError:
        assert exit_code or conditions == ("Running",)


def granted(role: dict[str, Any]) -> set[Right]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize(("kind", "end"), [("pytorchjob", "Succeeded"), ("trainjob", "Complete")])
def test_the_launchers_role_is_the_calls_that_launchers_make(
    server: ApiServer, used: set[str], kind: str, end: str, tmp_path: Path
) -> None:
    launch(server, kind, "Created", "Running", end)
    launch(server, kind, "Running", "Running", end)  # adopted
    server.jobs.clear()
    launch(server, kind, "Created", "Running", "Failed", exit_code=78)
    server.jobs.clear()
    launch(server, kind, "Running", at_sleep=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not server.jobs
    launch(server, kind, "Running")  # until it is late
    assert not server.jobs
    launch(server, kind, "Created", "Running", end)
    place = janitor.Place(kind_named(kind), KubernetesApi("team", kind_named(kind)))
    assert janitor.sweep(RUN, places=[place]) == [SPEC.name]
    assert used == public(KubernetesApi), "a call that no scenario here makes has no place in the Role"
    # The trainer-v2 component adds what the other kind needs, and changes nothing else.
    things = overlay("standalone") if kind == "pytorchjob" else site(tmp_path, "standalone", "trainer-v2")
    other = "trainjobs" if kind == "pytorchjob" else "pytorchjobs"
    wanted = granted(named(things, "Role", "vqa-grpo-launcher"))
    assert server.rights == {right for right in wanted if right[1] != other}
    assert kind == "trainjob" or server.rights == wanted


def test_the_janitors_role_is_the_calls_that_a_janitor_makes(server: ApiServer, tmp_path: Path) -> None:
    server.exit_code = 1  # so that pods that own a job have ended
    for kind in KINDS:
        plural = kind_named(kind).plural
        for owned_by in (owner("Workflow", "over"), owner("Workflow", "w"), owner("Pod", "launcher")):
            name = f"{plural}-of-{owned_by['name']}"
            server.jobs[plural, name] = {"metadata": {"name": name, "ownerReferences": [owned_by]}}
    janitor.sweep_orphans("team")
    assert {name.partition("-of-")[2] for _, name in server.jobs} == {"w"}
    things = site(tmp_path, "standalone", "janitor")
    assert server.rights == granted(named(things, "Role", "vqa-grpo-janitor"))
