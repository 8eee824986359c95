"""A cluster that goes through a script, for what happens at the API; nothing runs in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from vqa_grpo.jobs import cluster
from vqa_grpo.jobs.kubernetes_api import ApiError
from vqa_grpo.jobs.pytorchjob import KIND
from vqa_grpo.jobs.spec import JobSpec, job_name

RUN = "3f9c1d2a-b4e5-4c7e-9d1e-0a1b2c3d4e5f"
SPEC = JobSpec(
    name=job_name(RUN), run_id=RUN, module="m", image="i", num_nodes=2, timeout_seconds=3600, queue_timeout_seconds=0
)
PATIENT = replace(SPEC, max_restarts=2)
NAME = SPEC.name
MASTER = f"{NAME}-master-0"
WORKER = f"{NAME}-worker-0"
CREATED, RUNNING, SUCCEEDED, FAILED, SUSPENDED = "Created", "Running", "Succeeded", "Failed", "Suspended"


class FakeCluster:
    """One status for each look at a job that was created here, the last one for ever; a next job, the next script."""

    def __init__(self, *script: str, then: tuple[str, ...] = ()) -> None:
        self.scripts = [list(script) or [SUCCEEDED], *([list(then)] if then else [])]
        self.stored: dict[str, dict[str, Any]] = {}
        self.pod_list: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.workflows: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.errors: list[ApiError | None] = []  # for the next calls about jobs, whatever they are
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

    def store(
        self, spec: JobSpec = SPEC, *conditions: str, created: float | None = None, ended: float | None = None
    ) -> dict[str, Any]:
        """A job that was there before; without conditions it goes through the script."""
        job = KIND.build_manifest(spec)
        if conditions:
            job["status"] = {"conditions": [condition(kind) for kind in conditions]}
        if created is not None:
            job["metadata"]["creationTimestamp"] = datetime.fromtimestamp(created, UTC).isoformat()
        if ended is not None:
            job["status"]["conditions"][-1]["lastTransitionTime"] = datetime.fromtimestamp(ended, UTC).isoformat()
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
        if self.created and len(self.scripts) > 1:
            self.scripts.pop(0)
        self.created.append(name)

    def get(self, name: str) -> dict[str, Any]:
        self._answer()
        if name not in self.stored:
            raise ApiError(404, "not found")
        job = self.stored[name]
        if "status" in job:
            return job
        script = self.scripts[0]
        now = script.pop(0) if len(script) > 1 else script[0]
        return {**job, "status": {"conditions": [condition("Created"), condition(now)]}}

    def delete(self, name: str, urgent: bool = False) -> None:
        if name not in self.stored:
            raise ApiError(404, "not found")
        del self.stored[name]
        self.deleted.append(f"{name} urgently" if urgent else name)

    def jobs(self, selector: str) -> list[dict[str, Any]]:
        self._answer()
        key, _, value = selector.partition("=")
        return [job for job in self.stored.values() if job["metadata"]["labels"].get(key) == value]

    def pod(self, name: str, urgent: bool = False) -> dict[str, Any]:
        for pod in self.pod_list:
            if pod["metadata"]["name"] == name:
                return pod
        raise ApiError(404, "no such pod")

    def pods(self, selector: str) -> list[dict[str, Any]]:
        job = selector.partition("=")[2]
        return [pod for pod in self.pod_list if pod["metadata"]["name"].startswith(f"{job}-")]

    def warnings(self) -> list[dict[str, Any]]:
        return self.events

    def workflow(self, name: str, urgent: bool = False) -> dict[str, Any]:
        if name not in self.workflows:
            raise ApiError(404, "no such workflow")
        return self.workflows[name]

    def log(self, pod: str, since: datetime | None = None, tail_lines: int | None = None) -> str:
        if pod not in self.logs:
            raise ApiError(404, "no log")
        return self.logs[pod]

    def follow_log(self, pod: str, since: datetime | None = None, tail_lines: int | None = None) -> Iterator[str]:
        return iter(self.log(pod).split("\n")[:-1])


def condition(kind: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": "True", "lastTransitionTime": "t", "message": message or f"job is {kind}"}


def pod(name: str, phase: str = "Running", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"phase": phase, **status}}


def waiting_pod(name: str, reason: str, message: str = "") -> dict[str, Any]:
    waiting = {"name": "pytorch", "state": {"waiting": {"reason": reason, "message": message}}}
    return pod(name, "Pending", containerStatuses=[waiting])


def failed_pod(name: str, code: int, at: str = "2026-01-01T00:00:00Z", **terminated: str) -> dict[str, Any]:
    ended = {"exitCode": code, "finishedAt": at, **terminated}
    return pod(name, "Failed", containerStatuses=[{"name": "pytorch", "state": {"terminated": ended}}])


def failing(*pods: dict[str, Any]) -> FakeCluster:
    fake = FakeCluster(RUNNING, FAILED)
    fake.pod_list = list(pods)
    return fake


def stamp(second: float) -> str:
    return datetime.fromtimestamp(1_800_000_000 + second, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def lines(*texts: str, at: float = 0.0) -> str:
    """A log: a line each second."""
    return "".join(f"{stamp(at + number)} {text}\n" for number, text in enumerate(texts))
