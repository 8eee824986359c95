"""Progress of long work, one way for all: a bar for people, lines for the program that runs the pipeline.

`emit` is for code that knows its own counts; `track` wraps a loop. Where VQA_GRPO_PROGRESS=lines is set (by
`vqa-grpo run`), each report is one line `@progress {…}` that the runner turns into a bar; otherwise a terminal
gets a rich bar, and a log file gets a plain line with rate and time left every half a minute.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

PREFIX = "@progress "
_PLAIN_SECONDS = 30.0
_LINE_SECONDS = 0.5
_LONG_BYTES = 100_000_000
T = TypeVar("T")


def emit(task: str, done: int, total: int, note: str = "") -> None:
    """Report once; silent unless a runner listens."""
    if os.environ.get("VQA_GRPO_PROGRESS") == "lines":
        line = json.dumps({"task": task, "done": done, "total": total, "note": note})
        print(f"{PREFIX}{line}", flush=True)


def read(line: str) -> dict[str, Any] | None:
    """The report in a line of output, or None for any other line."""
    if not line.lstrip().startswith(PREFIX):
        return None
    try:
        report = json.loads(line.lstrip()[len(PREFIX) :])
    except (ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) and {"task", "done", "total"} <= set(report) else None


def track(items: Iterable[T], task: str, total: int) -> Iterator[T]:
    """Yield the items while showing how far the loop is, how fast, and how long it will still take."""
    meter = Meter(task, total)
    with meter:
        for item in items:
            yield item
            meter.advance()


class Meter:
    """Progress that is advanced by hand. A context manager; `total` 0 means unknown."""

    def __init__(self, task: str, total: int) -> None:
        self.task, self.total, self.done = task, total, 0
        self._start = self._last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Meter:
        if sys.stderr.isatty() and os.environ.get("VQA_GRPO_PROGRESS") != "lines":
            self._bar = _rich_bar()
            self._bar.start()
            self._id = self._bar.add_task(self.task, total=self.total or None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._report()

    def advance(self, by: int = 1, note: str = "") -> None:
        self.done += by
        if self._bar is not None:
            self._bar.update(self._id, completed=self.done)
            return
        now = time.monotonic()
        pause = _LINE_SECONDS if os.environ.get("VQA_GRPO_PROGRESS") == "lines" else _PLAIN_SECONDS
        if now - self._last >= pause:
            self._last = now
            self._report(note)

    def _report(self, note: str = "") -> None:
        if os.environ.get("VQA_GRPO_PROGRESS") == "lines":
            emit(self.task, self.done, self.total, note)
        else:
            print(describe(self.task, self.done, self.total, time.monotonic() - self._start, note), file=sys.stderr)


@contextmanager
def counting(task: str) -> Iterator[Callable[..., None]]:
    """A callback for the number that is done, the number in all and a note; its first call starts the clock."""
    with ExitStack() as shown:
        meters: list[Meter] = []

        def show(done: int, total: int, note: str = "") -> None:
            if not meters:
                meters.append(shown.enter_context(Meter(task, total)))
            meters[0].advance(done - meters[0].done, note)

        yield show


@contextmanager
def transferring(task: str) -> Iterator[Callable[[int, int], None]]:
    """A callback for the bytes that are done and those in all, shown in megabytes; short transfers are not shown."""
    with counting(task) as show:

        def show_bytes(done: int, total: int) -> None:
            if total >= _LONG_BYTES:
                show(done // 1_000_000, total // 1_000_000, "MB")

        yield show_bytes


def describe(task: str, done: int, total: int, seconds: float, note: str = "") -> str:
    """One line in words, with rate and time left.

    >>> describe("convert", 50, 200, 5.0)
    'convert 50/200, 10.0/s, 15 s left'
    """
    parts = [f"{task} {done}/{total}" if total else f"{task} {done}"]
    rate = done / seconds if seconds > 0 else 0.0
    if rate:
        parts.append(f"{rate:.1f}/s")
        if total > done:
            parts.append(f"{(total - done) / rate:.0f} s left")
    return ", ".join(parts + ([note] if note else []))


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


STEP_PREFIX = "@step "


def announce(step: str, event: str, **facts: Any) -> None:
    """Tell a listening runner that a step begins, ends, is reused or failed; a plain line elsewhere."""
    if os.environ.get("VQA_GRPO_PROGRESS") == "lines":
        print(f"{STEP_PREFIX}{json.dumps({'step': step, 'event': event, **facts})}", flush=True)
    else:
        details = ", ".join(f"{key} {value}" for key, value in facts.items())
        print(f"{step}: {event}" + (f" ({details})" if details else ""), file=sys.stderr, flush=True)


def read_step(line: str) -> dict[str, Any] | None:
    """The announcement in a line of output, or None for any other line."""
    if not line.lstrip().startswith(STEP_PREFIX):
        return None
    try:
        event = json.loads(line.lstrip()[len(STEP_PREFIX) :])
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and {"step", "event"} <= set(event) else None
