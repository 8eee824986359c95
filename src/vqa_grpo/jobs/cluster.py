"""A job on a cluster: adopt it or create it, follow it, and fail when it fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from vqa_grpo.contract.failure import ConfigurationError, FailureReason, JobError, StepError
from vqa_grpo.jobs import outcome
from vqa_grpo.jobs.kubernetes_api import ApiError, ClusterApi, KubernetesApi, own_namespace
from vqa_grpo.jobs.pod import inherited
from vqa_grpo.jobs.pytorchjob import KIND
from vqa_grpo.jobs.spec import HASH_ANNOTATION, RUN_LABEL, JobSpec, run_label

POLL_SECONDS = 5.0
_PATIENCE_SECONDS = 600.0  # how long the API server may be away; the job does not need it to go on
_LONGEST_PAUSE = 30.0
_FIRST_LINES = 1000  # of the log of a job that was running before we came
_LAST_LINES = 40  # of the log of every failed pod but the master, whose log was printed already
T = TypeVar("T")


def run(
    spec: JobSpec,
    api: ClusterApi | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run the job as a PyTorchJob and return when it has succeeded.

    A job of this name that is the same job (run id and spec hash agree) is followed instead of made anew, so a step
    that is retried costs nothing; one that failed before is followed by its next attempt. Raises JobError when the job
    fails, disappears, takes longer than `timeout_seconds`, or when we are told to stop: then the job is deleted first.
    """
    if api is None:
        spec = replace(spec, namespace=spec.namespace or own_namespace())
        api = KubernetesApi(spec.namespace)
    job = _ClusterJob(spec, api, sleep, clock)
    try:
        with job.deleted_on_signal():
            job.submit()
            job.follow()
    except _Stopped as stopped:
        job.delete_at_once()  # again: a create under way when the signal came may have landed after the first delete
        raise JobError(f"job {job.spec.name} deleted: stopped by {stopped}", FailureReason.CANCELLED) from None


def sweep(run_id: str, api: ClusterApi | None = None, namespace: str = "") -> list[str]:
    """Delete what still runs of a pipeline run, whoever left it; the names of the jobs that were deleted.

    Finished jobs hold nothing but their logs, which somebody may want to read; their time to live removes them.
    """
    api = api or KubernetesApi(namespace or own_namespace())
    deleted = []
    try:
        for job in api.jobs(f"{RUN_LABEL}={run_label(run_id)}"):
            if _finished(job):
                continue
            with _missing_is_fine():
                api.delete(job["metadata"]["name"])
                deleted.append(job["metadata"]["name"])
    except ApiError as error:
        raise JobError(f"jobs of run {run_id} could not be swept up: {error}", FailureReason.RETRY) from error
    return deleted


class _Stopped(BaseException):
    """We were told to stop. No Exception, so that nothing between here and `run` mistakes it for one of its own."""


class _ClusterJob:
    def __init__(
        self, spec: JobSpec, api: ClusterApi, sleep: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        self.spec = spec
        self._api = api
        self._sleep = sleep
        self._clock = clock
        self._deadline = clock() + spec.timeout_seconds
        self._ours = False  # whether a job under this name may be deleted
        self._said: set[str] = set()
        self._log = _Log(api, clock)

    # --- create or adopt ------------------------------------------------------------------------------------------

    def submit(self) -> None:
        owner = _owner(self._api, os.environ)
        while not self._create(owner):
            self._ours = False
            if self._adopt():
                return
            self._check_time()

    def _create(self, owner: Mapping[str, Any] | None) -> bool:
        """Whether the job is now there through us; False when the name was taken."""
        manifest = KIND.build_manifest(self.spec, owner, inherited(os.environ))
        self._ours = True
        try:
            self._patiently(lambda: self._api.create(manifest), "create")
        except ApiError as error:
            if error.status == 409:
                return False
            self._ours = False
            raise _refused(error, self.spec) from error
        _say(f"job {self.spec.name} created")
        return True

    def _adopt(self) -> bool:
        """Whether the job of our name is ours to follow; False when another try at creating one is due."""
        name = self.spec.name
        try:
            found = self._patiently(lambda: self._api.get(name), "get")
        except ApiError as error:
            if error.status == 404:
                return False  # it went between the two calls
            raise _refused(error, self.spec) from error
        metadata = found["metadata"]
        if metadata.get("deletionTimestamp"):
            self._once(f"job {name} of before is being deleted; waiting")
            self._sleep(POLL_SECONDS)
            return False
        label = (metadata.get("labels") or {}).get(RUN_LABEL)
        digest = (metadata.get("annotations") or {}).get(HASH_ANNOTATION)
        if label != run_label(self.spec.run_id) or digest != self.spec.spec_hash:
            raise ConfigurationError(
                f"job {name} exists and is not this one (run {label}, spec {digest}): delete it, or start a new run"
            )
        if _condition(found, "Failed"):
            self.spec = self.spec.next_attempt()
            _say(f"job {name} failed before; next is {self.spec.name}")
            return False
        self._ours = True
        self._log.first_lines = _FIRST_LINES
        _say(f"job {name} is there already; following it")
        return True

    # --- follow ---------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        while True:
            job = self._get()
            for condition in job.get("status", {}).get("conditions") or ():
                self._say_condition(condition)
            succeeded, failed = _condition(job, "Succeeded"), _condition(job, "Failed")
            self._log.poll(self._master, last=bool(succeeded or failed))
            if succeeded:
                return
            pods = self._pods()
            if failed:
                raise self._verdict(failed, pods)
            for pod in pods:
                if why := outcome.waiting(pod):
                    self._once(f"pod {pod['metadata']['name']} waits: {' '.join(why.split())}")
            self._check_time()
            self._sleep(POLL_SECONDS)

    @property
    def _master(self) -> str:
        return f"{self.spec.name}-master-0"

    def _get(self) -> dict[str, Any]:
        try:
            return self._patiently(lambda: self._api.get(self.spec.name), "get")
        except ApiError as error:
            if error.status == 404:
                text = f"job {self.spec.name} was deleted behind our back"
                raise JobError(text, FailureReason.RETRY) from None
            raise _refused(error, self.spec) from error

    def _pods(self) -> list[dict[str, Any]]:
        try:
            return self._api.pods(KIND.pod_selector(self.spec.name))
        except ApiError as error:
            self._once(f"pods of job {self.spec.name} cannot be listed: {error}")
            return []

    def _verdict(self, condition: Mapping[str, Any], pods: list[dict[str, Any]]) -> JobError:
        ended = []
        for pod in pods:
            if outcome.ended_badly(pod):
                lines = self._last_lines(pod["metadata"]["name"])
                ended.append(outcome.ended_badly(pod, lines))
        return outcome.failure(self.spec.name, dict(condition), [pod for pod in ended if pod])

    def _last_lines(self, pod: str) -> list[str]:
        try:
            text = self._api.log(pod, tail_lines=_LAST_LINES)
        except ApiError:
            return []  # then its termination message has to do
        lines = [_without_timestamp(line) for line in text.splitlines()]
        if pod != self._master:
            for line in lines:
                _say(f"[{pod}] {line}")
        return lines

    def _check_time(self) -> None:
        """Delete the job when it is late. The operator has the same deadline, but counts anew after a suspension."""
        if self._clock() < self._deadline:
            return
        if self._ours:
            try:
                with _missing_is_fine():
                    self._patiently(lambda: self._api.delete(self.spec.name), "delete")
            except ApiError as error:
                raise _refused(error, self.spec) from error
        text = (
            f"job {self.spec.name} deleted after {self.spec.timeout_seconds} s: raise job.timeout_seconds if it was at "
            "work, or free the nodes that it waited for"
        )
        raise JobError(text, FailureReason.CANCELLED)

    # --- stop -----------------------------------------------------------------------------------------------------

    @contextmanager
    def deleted_on_signal(self) -> Iterator[None]:
        """On SIGTERM or SIGINT: delete, then unwind. In this order, for a terminated step has about one second."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGTERM, signal.SIGINT)

        def stop(number: int, _frame: object) -> NoReturn:
            for each in wanted:
                signal.signal(each, signal.SIG_IGN)
            self.delete_at_once()
            raise _Stopped(signal.Signals(number).name)

        before = {number: signal.signal(number, stop) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def delete_at_once(self) -> None:
        if self._ours:
            with suppress(ApiError):
                self._api.delete(self.spec.name, urgent=True)

    # --- small things ---------------------------------------------------------------------------------------------

    def _patiently(self, call: Callable[[], T], verb: str) -> T:
        """The call's answer; what may pass (a busy or restarting API server) is tried again with growing pauses."""
        pause, give_up = 1.0, self._clock() + _PATIENCE_SECONDS
        while True:
            try:
                return call()
            except ApiError as error:
                if not error.transient:
                    raise
                if self._clock() >= give_up:
                    text = (
                        f"job {self.spec.name}: the API server does not answer ({verb}: {error}); the job may still run"
                    )
                    raise JobError(text, FailureReason.RETRY) from error
                _say(f"{verb} job {self.spec.name}: {error}; trying again")
            self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _say_condition(self, condition: Mapping[str, Any]) -> None:
        if condition.get("status") == "True":
            text = f"job {self.spec.name} {condition['type']}: {condition.get('message', '')}".rstrip(": ")
            self._once(text, key=f"{condition['type']} {condition.get('lastTransitionTime', '')}")

    def _once(self, text: str, key: str = "") -> None:
        if (key or text) not in self._said:
            self._said.add(key or text)
            _say(text)


class _Log:
    """The master's log, read piece by piece.

    A log can be asked for by age only, so pieces overlap; a line is known again by its timestamp and text.
    """

    _OVERLAP_SECONDS = 10

    def __init__(self, api: ClusterApi, clock: Callable[[], float]) -> None:
        self._api = api
        self._clock = clock
        self._read_at: float | None = None
        self._last_line = ""
        self.first_lines: int | None = None

    def poll(self, pod: str, last: bool = False) -> None:
        """Print what is new. An unfinished line waits for the next poll, unless this is the `last`."""
        now = self._clock()
        try:
            if self._read_at is None:
                text = self._api.log(pod, tail_lines=self.first_lines)
            else:
                text = self._api.log(pod, since_seconds=int(now - self._read_at) + self._OVERLAP_SECONDS)
        except ApiError:
            return  # the pod is not up yet, or no more; what counts is the job's status
        self._read_at = now
        complete = text if last else text[: text.rfind("\n") + 1]
        lines = [line for line in complete.splitlines() if line]
        seen = max((index for index, line in enumerate(lines) if line == self._last_line), default=-1)
        for line in lines[seen + 1 :]:
            _say(_without_timestamp(line))
            self._last_line = line


def _owner(api: ClusterApi, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Who the job belongs to and is collected with: the pipeline run's Workflow, else the pod that we are.

    KFP tells a step its pod; the pod's own owner is the Workflow. Outside of KFP there is no owner.
    """
    name = environ.get("KFP_POD_NAME")
    if not name:
        return None
    try:
        metadata = api.pod(name)["metadata"]
    except ApiError as error:
        _say(f"pod {name} cannot be read ({error}): the job has no owner, only its deadline and time to live")
        return None
    owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": metadata["uid"]}
    for reference in metadata.get("ownerReferences") or ():
        if reference["kind"] == "Workflow":
            owner = {key: reference[key] for key in ("apiVersion", "kind", "name", "uid")}
    # Not the controller: Kueue would take the job for a part of it. Not blocking: OpenShift asks for more rights then.
    return {**owner, "controller": False, "blockOwnerDeletion": False}


def _refused(error: ApiError, spec: JobSpec) -> StepError:
    """An answer that no retry will change, in words."""
    place = f"namespace {spec.namespace}" if spec.namespace else "the namespace"
    if error.status in (401, 403):
        return ConfigurationError(f"no right to run PyTorchJobs in {place} ({error}): bind the launcher's Role there")
    if error.status == 404:
        return ConfigurationError(f"no PyTorchJobs in {place} ({error}): install the training operator (v1.9)")
    if error.status in (400, 422):
        return ConfigurationError(f"job {spec.name} was refused: {' '.join(str(error).split())}")
    return JobError(f"job {spec.name}: {error}", FailureReason.INTERNAL)


@contextmanager
def _missing_is_fine() -> Iterator[None]:
    """Deleting what is gone is no error."""
    try:
        yield
    except ApiError as error:
        if error.status != 404:
            raise


def _condition(job: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["type"] == kind and condition["status"] == "True":
            return dict(condition)
    return None


def _finished(job: Mapping[str, Any]) -> bool:
    return bool(_condition(job, "Succeeded") or _condition(job, "Failed"))


def _without_timestamp(line: str) -> str:
    return line.partition(" ")[2]


def _say(text: str) -> None:
    print(text, flush=True)
