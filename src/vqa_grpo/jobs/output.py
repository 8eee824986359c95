"""The output of several processes: kept apart in files, merged readably on our stdout, and never in their way.

Each source is read as fast as it writes. Files are bounded (the newest is kept), and so is what reaches stdout: a
flood there is cut and counted, and a stdout that nobody reads loses lines instead of blocking a worker.
"""

from __future__ import annotations

import json
import queue
import re
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

OTHERS = ("problems", "all", "none")  # what is shown of every rank but the first
FILE_BYTES = 32 << 20  # for the newest part; the part before it is kept beside it
_LINES_PER_SECOND, _BURST = 200.0, 2000.0
_LINE_LIMIT = 4096  # characters of a line on stdout
_UNBROKEN = 1 << 16  # bytes without a line's end before they count as a line
_QUEUE = 4096
_TAIL = 60
_LAUNCHER_TAIL = 2000  # its report on many ranks is long
_CHUNK = 1 << 16
_FINISH_SECONDS = 5.0

_PROBLEM = re.compile(r"warn|error|exception|critical|fatal|fail|abort|killed", re.IGNORECASE)
_TORCHS_OWN = re.compile(r"\[rank\d+\]: ")  # what torch puts before the lines of a traceback
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|Fatal Python error|Current thread 0x|Thread 0x")


class Output:
    """Reads the launcher's pipe and every worker that connects to `address`, in a thread of its own."""

    def __init__(self, address: Path, folder: Path, others: str = "problems") -> None:
        self.pids: dict[int, int] = {}  # rank → process, for those that came
        self.tails: dict[int, deque[str]] = {}
        self.launcher: deque[str] = deque(maxlen=_LAUNCHER_TAIL)
        self._folder, self._others = folder, others
        with suppress(OSError):  # each file says for itself that it cannot be written
            folder.mkdir(parents=True, exist_ok=True)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(address))
        self._server.listen(256)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._stdout: queue.Queue[str | None] = queue.Queue(_QUEUE)
        self._give_up = 0.0  # when to stop waiting for the last words; 0 while the job runs
        self._reader = threading.Thread(target=self._read, name="output-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="output-writer", daemon=True)

    def start(self, launcher: IO[bytes]) -> None:
        source = _Source(launcher, _LogFile(self._folder / "launcher.log"), self.launcher, None)
        self._selector.register(launcher, selectors.EVENT_READ, source)
        self._reader.start()
        self._writer.start()

    def finish(self) -> None:
        """Wait for what is still on its way, a few seconds at most: nobody of ours should hold a line any more."""
        self._give_up = time.monotonic() + _FINISH_SECONDS
        self._reader.join(_FINISH_SECONDS + 1)
        self._writer.join(_FINISH_SECONDS)

    # --- from the processes to files and the queue ---------------------------------------------------------------

    def _read(self) -> None:
        while True:
            ready = self._selector.select(0.1)
            for key, _ in ready:
                if key.fileobj is self._server:
                    line, _address = self._server.accept()
                    self._selector.register(line, selectors.EVENT_READ, _Source(line))
                else:
                    self._take(key.data)
            all_closed = not ready and len(self._selector.get_map()) == 1  # the server itself
            if self._give_up and (all_closed or time.monotonic() > self._give_up):
                break
        for key in list(self._selector.get_map().values()):
            if key.data:
                self._close(key.data)
        self._server.close()
        self._selector.close()
        with suppress(queue.Full):
            self._stdout.put(None, timeout=_FINISH_SECONDS)

    def _take(self, source: _Source) -> None:
        try:
            data = source.read()
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(source.file)
            self._close(source)
            return
        if source.log is None:  # a worker's first line says who it is
            head, end, data = (source.rest + data).partition(b"\n")
            source.rest = b"" if end else head
            if end:
                self._introduce(source, json.loads(head))
        if source.log is not None and data:
            source.log.write(data)
            for line in source.lines(data):
                self._line(source, line)

    def _introduce(self, source: _Source, who: dict[str, Any]) -> None:
        rank = int(who["rank"])
        source.rank, source.log = rank, _LogFile(self._folder / f"rank-{rank}.log")
        source.tail = self.tails.setdefault(rank, deque(maxlen=_TAIL))
        self.pids[rank] = int(who["pid"])

    def _close(self, source: _Source) -> None:
        if source.rest and source.log is not None:
            self._line(source, source.rest)
        self._say_left_out(source)
        if source.log is not None:
            source.log.close()
        source.file.close()

    def _line(self, source: _Source, raw: bytes) -> None:
        line = raw.decode(errors="replace")
        source.tail.append(line[:_LINE_LIMIT])
        if source.rank is None or not self._shown(source, line):
            return
        if source.allowance.take():
            self._say_left_out(source)
            prefix = f"[rank {source.rank}] " if source.rank else ""
            with suppress(queue.Full):
                self._stdout.put_nowait(f"{prefix}{line[:_LINE_LIMIT]}\n")
                return
        source.left_out += 1

    def _shown(self, source: _Source, line: str) -> bool:
        if not source.rank or self._others == "all":
            return True
        if self._others == "none":
            return False
        if source.in_traceback:
            text = _TORCHS_OWN.sub("", line)
            source.in_traceback = not text or text[0] in " \t"  # the first line back at the margin is the exception
            return True
        source.in_traceback = bool(_TRACEBACK.search(line))
        return source.in_traceback or bool(_PROBLEM.search(line))

    def _say_left_out(self, source: _Source) -> None:
        if source.left_out and source.log is not None:
            text = (
                f"[rank {source.rank}] … {source.left_out} lines left out here; the newest are in {source.log.path}\n"
            )
            with suppress(queue.Full):
                self._stdout.put_nowait(text)
                source.left_out = 0

    # --- from the queue to stdout --------------------------------------------------------------------------------

    def _write(self) -> None:
        while (text := self._stdout.get()) is not None:
            with suppress(OSError, ValueError):  # ours may be closed; the job goes on without it
                sys.stdout.write(text)
                if self._stdout.empty():
                    sys.stdout.flush()
        with suppress(OSError, ValueError):
            sys.stdout.flush()


class _Source:
    """One process's output: where it comes from, where it goes, and what of it was shown."""

    def __init__(
        self,
        file: Any,
        log: _LogFile | None = None,
        tail: deque[str] | None = None,
        rank: int | None = None,
    ) -> None:
        self.file, self.log, self.rank = file, log, rank
        self.tail: deque[str] = deque(maxlen=_TAIL) if tail is None else tail
        self.rest = b""
        self.left_out = 0
        self.in_traceback = False
        self.allowance = Allowance()

    def read(self) -> bytes:
        return self.file.recv(_CHUNK) if isinstance(self.file, socket.socket) else self.file.read(_CHUNK)

    def lines(self, data: bytes) -> list[bytes]:
        """The whole lines that `data` completes; the rest waits for more."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _UNBROKEN:
            lines.append(self.rest)
            self.rest = b""
        return lines


class Allowance:
    """So many lines a second, and a stock for those who were silent."""

    def __init__(self) -> None:
        self._stock, self._at = _BURST, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._stock = min(_BURST, self._stock + (now - self._at) * _LINES_PER_SECOND)
        self._at = now
        if self._stock < 1:
            return False
        self._stock -= 1
        return True


class _LogFile:
    """A file of bounded size: when full it becomes `<name>.1`, over the one before, and a new one begins.

    Where it cannot be written that is said once, and the job goes on without it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._size = path, 0
        self._file: IO[bytes] | None = None
        self._try(self._begin)

    def write(self, data: bytes) -> None:
        if self._file is not None:
            self._try(self._append, data)

    def _begin(self) -> None:
        self._file, self._size = self.path.open("wb"), 0

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        if self._size + len(data) > FILE_BYTES:
            self._file.close()
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            self._begin()
        self._file.write(data)
        self._file.flush()
        self._size += len(data)

    def _try(self, work: Callable[..., None], *data: bytes) -> None:
        try:
            work(*data)
        except OSError as error:
            print(f"warning: {self.path} ends here: {error.strerror}", file=sys.stderr, flush=True)
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
