"""The log of a job's first pod: streamed while the job runs, complete when it has ended, no line twice.

A thread of its own reads, for a read may block for minutes; it never prints. What it read is printed by whoever calls
`drain`, which is the thread that also gets the signals: a stdout that nobody reads can then hold up no signal handler.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vqa_grpo.jobs.kubernetes_api import ApiError, ClusterApi
from vqa_grpo.jobs.output import Allowance

_QUEUE = 10_000  # lines on their way to stdout; when it is full, the stream waits
_LINE_LIMIT = 4096
_OVERLAP = timedelta(seconds=2)  # a log can be asked for from a whole second on; and stdout and stderr may cross
_CUT_SECONDS = 5.0  # how long a flood is left out at a time, so that its rests stay readable
_KEPT = 40  # of the lines that were left out, the newest
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
_LAST_TRIES = 4


def timestamp(line: str) -> datetime | None:
    """When a line was written, from what Kubernetes puts before it."""
    try:
        at = datetime.fromisoformat(line.partition(" ")[0])
    except ValueError:
        return None
    return at if at.tzinfo else None


def without_timestamp(line: str) -> str:
    return line.partition(" ")[2]


class Seen:
    """Tells new lines from those of an earlier stream, by their timestamps (nanoseconds) and texts."""

    def __init__(self) -> None:
        self._recent: dict[str, datetime] = {}  # in the order of arrival
        self._newest: datetime | None = None

    def is_new(self, line: str) -> bool:
        at = timestamp(line)
        if at is None:
            return True  # there is nothing to know it by
        if self._newest and at < self._newest - _OVERLAP:
            return False
        if line in self._recent:
            return False
        self._recent[line] = at
        if self._newest is None or at > self._newest:
            self._newest = at
            for old in list(self._recent):
                if self._recent[old] >= at - _OVERLAP:
                    break
                del self._recent[old]
        return True


@dataclass
class _Source:
    """One pod, known by its uid: another one under the same name has another log, and maybe another clock."""

    pod: str
    uid: str
    first_lines: int | None
    seen: Seen = field(default_factory=Seen)
    last: datetime | None = None  # when the last line that was read here had been written


class Log:
    """Follows one pod at a time. `say` prints a line.

    `quiet_since` is when the last new line came, or when the log could last not be read: silence from then on is the
    job's own.
    """

    def __init__(self, api: ClusterApi, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._api, self._say, self._clock = api, say, clock
        self._queue: queue.Queue[tuple[_Source, str]] = queue.Queue(_QUEUE)
        self._source: _Source | None = None
        self._finished = threading.Event()
        self._allowance = Allowance()
        self._left_out, self._cut_until = 0, 0.0
        self._kept: deque[str] = deque(maxlen=_KEPT)
        self.quiet_since = clock()

    def follow(self, pod: str, uid: str = "", first_lines: int | None = None) -> None:
        """Read this pod's log from now on; `first_lines` bounds what is shown of its past."""
        if self._source and (self._source.pod, self._source.uid) == (pod, uid):
            return
        beginning = self._source is None
        self._source = _Source(pod, uid, first_lines)
        self.quiet_since = self._clock()
        if beginning:
            # A daemon: a stream that hangs must not keep the process.
            threading.Thread(target=self._read, name="log-reader", daemon=True).start()

    @property
    def is_followed(self) -> bool:
        return self._source is not None

    def is_of(self, pod: str) -> bool:
        return self._source is not None and self._source.pod == pod

    def drain(self, seconds: float = 0.0) -> None:
        """Print what has come, and what comes within `seconds`."""
        until = time.monotonic() + seconds
        waiting = self._queue.qsize()
        while waiting > 0 or time.monotonic() < until:
            patience = 0.0 if waiting > 0 else until - time.monotonic()
            try:
                source, line = self._queue.get(block=patience > 0, timeout=max(patience, 0.0))
            except queue.Empty:
                break
            waiting -= 1
            self._take(source, line)

    def look(self) -> float:
        """Ask for what is new without the stream, and print it; `quiet_since` as it is then."""
        if source := self._source:
            try:
                for line in self._api.log(source.pod, source.last).splitlines():
                    self._take(source, line)
            except ApiError:
                self.quiet_since = self._clock()
        return self.quiet_since

    def finish(self, sleep: Callable[[float], None]) -> None:
        """Print all that is left of the log of a pod that has ended. The stream may have been cut, so it is asked again
        for what is missing."""
        self._finished.set()
        while not self._queue.empty():
            self.drain()
        if source := self._source:
            for line in self._rest(source, sleep):
                self._take(source, line)
        self._say_left_out()

    def close(self) -> None:
        """Read no more."""
        self._finished.set()

    # --- the thread that reads ------------------------------------------------------------------------------------

    def _read(self) -> None:
        pause = _FIRST_PAUSE
        while not self._finished.is_set() and (source := self._source):
            try:
                stream = self._api.follow_log(source.pod, source.last, None if source.last else source.first_lines)
            except ApiError:
                self.quiet_since = self._clock()  # not up yet, or no more, or the API server is away
                stream = iter(())
            try:
                for line in stream:
                    source.last = timestamp(line) or source.last
                    if not self._put(source, line):
                        return
                    pause = _FIRST_PAUSE
            except ApiError:
                pass  # cut: there is another stream where this one came from
            self._finished.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _put(self, source: _Source, line: str) -> bool:
        while not self._finished.is_set():
            try:
                self._queue.put((source, line), timeout=0.5)
                return True
            except queue.Full:
                continue
        return False

    # --- the thread that prints -----------------------------------------------------------------------------------

    def _rest(self, source: _Source, sleep: Callable[[float], None]) -> list[str]:
        for attempt in range(_LAST_TRIES):
            try:
                last = source.last
                return self._api.log(source.pod, last, None if last else source.first_lines).splitlines()
            except ApiError as error:
                if not error.transient:
                    break
                if attempt + 1 < _LAST_TRIES:
                    sleep(2.0**attempt)
        return []  # the pod is gone; its termination message has to do

    def _take(self, source: _Source, line: str) -> None:
        if not line or not source.seen.is_new(line):
            return
        self.quiet_since = self._clock()
        text = without_timestamp(line)[:_LINE_LIMIT] if timestamp(line) else line[:_LINE_LIMIT]
        now = time.monotonic()
        if now >= self._cut_until and self._allowance.take():
            self._say_left_out()
            self._say(text)
            return
        if not self._left_out:
            self._cut_until = now + _CUT_SECONDS
        self._left_out += 1
        self._kept.append(text)

    def _say_left_out(self) -> None:
        """What a flood left out of the step's log: how much, and its newest lines."""
        if not self._left_out or self._source is None:
            return
        if missing := self._left_out - len(self._kept):
            self._say(f"… {missing} lines left out here; `kubectl logs {self._source.pod}` has them")
        for text in self._kept:
            self._say(text)
        self._left_out = 0
        self._kept.clear()
