"""The small store: the same behaviour on plain files and S3, and one clear line for whatever goes wrong."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from storage_proxy import Proxy

from vqa_grpo.contract.failure import ConfigurationError, DataError, RetryError, StepError
from vqa_grpo.storage import bulk, publish, store
from vqa_grpo.storage.store import Entry, explain_os_error, is_remote, normalise, open_store

DEAD = "http://127.0.0.1:9"


@pytest.fixture
def change_env(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Change the process's AWS variables; None removes one. The client is made anew, now and afterwards."""

    def change(**values: str | None) -> None:
        for name, value in values.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        store._client.cache_clear()

    yield change
    store._client.cache_clear()


def failure(kind: type[StepError], call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def named(entries: list[Entry]) -> list[tuple[str, int]]:
    return [(entry.name, entry.size) for entry in entries]


# --- names ------------------------------------------------------------------------------------------------------


def test_uris_have_one_form() -> None:
    assert normalise("minio://bucket/a/") == normalise("s3://bucket/a") == "s3://bucket/a"
    assert normalise("file:///data/x/") == normalise("/data/x") == "/data/x"
    assert normalise("some/where") == str(Path.cwd() / "some/where")
    assert normalise("~/x") == str(Path.home() / "x")
    assert is_remote("minio://b")
    assert not is_remote("/s3/b")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/bucket", "S3://bucket"])
def test_an_unknown_kind_of_storage_is_refused(uri: str) -> None:
    assert "only s3://bucket/prefix and plain paths" in failure(ConfigurationError, open_store, uri)


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix", "minio://", "s3:////"])
def test_a_uri_without_a_bucket_is_refused(uri: str) -> None:
    assert "names no bucket" in failure(ConfigurationError, open_store, uri)


# --- the same on both -------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_replaced(place: str) -> None:
    kept = open_store(place)
    assert kept.read("deep/name") is None
    kept.write("deep/name", b"one")
    kept.write("deep/name", b"two")
    assert kept.read("deep/name") == b"two"


def test_create_never_replaces_where_the_file_system_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As exFAT and SMB: they say EPERM or ENOTSUP."""

    def link(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    made = open_store(str(tmp_path))
    assert (made.create("x", b"first"), made.create("x", b"second")) == (True, False)
    assert made.read("x") == b"first"


def test_create_never_replaces(place: str) -> None:
    kept = open_store(place)
    assert kept.create("name", b"first")
    assert not kept.create("name", b"second")
    assert kept.read("name") == b"first"


def test_of_many_creators_exactly_one_wins(place: str) -> None:
    kept = open_store(place)
    for number in range(3):
        won: list[int] = []
        barrier = threading.Barrier(3)

        def create(writer: int, number: int = number, won: list[int] = won, gate: threading.Barrier = barrier) -> None:
            gate.wait()
            if kept.create(f"{number}", f"{writer}".encode()):
                won.append(writer)

        threads = [threading.Thread(target=create, args=(writer,)) for writer in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert kept.read(f"{number}") == f"{won[0]}".encode()


def test_entries_are_names_and_sizes_below_the_prefix(place: str) -> None:
    kept = open_store(place)
    assert kept.entries() == []
    for name, data in {"a/1": b"1", "a/2": b"22", "ab": b"333"}.items():
        kept.write(name, data)
    assert named(kept.entries()) == [("a/1", 1), ("a/2", 2), ("ab", 3)]
    assert named(kept.entries("a/")) == [("a/1", 1), ("a/2", 2)]
    assert [entry.name for entry in kept.entries("a")] == ["a/1", "a/2", "ab"]
    assert all(abs(entry.modified - time.time()) < 600 for entry in kept.entries())


def test_a_neighbour_with_a_longer_name_is_not_ours(place: str) -> None:
    open_store(f"{place}-more").write("name", b"x")
    assert open_store(place).entries() == []


def test_delete_takes_a_prefix_and_nothing_else(place: str) -> None:
    kept = open_store(place)
    for name in ("a/1", "a/deep/2", "b"):
        kept.write(name, b"x")
    kept.delete("a/")
    kept.delete("never/was/")
    assert [entry.name for entry in kept.entries()] == ["b"]


def test_reading_what_is_not_there_is_one_clear_line(place: str) -> None:
    assert "nothing" in failure(DataError, open_store(place).read_range, "nothing", 0, 1)


def test_files_are_uploaded_whole_and_read_in_ranges(place: str, tmp_path: Path) -> None:
    data = os.urandom(2 * bulk.PART + 3)
    (tmp_path / "in").write_bytes(data)
    kept, digest = open_store(place), publish.sha256_of(tmp_path / "in")
    kept.upload("big", tmp_path / "in", digest)
    assert bytes(kept.read_range("big", 5, bulk.PART + 7)) == data[5 : bulk.PART + 7]
    assert kept.read("big") == data
    assert kept.holds("big", digest)
    assert not kept.holds("big", "0" * 64)
    assert not kept.holds("nothing", digest)


@pytest.mark.parametrize("name", ["a#b", "a%20b", "a+b", "q?x", "quote'\"", "[x]*{y}~", "e=&;:@,$!()"])
def test_any_file_name_comes_back_as_it_was(place: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").write_bytes(b"x")
    kept = open_store(place)
    kept.upload(name, tmp_path / "in", publish.sha256_of(tmp_path / "in"))
    assert named(kept.entries()) == [(name, 1)]
    assert bytes(kept.read_range(name, 0, 1)) == b"x"
    kept.delete(name)
    assert kept.entries() == []


def test_a_name_that_s3_cannot_hold_is_named(s3: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x")
    assert "tab" in failure(DataError, open_store(f"{s3}/names").upload, "tab\there", tmp_path / "in", "")


def test_no_half_file_is_ever_seen_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = open_store(str(tmp_path / "s"))
    kept.write("name", b"whole")

    def break_off(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:2])
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "write_bytes", break_off)
    failure(RetryError, kept.write, "name", b"other")
    assert kept.read("name") == b"whole"
    assert named(kept.entries()) == [("name", 5)]


def test_what_another_process_deletes_while_it_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = open_store(str(tmp_path))
    for name in ("a/1", "gone/deep/2", "z"):
        kept.write(name, b"x")
    scandir = os.scandir

    def late(path: Any) -> Any:
        if str(path).endswith("/gone"):
            kept_away = shutil.move(path, tmp_path.parent / f"{tmp_path.name}-gone")
            assert kept_away
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    assert [entry.name for entry in kept.entries()] == ["a/1", "z"]


def test_a_folder_that_may_not_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made" / "closed").mkdir(parents=True)
    (tmp_path / "made" / "closed" / "name").write_bytes(b"x")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("/closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "made/closed" in failure(ConfigurationError, open_store(str(tmp_path / "made")).entries)
    assert "made/closed" in failure(ConfigurationError, publish.publish_folder, str(tmp_path / "x"), tmp_path / "made")


# --- S3 goes wrong ----------------------------------------------------------------------------------------------


def test_each_wrong_credential_is_named(s3: str, change_env: Callable[..., None], tmp_path: Path) -> None:
    kept = open_store(f"{s3}/credentials")
    (tmp_path / "file").write_bytes(b"x")
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (kept.read, ("READY",)),
        (kept.write, ("name", b"x")),
        (kept.create, ("name", b"x")),
        (kept.entries, ()),
        (kept.delete, ("name",)),
        (kept.upload, ("name", tmp_path / "file", "")),
        (kept.read_range, ("name", 0, 1)),
        (kept.holds, ("name", "")),
        (kept.unfinished, ()),
    ]
    change_env(AWS_SECRET_ACCESS_KEY="wrong")  # noqa: S106
    for call, arguments in calls:
        assert "refuses access to s3://vqa-grpo/credentials" in failure(ConfigurationError, call, *arguments)
    change_env(AWS_ACCESS_KEY_ID="unknown")
    # May be a key that was replaced: env variables from a Secret stay what they were when a pod began.
    assert "(InvalidAccessKeyId): the access key is wrong" in failure(RetryError, kept.read, "READY")
    change_env(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    for call, arguments in calls:
        assert "no S3 credentials for s3://vqa-grpo/credentials" in failure(ConfigurationError, call, *arguments)


def test_a_secret_never_stands_in_an_error(s3: str, change_env: Callable[..., None]) -> None:
    change_env(AWS_SECRET_ACCESS_KEY="do-not-print-me")  # noqa: S106
    assert "do-not-print-me" not in failure(ConfigurationError, publish.find, f"{s3}/x")


def test_a_missing_bucket_is_named(s3: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    message = failure(ConfigurationError, publish.publish_folder, "s3://not-made-by-anyone/x", tmp_path / "folder")
    assert "no such bucket" in message
    assert "s3://not-made-by-anyone/x" in message


def test_a_name_that_no_bucket_can_have_is_one_line(s3: str) -> None:
    assert "Invalid bucket name" in failure(ConfigurationError, publish.find, "s3://Bad Bucket!/x")


def test_a_dead_endpoint_is_worth_a_retry_and_names_itself(s3: str, change_env: Callable[..., None]) -> None:
    change_env(AWS_ENDPOINT_URL=DEAD)
    message = failure(RetryError, publish.find, f"{s3}/x")
    assert DEAD in message
    assert "is AWS_ENDPOINT_URL right?" in message


def test_an_endpoint_that_is_no_url_is_named(s3: str, change_env: Callable[..., None]) -> None:
    change_env(AWS_ENDPOINT_URL="127.0.0.1")
    assert "AWS_ENDPOINT_URL: Invalid endpoint" in failure(ConfigurationError, publish.find, f"{s3}/x")


def test_new_credentials_count_from_the_next_client_on(s3: str, change_env: Callable[..., None]) -> None:
    publish.find(f"{s3}/x")  # boto3's shared session would have kept the good ones
    change_env(AWS_SECRET_ACCESS_KEY="wrong")  # noqa: S106
    failure(ConfigurationError, publish.find, f"{s3}/x")


def test_a_bucket_of_another_region_is_a_mistake_with_its_cure(proxied: tuple[Proxy, str], tmp_path: Path) -> None:
    proxy, place = proxied
    (tmp_path / "file").write_bytes(b"x")
    kept = open_store(place)
    kept.write("name", b"x")
    proxy.restart(lambda request: "301")  # boto3 goes to the region by itself
    for call, arguments in [(kept.read_range, ("name", 0, 1)), (kept.upload, ("name", tmp_path / "file", ""))]:
        message = failure(ConfigurationError, call, *arguments)
        assert "another region than AWS_REGION says: set it to the bucket's" in message


# --- the disk goes wrong ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for a few small files."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here: a full disk is not tested for real")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_nothing_becomes_visible(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "big.bin").write_bytes(b"x" * 1_000_000)
    target = str(small_disk / "result")
    message = failure(RetryError, publish.publish_folder, target, tmp_path / "made")
    assert message.startswith(f"disk full while writing {target}")  # the disk that is full, not the file copied
    assert publish.find(target) is None
    assert [Path(entry.name).name for entry in open_store(target).entries()] == [publish.MANIFEST]
    assert "disk full while writing" in failure(RetryError, open_store(target).write, "name", b"x" * 1_000_000)


def test_a_disk_that_fills_up_leaves_no_half_file_where_there_are_no_links(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    kept = open_store(str(small_disk))
    assert "disk full" in failure(RetryError, kept.create, "READY", b"x" * 40_000)  # there is room for it once
    assert kept.read("READY") is None
    assert kept.create("READY", b"x")


def test_a_full_disk_below_a_download_is_named(s3: str, small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "big.bin").write_bytes(b"x" * 1_000_000)
    publish.publish_folder(f"{s3}/{tmp_path.name}/too-big", tmp_path / "made")
    message = failure(RetryError, publish.fetch, f"{s3}/{tmp_path.name}/too-big", small_disk / "cache")
    assert "disk full" in message


def test_a_copy_that_meets_a_full_disk_names_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_bytes(b"x")
    message = failure(RetryError, publish.publish_folder, str(tmp_path / "result"), tmp_path / "made")
    assert message.startswith(f"disk full while writing {tmp_path / 'result'}")
    assert publish.find(str(tmp_path / "result")) is None


def test_a_folder_below_a_file_is_a_mistake_not_a_retry(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "name").write_bytes(b"x")
    message = failure(ConfigurationError, publish.publish_folder, str(tmp_path / "file" / "sub"), tmp_path / "made")
    assert str(tmp_path / "file") in message
    with pytest.raises(ConfigurationError, match="choose another place"), publish.scratch(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EACCES, ConfigurationError, "no permission to write"),
        (errno.EROFS, ConfigurationError, "no permission to write"),
        (errno.EDQUOT, RetryError, "disk full while writing"),
        (errno.EIO, RetryError, "Input/output error"),
    ],
)
def test_each_error_of_the_system_says_whether_a_retry_helps(
    number: int, kind: type[StepError], words: str, tmp_path: Path
) -> None:
    explained = explain_os_error(OSError(number, os.strerror(number), str(tmp_path / "name")))
    assert type(explained) is kind
    assert words in str(explained)
    assert str(tmp_path / "name") in str(explained)


def test_reading_a_folder_as_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "READY").mkdir()
    assert "READY" in failure(ConfigurationError, publish.find, str(tmp_path))


def test_a_missing_file_of_a_result_on_disk_is_bad_data(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "name").write_bytes(b"x")
    published = publish.publish_folder(str(tmp_path / "result"), tmp_path / "made")
    (Path(published.root) / "name").unlink()
    assert "name of" in failure(DataError, publish.fetch, str(tmp_path / "result"), tmp_path / "cache")
