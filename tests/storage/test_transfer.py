"""What broke off goes on, what is there is not sent again, and memory is that of the parts."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storage_proxy import Proxy, Request

from vqa_grpo.contract.failure import DataError, RetryError
from vqa_grpo.storage import bulk, publish, transfer
from vqa_grpo.storage.store import DiskStore, S3Store, open_store

MakeFolder = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
PART = 5 << 20


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PART", PART)


def sent(proxy: Proxy, name: str) -> list[Request]:
    return [request for request in proxy.requests if request.method in ("PUT", "POST") and f"/{name}" in request.path]


def test_a_repeated_upload_sends_only_what_is_missing(
    proxied: tuple[Proxy, str], make_folder: MakeFolder, contents: Contents, tmp_path: Path
) -> None:
    proxy, place = proxied
    folder = make_folder(files={"a": b"a", "b": b"b", "big": os.urandom(2 * PART)})
    # The store is lost before the last file is complete, and a new process tries again.
    proxy.restart(lambda request: "reset" if request.method == "POST" and "uploadId" in request.path else "")
    with pytest.raises(RetryError):
        publish.publish_folder(place, folder)
    assert publish.find(place) is None
    proxy.restart()
    publish.publish_folder(place, folder)
    assert not sent(proxy, "a?") + sent(proxy, "b?") + [r for r in sent(proxy, "a") if r.path.endswith("/a")]
    assert sent(proxy, "big")
    assert contents(publish.fetch(place, tmp_path / "cache")) == contents(folder)


def test_what_lies_there_with_another_digest_is_sent_again(
    place: str, make_folder: MakeFolder, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(files={"a": b"right", "b": b"b"})
    with monkeypatch.context() as patch:
        for kind in (DiskStore, S3Store):
            patch.setattr(kind, "create", lambda *_: (_ for _ in ()).throw(RetryError("killed")))
        with pytest.raises(RetryError):
            publish.publish_folder(place, folder)
    [attempt] = {entry.name.split("/")[0] for entry in open_store(place).entries()}
    open_store(place).write(f"{attempt}/a", b"wrong")
    publish.publish_folder(place, folder)
    assert contents(publish.fetch(place, tmp_path / "cache")) == contents(folder)


def test_a_download_that_broke_off_goes_on_after_the_pieces_it_has(
    proxied: tuple[Proxy, str], make_folder: MakeFolder, contents: Contents, tmp_path: Path
) -> None:
    proxy, place = proxied
    folder = make_folder(files={"big": os.urandom(4 * PART + 1), "small": b"s"})
    publish.publish_folder(place, folder)
    broken = {f"bytes={2 * PART}-{3 * PART - 1}"}
    proxy.restart(lambda request: "503" if request.headers.get("range") in broken else "")
    with pytest.raises(RetryError):
        publish.fetch(place, tmp_path / "cache")
    asked = {request.headers["range"] for request in proxy.requests if "range" in request.headers}
    journal = next((tmp_path / "cache").glob("*.part")) / "journal"
    there = len(journal.read_text().splitlines())
    assert there > 0
    with journal.open("ab") as file:
        file.write(b'\xff\x00\n["big", 0')  # as a power cut and a killed process leave it
    proxy.restart()
    assert contents(publish.fetch(place, tmp_path / "cache")) == contents(folder)
    again = [request.headers["range"] for request in proxy.requests if "range" in request.headers]
    assert len(again) == 6 - there
    assert broken <= set(again)
    assert broken <= asked
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [publish.get(place).digest]


@pytest.mark.parametrize("loss", ["changed", "cut", "gone"])
def test_a_journal_that_says_more_than_the_disk_kept_starts_over(
    proxied: tuple[Proxy, str], make_folder: MakeFolder, contents: Contents, tmp_path: Path, loss: str
) -> None:
    """As after a power cut: the journal's lines arrived, the pieces did not."""
    proxy, place = proxied
    folder = make_folder(files={"big": os.urandom(3 * PART), "small": b"s"})
    publish.publish_folder(place, folder)
    proxy.restart(lambda request: "503" if request.headers.get("range", "").startswith(f"bytes={2 * PART}-") else "")
    with pytest.raises(RetryError):
        publish.fetch(place, tmp_path / "cache")
    proxy.restart()
    work = next((tmp_path / "cache").glob("*.part"))
    (work / "journal").write_text(f'["big", 0, {PART}]\n["small", 0, 1]\n')
    if loss == "changed":
        with (work / "files" / "big").open("r+b") as file:
            file.write(b"not what was there")
    elif loss == "cut":
        (work / "files" / "small").write_bytes(b"")
    else:
        (work / "files" / "small").unlink()
    assert contents(publish.fetch(place, tmp_path / "cache")) == contents(folder)


def slow_by_chance(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Pieces come in any order."""
    chance, read_range = random.Random(seed), DiskStore.read_range

    def read(self: DiskStore, name: str, start: int, end: int) -> bytes:
        time.sleep(chance.random() / 200)
        return bytes(read_range(self, name, start, end))

    monkeypatch.setattr(DiskStore, "read_range", read)


@pytest.mark.parametrize("seed", range(5))
def test_in_whatever_order_pieces_come_every_byte_of_a_file_counts(
    tmp_path: Path, make_folder: MakeFolder, contents: Contents, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(bulk, "PART", 100)
    there = make_folder(files={"big": os.urandom(1234), "even": os.urandom(1000), "small": b"s", "empty": b""})
    files = publish.describe(there)
    slow_by_chance(monkeypatch, seed)
    assert contents(transfer.receive(open_store(str(there)), files, tmp_path / "whole")) == contents(there)
    for name, place in [("big", 0), ("big", 150 + 200 * seed), ("big", 1233), ("even", 999), ("small", 0)]:
        right = (there / name).read_bytes()
        (there / name).write_bytes(right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :])
        with pytest.raises(DataError, match=f"{name} of .* is missing or damaged"):
            transfer.receive(open_store(str(there)), files, tmp_path / "damaged")
        (there / name).write_bytes(right)


def test_what_comes_in_order_is_not_read_again(
    tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PART", 100)
    monkeypatch.setattr(transfer, "AT_ONCE", 1)
    there = make_folder(files={"big": os.urandom(1234), "small": b"s"})
    files, opened, opens = publish.describe(there), [], Path.open

    def watched(path: Path, *arguments: Any, **more: Any) -> Any:
        opened.append(path)
        return opens(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", watched)
    transfer.receive(open_store(str(there)), files, tmp_path / "work")
    assert {path.parent for path in opened} == {there}


def test_a_fresh_download_of_damaged_bytes_is_bad_data_and_leaves_nothing(
    s3: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    place = f"{s3}/{tmp_path.name}/damaged"
    published = publish.publish_folder(place, make_folder(files={"big": b"x" * (2 * PART), "small": b"s"}))
    open_store(published.root).write("big", b"x" * (2 * PART - 1) + b"y")
    with pytest.raises(DataError, match=r"big of .* is missing or damaged"):
        publish.fetch(place, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_of_several_fetchers_one_downloads_and_all_get_it(
    proxied: tuple[Proxy, str], make_folder: MakeFolder, tmp_path: Path
) -> None:
    proxy, place = proxied
    publish.publish_folder(place, make_folder(files={"a": b"a", "b": b"b"}))
    proxy.restart()
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(publish.fetch(place, tmp_path / "cache"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert sum("range" in request.headers for request in proxy.requests) == 2


def test_progress_ends_with_all_bytes_and_never_goes_back(place: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(files={"big": b"x" * (2 * PART), "small": b"s"})
    for work in (
        lambda note: publish.publish_folder(place, folder, progress=note),
        lambda note: publish.fetch(place, tmp_path / "cache", note),
    ):
        seen: list[tuple[int, int]] = []
        work(lambda done, total, seen=seen: seen.append((done, total)))
        if place.startswith("s3://") or not seen:
            assert all(total == 2 * PART + 1 for _, total in seen)
            assert seen == sorted(seen)
        if seen:
            assert seen[-1][0] == 2 * PART + 1


MEASURE = """
import resource, sys
from pathlib import Path
from vqa_grpo.storage import publish
place, folder, cache = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
publish.publish_folder(place, folder)
publish.fetch(place, cache)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_of(place: str, folder: Path, cache: Path) -> int:
    """MiB of resident memory at most, of a process of its own."""
    command: list[Any] = [sys.executable, "-c", MEASURE, place, folder, cache]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_memory_does_not_grow_with_the_file(s3: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    bound = 16 * 8  # MiB: a part for each request that is under way
    peaks = {}
    for megabytes in (160, 480):
        folder = make_folder(f"{megabytes}", {})
        with (folder / "big").open("wb") as file:
            for _ in range(megabytes // 16):
                file.write(os.urandom(16 << 20))
        peaks[megabytes] = peak_of(f"{s3}/{tmp_path.name}/{megabytes}", folder, tmp_path / f"cache{megabytes}")
    print(peaks)
    assert peaks[480] - peaks[160] < bound / 2, peaks
