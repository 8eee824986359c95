"""A fault at any request of a publish and a fetch: the result is right, or a clear error that a retry heals."""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from storage_proxy import FAULTS, Proxy

from vqa_grpo.contract.failure import RetryError
from vqa_grpo.storage import bulk, claim, publish
from vqa_grpo.storage.store import open_store

MakeFolder = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]
SMALLEST_PART = 5 << 20  # that S3 takes


@pytest.fixture
def folder(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files and one of three parts."""
    monkeypatch.setattr(bulk, "PART", SMALLEST_PART)
    return make_folder(
        files={"a": b"a" * 20_000, "deep/b": b"b", "empty": b"", "big": os.urandom(2 * SMALLEST_PART + 9)}
    )


def round_trip(uri: str, folder: Path, cache: Path) -> Path:
    claim._known.clear()  # as in a new process: the probe's requests are spoiled too
    publish.publish_folder(uri, folder)
    return publish.fetch(uri, cache)


def try_until_right(uri: str, folder: Path, cache: Path, contents: Contents) -> int:
    """Retry as the pipeline does; how often it took. Nothing is ever published by half."""
    for attempt in itertools.count():
        try:
            fetched = round_trip(uri, folder, cache)
        except RetryError as error:
            text = str(error)
            assert "\n" not in text
            assert not [path for path in cache.glob("*") if path.suffix not in (".part", ".lock")]
            assert attempt < 3
            continue
        assert contents(fetched) == contents(folder)
        return attempt
    raise AssertionError


def count_faults(
    proxy: Proxy, place: str, folder: Path, tmp_path: Path, contents: Contents, kinds: Callable[[int], tuple[str, ...]]
) -> Counter[tuple[str, int]]:
    """(fault, how many retries of ours it took) → how many requests."""
    proxy.restart()
    assert try_until_right(f"{place}/whole", folder, tmp_path / "cache", contents) == 0
    requests = len(proxy.requests)
    seen: Counter[tuple[str, int]] = Counter()
    for number in range(requests):
        for kind in kinds(number):
            proxy.restart(lambda request, number=number, kind=kind: kind if request.number == number else "")
            retries = try_until_right(f"{place}/{kind}-{number}", folder, tmp_path / "cache", contents)
            assert len(proxy.requests) > number, "the fault was never met"
            seen[kind, retries] += 1
            shutil.rmtree(tmp_path / "cache")
            open_store(place).delete(f"{kind}-{number}/")
    print(f"{requests} requests:", dict(sorted(seen.items())))
    return seen


def test_a_fault_at_one_request_or_another_ends_right(
    proxied: tuple[Proxy, str], folder: Path, tmp_path: Path, contents: Contents
) -> None:
    proxy, place = proxied

    # Every other request meets a fault, each of another kind; all kinds at all requests: the full test below.
    def kinds(number: int) -> tuple[str, ...]:
        return () if number % 2 else (FAULTS[number // 2 % len(FAULTS)],)

    seen = count_faults(proxy, place, folder, tmp_path, contents, kinds)
    assert sum(seen.values()) > 10
    assert {kind for kind, _ in seen} == set(FAULTS)


@pytest.mark.full
def test_every_fault_at_every_request_ends_right(
    proxied: tuple[Proxy, str], folder: Path, tmp_path: Path, contents: Contents
) -> None:
    proxy, place = proxied
    seen = count_faults(proxy, place, folder, tmp_path, contents, lambda number: FAULTS)
    assert sum(seen.values()) > 20 * len(FAULTS)


@pytest.mark.full
def test_a_store_that_dies_at_any_request_is_a_retry_and_the_retry_goes_on(
    proxied: tuple[Proxy, str], folder: Path, tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, place = proxied
    proxy.restart()
    round_trip(f"{place}/whole", folder, tmp_path / "cache")
    requests = len(proxy.requests)
    for number in range(requests):
        proxy.restart(lambda request, number=number: "reset" if request.number >= number else "")
        with pytest.raises(RetryError):
            round_trip(f"{place}/{number}", folder, tmp_path / "cache2")
        proxy.restart()
        ready = publish.find(f"{place}/{number}")
        fetched = round_trip(f"{place}/{number}", folder, tmp_path / "cache2")
        assert ready in (None, publish.get(f"{place}/{number}"))
        assert contents(fetched) == contents(folder)
        shutil.rmtree(tmp_path / "cache2")
