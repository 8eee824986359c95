"""A pod's log: every line once, whatever happens to the streams that bring it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import MASTER, lines, stamp

from vqa_grpo.jobs import log as log_module
from vqa_grpo.jobs.kubernetes_api import ApiError
from vqa_grpo.jobs.log import Log, Seen, timestamp, without_timestamp

TEXTS = [f"step {number}" for number in range(20)]
WHOLE = lines(*TEXTS).splitlines()


def test_a_timestamp_may_have_nanoseconds_and_any_zone() -> None:
    assert timestamp("2026-01-01T01:00:00.123456789+01:00 x") == timestamp("2026-01-01T00:00:00.123456Z x")
    assert timestamp("Traceback (most recent call last):") is None
    assert timestamp("2026-01-01T01:00:00 no zone") is None


@given(cuts=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=8))
def test_streams_that_were_cut_and_overlap_give_every_line_once(cuts: list[tuple[int, int]]) -> None:
    """Each stream begins some lines before the place where the last one was cut, as `sinceTime` has it."""
    seen, got, reached = Seen(), [], 0
    for length, overlap in [*cuts, (20, 2)]:
        begin = max(0, reached - overlap)
        for line in WHOLE[begin : begin + length]:
            if seen.is_new(line):
                got.append(without_timestamp(line))
        reached = max(reached, min(begin + length, len(WHOLE)))
    assert got == TEXTS


def test_a_stream_that_begins_anew_gives_nothing_twice() -> None:
    seen = Seen()
    assert [seen.is_new(line) for line in [*WHOLE, *WHOLE]] == [True] * 20 + [False] * 20


def test_lines_that_crossed_are_both_kept() -> None:
    seen = Seen()
    crossed = [f"{stamp(1.5)} stderr", f"{stamp(1.4)} stdout", f"{stamp(1.5)} stdout"]
    assert all(seen.is_new(line) for line in crossed)


class Streams:
    """A pod whose log is served in streams, one after the other; the last one goes on until the log is closed."""

    def __init__(self, *streams: list[str | Exception]) -> None:
        self.streams = list(streams)
        self.asked: list[datetime | None] = []
        self.whole = "\n".join(WHOLE)
        self.hung = threading.Event()

    def follow_log(self, pod: str, since: datetime | None = None, tail_lines: int | None = None) -> Iterator[str]:
        self.asked.append(since)
        if not self.streams:
            self.hung.set()
            return self._hang()
        stream = self.streams.pop(0)
        if stream and isinstance(stream[0], Exception):
            raise stream[0]
        return self._play(stream)

    def log(self, pod: str, since: datetime | None = None, tail_lines: int | None = None) -> str:
        return self.whole

    def _play(self, stream: list[str | Exception]) -> Iterator[str]:
        for line in stream:
            if isinstance(line, Exception):
                raise line
            yield line

    def _hang(self) -> Iterator[str]:
        threading.Event().wait()
        yield ""


@pytest.fixture
def printed() -> list[str]:
    return []


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch, printed: list[str]) -> Iterator[Callable[[Streams], Log]]:
    monkeypatch.setattr(log_module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(log_module, "_LONGEST_PAUSE", 0.01)
    logs: list[Log] = []

    def begin(streams: Streams) -> Log:
        logs.append(Log(streams, printed.append, time.time))  # type: ignore[arg-type]
        logs[0].follow(MASTER, "uid")
        return logs[0]

    yield begin
    for log in logs:
        log.close()


def test_a_log_goes_on_after_every_cut_from_where_it_was(follow: Callable[[Streams], Log], printed: list[str]) -> None:
    broken = ApiError(0, "connection reset")
    streams = Streams(
        [ApiError(400, "ContainerCreating")], [*WHOLE[:7], broken], [], [*WHOLE[5:12], broken], WHOLE[11:]
    )
    log = follow(streams)
    assert streams.hung.wait(30)
    log.drain(0.05)
    assert printed == TEXTS
    assert streams.asked[:3] == [None, None, timestamp(WHOLE[6])]


def test_a_stream_that_hangs_holds_nothing_up(follow: Callable[[Streams], Log], printed: list[str]) -> None:
    streams = Streams(WHOLE[:3])
    log = follow(streams)
    assert streams.hung.wait(30)
    log.finish(time.sleep)
    assert printed == TEXTS


def test_a_log_is_complete_though_its_pod_ended_before_it_was_asked(
    follow: Callable[[Streams], Log], printed: list[str]
) -> None:
    log = follow(Streams())
    log.finish(time.sleep)
    assert printed == TEXTS


def test_a_last_line_without_an_end_is_printed(follow: Callable[[Streams], Log], printed: list[str]) -> None:
    streams = Streams()
    streams.whole = f"{stamp(0)} killed in the mid"
    follow(streams).finish(time.sleep)
    assert printed == ["killed in the mid"]


def test_a_new_pod_under_the_same_name_begins_a_new_log(follow: Callable[[Streams], Log], printed: list[str]) -> None:
    earlier = lines("other clock", at=-9999)
    streams = Streams(WHOLE)
    log = follow(streams)
    assert streams.hung.wait(30)
    log.drain()
    log.follow(MASTER, "another uid")
    streams.whole = earlier
    log.finish(time.sleep)
    assert printed == [*TEXTS, "other clock"]


def test_a_flood_is_cut_counted_and_ends_with_its_newest_lines(
    follow: Callable[[Streams], Log], printed: list[str]
) -> None:
    streams = Streams()
    streams.whole = "\n".join(f"{stamp(number / 1e4)} line {number}" for number in range(10_000))
    follow(streams).finish(time.sleep)
    assert len(printed) < 4000
    assert printed[0] == "line 0"
    assert printed[-1] == "line 9999"
    assert any("lines left out here; `kubectl logs" in line for line in printed)


def test_a_log_thread_does_not_keep_the_process() -> None:
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "log-reader")
