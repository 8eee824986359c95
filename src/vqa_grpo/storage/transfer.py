"""Many files to a store and from it: in parallel, in parts, going on where an earlier try broke off.

What is in flight is bounded by AT_ONCE and `bulk.PART`, whatever the size of the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vqa_grpo.contract.failure import DataError, RetryError
from vqa_grpo.storage import bulk
from vqa_grpo.storage.store import Buffer, Store, explain_os_error

AT_ONCE = 8  # requests
_READ = 1 << 18  # bytes at a time from a disk: few enough for a processor's cache
_LARGE_AT_ONCE = 2  # files of several parts, each with its share of the requests

Files = dict[str, dict[str, Any]]  # name → {"size": bytes, "sha256": hex}; receive can do without a digest
Progress = Callable[[int, int], None]  # bytes done, bytes in all
T = TypeVar("T")


def nothing(done: int, total: int) -> None:
    """Progress that nobody watches."""


def each(work: Callable[[T], Any], items: Iterable[T], at_once: int) -> None:
    """Do `work` for all items, several at a time; after the first failure the rest is not begun."""
    with ThreadPoolExecutor(at_once) as pool:
        jobs = [pool.submit(work, item) for item in items]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Count:
    """Bytes done, by many threads."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress, self._lock = 0, total, progress, threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._progress(self._done, self._total)


def send(store: Store, below: str, folder: Path, files: Files, progress: Progress = nothing) -> None:
    """Upload `files` of `folder` to `below` in the store; what lies there with the same size and digest is left out.

    Raises RetryError when something did not arrive whole.
    """
    there = sizes(store, below)
    count = _Count(sum(facts["size"] for facts in files.values()), progress)

    def one(name: str, parts_at_once: int = 1) -> None:
        facts, target = files[name], f"{below}/{name}"
        if there.get(name) != facts["size"] or not store.holds(target, facts["sha256"]):
            store.upload(target, folder / name, facts["sha256"], parts_at_once)
        count.add(facts["size"])

    large = [name for name, facts in files.items() if facts["size"] > bulk.PART]
    each(one, sorted(files.keys() - set(large)), AT_ONCE)
    each(lambda name: one(name, AT_ONCE // _LARGE_AT_ONCE), large, _LARGE_AT_ONCE)
    arrived = sizes(store, below)
    lost = [name for name, facts in files.items() if arrived.get(name) != facts["size"]]
    if lost:
        raise RetryError(f"{len(lost)} of {len(files)} files did not arrive whole at {store.uri}, first {lost[0]}")


def sizes(store: Store, below: str) -> dict[str, int]:
    """Name → bytes of all that lies below a folder of the store."""
    return {entry.name.removeprefix(f"{below}/"): entry.size for entry in store.entries(f"{below}/")}


class _Piece(NamedTuple):
    name: str
    start: int
    end: int


def receive(store: Store, files: Files, work: Path, progress: Progress = nothing) -> Path:
    """Download `files` of the store into a folder in `work`, and return it; every digest that is known is checked.

    `work` also keeps a journal of the pieces that are there, so that a later call goes on from them. Raises
    DataError for a file that is missing or not what its digest says, which leaves nothing to go on from.
    """
    try:
        _check_names_and_sizes(store, files, work)
        try:
            return _receive(store, files, work, progress)
        except _Stale:
            shutil.rmtree(work)
            return _receive(store, files, work, progress)
    except DataError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        raise explain_os_error(error) from error


class _Stale(Exception):
    """What an earlier try is said to have written is not there: the machine went down before its disk had it."""


def _receive(store: Store, files: Files, work: Path, progress: Progress) -> Path:
    folder = work / "files"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    count = _Count(sum(facts["size"] for facts in files.values()), progress)
    with _Journal(work / "journal") as journal:
        missing: list[_Piece] = []
        digests = {name: _Digest(folder / name, facts["size"]) for name, facts in files.items() if "sha256" in facts}
        for name, facts in files.items():
            there, lacking = journal.sort(_pieces(name, facts["size"]))
            count.add(sum(piece.end - piece.start for piece in there))
            if name in digests:
                digests[name].there.update(piece.start for piece in there)
            # A file that lacks nothing is looked at all the same: an empty piece sees to that.
            missing += lacking or [_Piece(name, facts["size"], facts["size"])]

        def one(piece: _Piece) -> None:
            data = _fetched(store, piece)
            _write_at(folder / piece.name, data, piece.start, through=piece.name not in digests)
            journal.add(piece)
            count.add(len(data))
            if piece.name in digests and (found := digests[piece.name].add(piece.start, data)):
                check(piece.name, found)

        def check(name: str, digest: str) -> None:
            if digest == files[name]["sha256"]:
                return
            if journal.resumed(name):
                raise _Stale
            raise DataError(f"{name} of {store.uri} is missing or damaged: its SHA-256 is not the manifest's")

        each(one, missing, AT_ONCE)
    return folder


def _fetched(store: Store, piece: _Piece) -> Buffer:
    size = piece.end - piece.start
    data = store.read_range(piece.name, piece.start, piece.end) if size else b""
    if len(data) != size:
        raise RetryError(f"{piece.name} of {store.uri} came short: {len(data)} bytes at {piece.start}, not {size}")
    return data


class _Digest:
    """The SHA-256 of a file whose pieces arrive in any order, taken in the file's order as far as they are there.

    Whoever brings a piece while nobody hashes the file goes on with it: with the piece in hand from memory, with those
    that came before their turn from the disk. The others do not wait.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.there: set[int] = set()  # where the pieces begin that are on the disk and not hashed
        self._path, self._size, self._done = path, size, 0
        self._sha256, self._lock, self._busy = hashlib.sha256(), threading.Lock(), False

    def add(self, start: int, data: Buffer) -> str | None:
        """Take a piece that was written; the digest for the one who comes to the end of the file, else None."""
        with self._lock:
            self.there.add(start)
            if self._busy:
                return None
            self._busy = True
        while self._goes_on():
            if self._done == start:
                self._sha256.update(data)
            else:
                self._read_next()
            self._done = min(self._done + bulk.PART, self._size)
        return self._sha256.hexdigest() if self._done == self._size else None

    def _goes_on(self) -> bool:
        """Whether the next piece is there; if not, who brings it will go on."""
        with self._lock:
            self._busy = self._done in self.there
            self.there.discard(self._done)
            return self._busy

    def _read_next(self) -> None:
        """Hash a piece from the disk; where the disk holds less than it, the digest will be another."""
        buffer = memoryview(bytearray(_READ))
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._done)
            left = min(bulk.PART, self._size - self._done)
            while left and (got := file.readinto(buffer[:left])):
                self._sha256.update(buffer[:got])
                left -= got


def _pieces(name: str, size: int) -> Iterator[_Piece]:
    return (_Piece(name, start, min(start + bulk.PART, size)) for start in range(0, size, bulk.PART))


def _write_at(path: Path, data: Buffer, start: int, through: bool) -> None:
    """`through` to the disk where no digest would tell what it lost."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, start)
            view, start = view[written:], start + written
        if through:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_names_and_sizes(store: Store, files: Files, work: Path) -> None:
    there = {entry.name: entry.size for entry in store.entries()}
    for name, facts in files.items():
        inside(work, name)
        if there.get(name) != facts["size"]:
            raise DataError(
                f"{name} of {store.uri} is missing or damaged: {there.get(name, 'no')} bytes, not {facts['size']}"
            )


def inside(folder: Path, name: str) -> Path:
    """`folder/name`, refused when a manifest's name would lead outside."""
    if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
        raise DataError(f"a manifest names {name!r}, which leads outside its folder: do not trust it")
    return folder / name


class _Journal:
    """The pieces that were written, one line each, so that a download that was killed goes on after them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: set[_Piece] = set()
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    self._known.add(_Piece(*json.loads(line)))
                except (ValueError, TypeError):  # of a process that was killed, or what a power cut made of it
                    continue

    def __enter__(self) -> _Journal:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def sort(self, pieces: Iterable[_Piece]) -> tuple[list[_Piece], list[_Piece]]:
        """Those that are there, and those that are not."""
        known: tuple[list[_Piece], list[_Piece]] = ([], [])
        for piece in pieces:
            known[piece not in self._known].append(piece)
        return known

    def resumed(self, name: str) -> bool:
        return any(name == piece.name for piece in self._known)

    def add(self, piece: _Piece) -> None:
        os.write(self._file, f"{json.dumps(piece)}\n".encode())
