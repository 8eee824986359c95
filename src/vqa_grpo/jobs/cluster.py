"""A job on a cluster: adopt it or create it, follow it, run it again where that may help, and fail when it fails."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError, FailureReason, JobError, StepError
from vqa_grpo.jobs import limits, outcome, record
from vqa_grpo.jobs.kind import JobKind, JobState, kind_named
from vqa_grpo.jobs.kubernetes_api import ApiError, ClusterApi, KubernetesApi, own_namespace
from vqa_grpo.jobs.launcher import Launcher
from vqa_grpo.jobs.log import Log, without_timestamp
from vqa_grpo.jobs.outcome import Ended, Waiting
from vqa_grpo.jobs.patience import Patience, missing_is_fine
from vqa_grpo.jobs.pod import inherited
from vqa_grpo.jobs.spec import HASH_ANNOTATION, RUN_LABEL, JobSpec, run_label
from vqa_grpo.jobs.stop import Stopped, stopped_by_signal

POLL_SECONDS = 5.0
RESTART_SECONDS = 10.0  # before a job is run again: time for a lost node to be known as lost
_LOOK_AROUND_SECONDS = 30.0  # between looks at what is not the job itself: events, and the run that we belong to
_SETTLE_SECONDS = 10.0  # for the pod at fault to end too, where its peers failed first
_FIRST_LINES = 1000  # of the log of a job that was running before we came
_LAST_LINES = 100  # of the log of the pod at fault
_LAST_LINES_OF_OTHERS = 20
_PODS_SHOWN = 16


def run(
    spec: JobSpec,
    api: ClusterApi | None = None,
    *,
    sleep: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Run the job on a cluster and return when it has succeeded.

    A job of this run that is the same job (run id and spec hash agree) is followed instead of made anew, so a step
    that is retried costs nothing. One that failed is run again as a whole, under its next name, when the failure is
    one that may pass, and at most `max_restarts` times whoever counts. Raises JobError when the job fails for good,
    disappears, has had its time, or when we are told to stop: then the job is deleted first, unless only this pod
    was evicted and `on_eviction` is keep.
    """
    kind = kind_named(spec.kind)
    if api is None:
        spec = replace(spec, namespace=spec.namespace or own_namespace())
        api = KubernetesApi(spec.namespace, kind)
    job = _ClusterJob(spec, kind, api, sleep, clock)
    try:
        with stopped_by_signal(job.let_go):
            job.introduce()
            job.submit()
            while failure := job.follow():
                job.next_attempt(failure)
                job.submit()
    except Stopped as stopped:
        if stopped.kept:
            text = f"job {job.spec.name} left running: this pod is evicted, and the step's next try follows the job"
            raise JobError(text, FailureReason.RETRY) from None
        # Again: a create under way when the signal came may have landed after the first delete.
        text = f"stopped by {stopped}: job {job.spec.name} {job.delete_at_once()}"
        raise JobError(text, FailureReason.CANCELLED) from None
    except StepError as failure:
        job.leave(failure)
        raise
    finally:
        job.close()


class _ClusterJob:
    def __init__(
        self,
        spec: JobSpec,
        kind: JobKind,
        api: ClusterApi,
        sleep: Callable[[float], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self.spec = spec
        self._kind = kind
        self._api = api
        self._log = Log(api, _say, clock)
        self._given_sleep = sleep
        self._sleep = sleep or time.sleep
        self._clock = clock
        self._patiently = Patience(self._sleep, clock, _say)
        self._launcher = Launcher(api, self._once, os.environ.get("KFP_POD_NAME", ""))
        self._since = limits.Since(clock())
        self._ours = False  # whether a job under this name may be deleted
        self._adopted = False
        self._gone = ("", 0.0)  # as `job` and `seconds` of the record
        self._hung = False  # the job, which is deleted
        self._final = False  # whether another try of the step would end alike
        self._held_to = False  # what the try before this one left, which is not to be written over
        self._failed_before = ""
        self._avoided: tuple[str, ...] = ()  # nodes on which it failed
        self._waits: Waiting | None = None
        self._born = self._uid = ""  # when the job was created, and which it is, as Kubernetes writes it
        self._kept_from_starting: dict[str, dict[str, float]] = {}  # how → pod → since when
        self._looked_around = clock()
        self._said: set[str] = set()

    # --- create or adopt ------------------------------------------------------------------------------------------

    def introduce(self) -> None:
        """Find out who we are, and which attempt at this job was the last; time to live may have removed the first."""
        before = self._recall()
        self._launcher.introduce(self._patiently)
        stem, _ = _attempt(self.spec.name)
        if not stem:
            return
        selector = f"{RUN_LABEL}={run_label(self.spec.run_id)}"
        try:
            found = self._patiently(lambda: self._api.jobs(selector), "list the jobs of this run")
        except ApiError as error:
            raise self._refused(error) from error
        attempts = {at: job for job in found for name, at in [_attempt(job["metadata"]["name"])] if name == stem}
        if attempts:
            last = attempts[max(attempts)]["metadata"]
            self.spec = replace(self.spec, name=last["name"])
            same = (last.get("annotations") or {}).get(HASH_ANNOTATION) == self.spec.spec_hash
            self._ours = same and not last.get("deletionTimestamp")  # a signal may come before we have adopted it
        there = {at: job for at, job in attempts.items() if not job["metadata"].get("deletionTimestamp")}
        self._take_up(before, there)

    def _recall(self) -> record.Record | None:
        """What the try before this one left word of. Until we know whether it is ours, it is not written over."""
        if not self.spec.status_uri:
            return None
        try:
            before = record.read(self.spec.status_uri)
        except StepError as error:
            self._once(f"whether this job failed before is not known: {error}")
            return None
        if before and before.workflow and before.spec_hash == self.spec.spec_hash:
            self._gone, self._held_to = (before.job, before.seconds), True
        return before if self._held_to else None

    def _take_up(self, before: record.Record | None, attempts: Mapping[int, Mapping[str, Any]]) -> None:
        """Go on from the attempts that are there, and from what the try before this one left word of. Raises the
        verdict of that one where another try would end alike; a job that is there all the same is followed."""
        self._held_to, counted = False, attempts
        if not before or before.workflow != self._launcher.workflow_uid:
            self._gone = ("", 0.0)
        else:
            if before.final and all(self._kind.state(job).finished for job in attempts.values()):
                self._held_to = True
                again = f"delete {self.spec.status_uri}/{record.FILE} for another try"
                raise JobError(f"{before.sentence}; it was so when this step was tried before: {again}", before.reason)
            if before.job:
                _, last = _attempt(before.job)
                counted = {at: job for at, job in attempts.items() if at >= last}  # the others are in its seconds
                self._since.began -= before.seconds
                if not counted:
                    self.spec = replace(self.spec, name=before.job)
        self._since.began -= sum(self._seconds(job) for job in counted.values())

    def _seconds(self, job: Mapping[str, Any]) -> float:
        """How long a job has run; what passed after its end, until somebody tried again, is not its time."""
        now, state = self._clock(), self._kind.state(job)
        ends = [_at(condition.since, now) for condition in state.conditions] if state.finished else [now]
        return max(0.0, max(ends) - _at(job["metadata"].get("creationTimestamp"), now))

    def submit(self) -> None:
        self._since = limits.Since(self._since.began, queued=self._clock())
        self._waits = None
        while not self._create():
            if self._adopt():
                return
            self._check_time()

    def _create(self) -> bool:
        """Whether the job is now there through us; False when the name was taken."""
        name = self.spec.name
        manifest = self._kind.build_manifest(self.spec, self._launcher.owner, inherited(os.environ))
        before, self._ours = self._ours, True
        try:
            self._patiently(lambda: self._api.create(manifest), f"create job {name}")
        except ApiError as error:
            self._ours = before
            if error.status == 409:
                return False
            raise self._refused(error) from error
        _say(f"job {name} created")
        return True

    def _adopt(self) -> bool:
        """Whether the job of our name is ours to follow; False when another try at creating one is due."""
        name = self.spec.name
        try:
            found = self._patiently(lambda: self._api.get(name), f"get job {name}")
        except ApiError as error:
            if error.status == 404:
                self._pause(1.0)  # it went between the two calls
                return False
            raise self._refused(error) from error
        metadata = found["metadata"]
        if metadata.get("deletionTimestamp"):
            self._once(f"job {name} of before is being deleted; waiting")
            self._pause(POLL_SECONDS)
            return False
        label = (metadata.get("labels") or {}).get(RUN_LABEL)
        digest = (metadata.get("annotations") or {}).get(HASH_ANNOTATION)
        state = self._kind.state(found)
        ours = label == run_label(self.spec.run_id)
        if ours and digest != self.spec.spec_hash and state.phase == "failed":
            self.spec = self.spec.next_attempt()  # of a run whose job was changed after a failure
            return False
        if not ours or digest != self.spec.spec_hash:
            raise ConfigurationError(
                f"job {name} exists and is not this one (run {label}, spec {digest}): delete it, or start a new run"
            )
        self._born, self._uid = metadata.get("creationTimestamp", ""), metadata.get("uid", "")
        if state.phase == "failed":
            self._next_after(self._verdict(state), name)
            return False
        self._ours = self._adopted = True
        self._since.queued = _at(metadata.get("creationTimestamp"), self._clock())
        _say(f"job {name} is there already; following it")
        return True

    def _next_after(self, failure: JobError, name: str) -> None:
        """Go on where another launcher, now gone, left a failed job."""
        try:
            self.next_attempt(failure)
        except JobError as final:
            text = f"{final}; it had failed so before this step was tried again: delete job {name} for another try"
            raise JobError(text, final.reason) from None

    def next_attempt(self, failure: JobError) -> None:
        """Turn to the next attempt where one may help and is left, else raise the failure.

        The attempt is part of the job's name, so a launcher that comes later counts on from there.
        """
        stem, attempt = _attempt(self.spec.name)
        if not stem or not outcome.restartable(failure.reason):
            raise failure
        if attempt >= self.spec.max_restarts:
            self._final = self._hung  # one that failed by itself is there to be found
            raise JobError(f"{failure} (restarted {attempt} times)", failure.reason) if attempt else failure
        why = str(failure).replace(self.spec.name, "")
        if failure.reason is FailureReason.INTERNAL and why == self._failed_before:
            raise JobError(f"{failure} (the same again after a restart)", failure.reason)
        self._failed_before = why
        _say(f"{failure}; running it again, restart {attempt + 1} of {self.spec.max_restarts}")
        next_one = replace(self.spec.next_attempt(), avoided_nodes=self._avoided)
        if self._hung:  # then nothing but this says that it was there
            self._gone = (next_one.name, self._gone[1])
            self.leave(failure)
        self._wait_for_last_checkpoints()
        self._ours = self._adopted = self._hung = False
        self.spec = next_one
        self._pause(RESTART_SECONDS)
        self._log = Log(self._api, _say, self._clock)

    def _wait_for_last_checkpoints(self) -> None:
        """Pods that were told to stop write a checkpoint first, which the next attempt is to go on from."""
        until = self._clock() + self.spec.grace_seconds
        while self._clock() < until and not all(outcome.is_over(pod) for pod in self._pods()):
            self._pause(POLL_SECONDS)

    # --- follow ---------------------------------------------------------------------------------------------------

    def follow(self) -> JobError | None:
        """Follow the job to its end; why it failed, None when it succeeded."""
        while True:
            job = self._get()
            metadata = job["metadata"]
            self._born, self._uid = metadata.get("creationTimestamp", ""), metadata.get("uid", "")
            state = self._kind.state(job)
            self._announce(state)
            pods = self._pods()
            self._follow_log(pods)
            if state.finished:
                self._log.finish(self._sleep)
                return None if state.phase == "succeeded" else self._verdict(state)
            self._watch(state, pods)
            if stalled := self._check_time():
                return stalled
            self._pause(POLL_SECONDS)

    def _get(self) -> dict[str, Any]:
        name = self.spec.name
        for _ in range(2):  # an operator that is being updated makes every job missing for a moment
            try:
                return self._patiently(lambda: self._api.get(name), f"get job {name}", had_rights=True)
            except ApiError as error:
                if error.status != 404:
                    raise self._refused(error) from error
            self._pause(1.0)
        if self._launcher.called_off():
            raise JobError(f"job {name} is deleted: its pipeline run was stopped", FailureReason.CANCELLED)
        raise JobError(f"job {name} was deleted behind our back", FailureReason.RETRY)

    def _pods(self) -> list[dict[str, Any]]:
        """The job's pods; not those of a job of this name that was deleted, which have their grace."""
        name, selector = self.spec.name, self._kind.pod_selector(self.spec.name)
        try:
            found = self._patiently(lambda: self._api.pods(selector), f"list the pods of job {name}")
        except ApiError as error:
            self._once(f"pods of job {name} cannot be listed: {error}")
            return []
        return [pod for pod in found if self._is_ours(pod)]

    def _is_ours(self, pod: Mapping[str, Any]) -> bool:
        """By its owner; a TrainJob's pods belong to a Job in between, and then only older ones are not ours."""
        metadata = pod["metadata"]
        for owner in metadata.get("ownerReferences") or ():
            if owner["kind"] == self._kind.title:
                return bool(owner["uid"] == self._uid)
        return bool(metadata.get("creationTimestamp", self._born) >= self._born)

    def _follow_log(self, pods: Sequence[Mapping[str, Any]]) -> None:
        for pod in pods:
            if self._kind.is_first(pod) and (pod.get("status") or {}).get("phase") not in (None, "Pending"):
                metadata = pod["metadata"]
                self._log.follow(metadata["name"], metadata.get("uid", ""), _FIRST_LINES if self._adopted else None)

    def _watch(self, state: JobState, pods: Sequence[Mapping[str, Any]]) -> None:
        """Keep account of what the job is waiting for, and say it."""
        now, since = self._clock(), self._since
        pending = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Pending"]
        waits = [(pod, found) for pod in pending if (found := outcome.waiting(pod, self._kind.container))]
        for pod, found in waits:
            self._complain(f"pod {pod['metadata']['name']} waits", found)
        started = state.phase == "running" and not pending
        # The training operator calls a job running once its master is, whatever keeps workers from being made. Where
        # no pod is seen at all, they cannot be listed.
        complete = started and not 0 < len(pods) < self.spec.num_nodes
        since.queued = None if complete else _first(since.queued, now)
        since.quiet = self._log.quiet_since if complete and self._log.is_followed else None
        if limits.is_stalled(self.spec, since, now):
            since.quiet = self._log.look()  # it may be the stream that stands still
        broken = [found for _, found in waits if found.broken]
        since.broken = self._longest("broken", [pod for pod, found in waits if found.broken])
        since.slow = self._longest("slow", [pod for pod in pending if outcome.has_node(pod)])
        since.refused = None if complete or len(pods) >= self.spec.num_nodes else since.refused
        self._waits = None if complete else next(iter([*broken, *(found for _, found in waits)]), self._waits)
        if now - self._looked_around >= _LOOK_AROUND_SECONDS:
            self._looked_around = now
            if not complete:
                self._say_warnings()
            if self._launcher.called_off():
                self._delete()
                text = f"job {self.spec.name} deleted: its pipeline run was stopped"
                raise JobError(text, FailureReason.CANCELLED)

    def _longest(self, how: str, pods: Sequence[Mapping[str, Any]]) -> float | None:
        """Since when the pod that has been so for longest has been so: nodes that come one by one start anew each."""
        before, now = self._kept_from_starting.get(how, {}), self._clock()
        names = [pod["metadata"]["name"] for pod in pods]
        self._kept_from_starting[how] = {name: before.get(name, now) for name in names}
        return min(self._kept_from_starting[how].values(), default=None)

    def _say_warnings(self) -> None:
        """What only events tell: a quota without room, a volume or Secret that is not there."""
        try:
            events = self._api.warnings()
        except ApiError as error:
            if not error.transient:
                self._once(f"events cannot be listed: {error}", key="events")
            return
        for event in events:
            if (event.get("lastTimestamp") or event.get("eventTime") or self._born) < self._born:
                continue  # of a job of this name before
            if found := outcome.complaint(event, self.spec.name):
                self._complain(f"{event['involvedObject']['kind']} {event['involvedObject']['name']}", found)
                self._waits = found if found.broken else self._waits or found
                if found.broken:
                    self._since.refused = _first(self._since.refused, self._clock())

    def _check_time(self) -> JobError | None:
        """Delete the job when it has had its time. The operator knows a deadline too, but counts anew after a
        suspension. Returns the failure of one that hung, for it may do better on other nodes, and raises any other."""
        now = self._clock()
        late = limits.overdue(self.spec, self._since, now, self._waits)
        if not late:
            return None
        hung = limits.is_stalled(self.spec, self._since, now)
        self._delete()
        self._gone = (self.spec.name, now - self._since.began)
        if not hung:
            self._final = not outcome.restartable(late.reason)
            raise late
        self._hung = True
        return late

    def _delete(self) -> None:
        if not self._ours:
            return
        try:
            with missing_is_fine():
                self._patiently(lambda: self._api.delete(self.spec.name), f"delete job {self.spec.name}")
        except ApiError as error:
            raise self._refused(error) from error

    # --- the verdict ----------------------------------------------------------------------------------------------

    def _verdict(self, state: JobState) -> JobError:
        ended = self._ended()
        for place, pod in enumerate(outcome.in_order(ended)[:_PODS_SHOWN]):
            if not self._log.is_of(pod.pod):  # else its log was printed already
                for line in pod.lines[-(_LAST_LINES_OF_OTHERS if place else _LAST_LINES) :]:
                    _say(f"[{pod.pod}] {line}")
            _say(f"pod {pod.pod} failed ({pod.reason}): {pod.sentence}")
        if len(ended) > _PODS_SHOWN:
            _say(f"and {len(ended) - _PODS_SHOWN} more pods failed")
        at_fault = [pod.node for pod in outcome.in_order(ended)[:1] if pod.node and not pod.peer]
        self._avoided = tuple(dict.fromkeys([*self._avoided, *at_fault]))
        return outcome.failure(self.spec.name, state.message, ended)

    def _ended(self) -> list[Ended]:
        """The pods that ended badly. Where their peers ended first, the one at fault gets a moment to end too."""
        until = self._clock() + _SETTLE_SECONDS
        while True:
            pods = self._pods()
            ended = [found for pod in pods if (found := outcome.ended_badly(pod, self._kind.container))]
            on_their_way = not all(outcome.is_over(pod) for pod in pods)
            if outcome.is_clear(ended) or not on_their_way or self._clock() >= until:
                break
            self._pause(1.0)
        failed = {pod.pod for pod in outcome.in_order(ended)[:_PODS_SHOWN]}
        return [
            found
            for pod in pods
            if (name := pod["metadata"]["name"])
            and (found := outcome.ended_badly(pod, self._kind.container, self._tail(name) if name in failed else ()))
        ]

    def _tail(self, pod: str) -> list[str]:
        try:
            text = self._api.log(pod, tail_lines=_LAST_LINES)
        except ApiError:
            return []  # then its termination message has to do
        return [without_timestamp(line) for line in text.splitlines()]

    # --- what is left in storage ----------------------------------------------------------------------------------

    def leave(self, failure: StepError) -> None:
        """Leave word of a failure for who comes later; a store that does not answer changes nothing."""
        spec = self.spec
        if not spec.status_uri or self._held_to:
            return
        job, seconds = self._gone
        left = record.Record(
            spec_hash=spec.spec_hash,
            workflow=self._launcher.workflow_uid,
            job=job,
            seconds=seconds,
            final=self._final,
            reason=failure.reason,
            sentence=str(failure),
        )
        try:
            record.leave(spec.status_uri, left)
        except StepError as error:
            _say(f"no word of this failure in {spec.status_uri}: {error}")

    # --- stop -----------------------------------------------------------------------------------------------------

    def let_go(self, number: int) -> bool:
        """Delete the job, unless only our pod is evicted and the job may wait for the next one; whether it was kept."""
        keep = number == signal.SIGTERM and self.spec.on_eviction == "keep"
        if keep and self._launcher.only_evicted():
            return True
        self.delete_at_once()
        return False

    def delete_at_once(self) -> str:
        """Delete the job if it is ours; what became of it."""
        if not self._ours:
            return "left alone"
        try:
            with missing_is_fine():
                self._api.delete(self.spec.name, urgent=True)
        except ApiError as error:
            return f"may still run, for its deletion failed ({error}); the run's end sweeps it up"
        return "deleted"

    # --- small things ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._log.close()

    def _pause(self, seconds: float) -> None:
        """Wait, printing the log meanwhile."""
        if self._given_sleep is None:
            self._log.drain(seconds)
        else:
            self._log.drain()
            self._given_sleep(seconds)

    def _refused(self, error: ApiError) -> StepError:
        """An answer that no retry will change, in words."""
        jobs, spec = f"{self._kind.title}s", self.spec
        place = f"namespace {spec.namespace}" if spec.namespace else "the namespace"
        if "admission webhook" in str(error):
            return ConfigurationError(f"job {spec.name} was refused: {error}")
        if error.status in (401, 403):
            cure = "bind the launcher's Role there, or make room in its quota"
            return ConfigurationError(f"no right to run {jobs} in {place} ({error}): {cure}")
        if error.status == 404:
            return ConfigurationError(f"no {jobs} in {place} ({error}): install {self._kind.operator}")
        if error.status in (400, 422):
            return ConfigurationError(f"job {spec.name} was refused: {error}")
        return JobError(f"job {spec.name}: {error}", FailureReason.INTERNAL)

    def _announce(self, state: JobState) -> None:
        for condition in state.conditions:
            what = "queued" if condition.type == "Suspended" else condition.type
            text = f"job {self.spec.name} {what}: {condition.message}".rstrip(": ")
            self._once(text, key=f"{self.spec.name} {condition.type} {condition.since}")

    def _complain(self, who: str, waits: Waiting) -> None:
        """Once for all pods that wait for the same."""
        self._once(f"{who}: {waits.text}", key=f"{self.spec.name} {outcome.gist(waits.text)}")

    def _once(self, text: str, key: str = "") -> None:
        if (key or text) not in self._said:
            self._said.add(key or text)
            _say(text)


def _attempt(name: str) -> tuple[str, int]:
    """A job's name without its attempt, and the attempt; no stem where the name is not one of job_name's."""
    found = re.fullmatch(r"(.+)-a(\d+)", name)
    return (found[1], int(found[2])) if found else ("", 0)


def _at(time_stamp: str | None, otherwise: float) -> float:
    try:
        return datetime.fromisoformat(time_stamp or "").timestamp()
    except ValueError:
        return otherwise


def _first(earlier: float | None, now: float) -> float:
    return now if earlier is None else earlier


def _say(text: str) -> None:
    print(text, flush=True)
