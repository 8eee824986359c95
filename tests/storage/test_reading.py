"""Files of others are listed and read alike on a disk and in S3, and what is wrong is one line."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_proxy import Proxy, Request

from vqa_grpo.contract.failure import ConfigurationError, DataError, StepError
from vqa_grpo.storage import reading, store
from vqa_grpo.storage.reading import File, find_file, list_files, open_file, read_file
from vqa_grpo.storage.store import open_store

DATA = random.Random(0).randbytes(300_000)


def failure(kind: type[StepError], call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def filled(place: str) -> str:
    for name, data in {"b": b"22", "a/deep/1": b"1", "a.txt": b"", "ümläut name": DATA, ".hidden/x": b"x"}.items():
        open_store(place).write(name, data)
    return place


def test_files_are_listed_by_name_and_size_without_hidden_ones(filled: str) -> None:
    found = list(list_files(filled))
    assert sorted((file.name, file.size) for file in found) == [
        ("a.txt", 0),
        ("a/deep/1", 1),
        ("b", 2),
        ("ümläut name", 300_000),
    ]
    assert all(file.tag for file in found)
    assert [file.name for file in list_files(filled)] == [file.name for file in found]
    assert list(list_files(f"{filled}/a.txt")) == list(list_files(f"{filled}/nothing")) == []


def test_a_neighbour_with_a_longer_name_is_not_listed(filled: str) -> None:
    open_store(f"{filled}-more").write("x", b"x")
    assert "x" not in [file.name for file in list_files(filled)]


def test_a_tag_changes_with_what_the_file_holds(filled: str) -> None:
    before = find_file(f"{filled}/b")
    assert before is not None
    assert before._replace(tag="") == File("b", 2, "")
    open_store(filled).write("b", b"33")
    after = find_file(f"{filled}/b")
    assert after is not None
    assert after.tag != before.tag


@pytest.mark.parametrize("name", ["nothing", "a", "b/c"])
def test_what_is_no_file_is_not_found(filled: str, name: str) -> None:
    assert find_file(f"{filled}/{name}") is None
    assert read_file(f"{filled}/{name}", 10) is None


def test_a_small_file_is_read_whole_and_a_large_one_not_at_all(filled: str) -> None:
    assert read_file(f"{filled}/b", 2) == b"22"
    with pytest.raises(ValueError, match="300,000 bytes are more than 299,999"):
        read_file(f"{filled}/ümläut name", 299_999)


def test_opening_what_is_not_there_is_bad_data(filled: str) -> None:
    assert "nothing" in failure(DataError, open_file, f"{filled}/nothing")


def test_a_file_is_read_from_front_to_end(filled: str) -> None:
    with open_file(f"{filled}/ümläut name") as file:
        assert file.read() == DATA
        assert file.read(1) == b""
        assert (file.seek(-10, io.SEEK_END), file.read()) == (299_990, DATA[-10:])


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The ranged reader over a store that answers from memory, so that many seeks cost nothing."""

    class Memory(reading._Ranged):
        def __init__(self) -> None:
            self._uri, self._size, self._tag, self._position = "s3://x/y", len(DATA), "", 0

        def _fetch(self, start: int, end: int) -> bytes:
            assert 0 <= start < end <= len(DATA)
            return DATA[start:end]

    return lambda: io.BufferedReader(Memory(), 1000)


@given(moves=st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(-1000, 301_000), st.integers(0, 5000))))
def test_ranges_read_what_a_file_in_memory_reads(opened: Any, moves: list[tuple[int, int, int]]) -> None:
    ours, theirs = opened(), io.BytesIO(DATA)
    for whence, offset, count in moves:
        target = {0: 0, 1: theirs.tell(), 2: len(DATA)}[whence] + offset
        if target < 0:
            continue
        assert ours.seek(offset, whence) == theirs.seek(target)
        assert ours.read(count) == theirs.read(count)
        assert ours.tell() == theirs.tell()


def test_no_more_is_fetched_than_is_read(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FETCH_BYTES", 1000)
    open_store(f"{s3}/ranges").write("file", DATA)
    fetched: list[int] = []
    fetch = reading._Ranged._fetch

    def watched(self: Any, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return fetch(self, start, end)

    monkeypatch.setattr(reading._Ranged, "_fetch", watched)
    with open_file(f"{s3}/ranges/file") as file:
        file.seek(200_000)
        assert file.read(10) == DATA[200_000:200_010]
        assert file.read(10) == DATA[200_010:200_020]
    assert fetched == [1000]


def test_a_file_replaced_while_it_is_read_is_not_two_halves(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FETCH_BYTES", 1000)
    kept = open_store(f"{s3}/replaced")
    kept.write("file", DATA)
    with open_file(f"{s3}/replaced/file") as file:
        file.read(10)
        kept.write("file", DATA[::-1])
        assert "replaced/file changed while it was read: start again" in failure(DataError, file.read)


def test_an_answer_that_breaks_off_is_asked_for_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ReadTimeoutError
    from botocore.response import StreamingBody

    open_store(f"{s3}/broken").write("file", DATA)
    read, failing = StreamingBody.read, [True, True]

    def broken(self: Any, *arguments: Any) -> bytes:
        if failing:
            failing.pop()
            raise ReadTimeoutError(endpoint_url="x")
        return read(self, *arguments)

    monkeypatch.setattr(StreamingBody, "read", broken)
    with open_file(f"{s3}/broken/file") as file:
        assert file.read() == DATA
    assert not failing


@pytest.mark.parametrize("call", [lambda uri: open_file(uri).read(), lambda uri: read_file(uri, len(DATA))])
def test_an_answer_cut_short_is_asked_for_again(proxied: tuple[Proxy, str], call: Callable[[str], bytes]) -> None:
    proxy, place = proxied
    open_store(place).write("file", DATA)
    spoiled: list[str] = []

    def once(request: Request) -> str:
        if request.method != "GET" or spoiled:
            return ""
        spoiled.append(request.path)
        return "short"

    proxy.restart(once)
    assert call(f"{place}/file") == DATA
    assert spoiled


def test_wrong_credentials_are_named_when_listing_and_opening(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store._client.cache_clear()
    try:
        for call in (lambda uri: list(list_files(uri)), open_file, find_file, lambda uri: read_file(uri, 1)):
            assert f"refuses access to {s3}/x" in failure(ConfigurationError, call, f"{s3}/x")
    finally:
        store._client.cache_clear()


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert list(list_files(str(tmp_path))) == []
    assert read_file(str(tmp_path / "pipe"), 10) is None
