"""Who writes first, where the store keeps conditional writes, and where it does not."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest
from storage_proxy import Proxy

from vqa_grpo.contract.failure import ConfigurationError, RetryError
from vqa_grpo.storage import claim, publish
from vqa_grpo.storage.store import open_store


def race(uri: str, writers: int = 2) -> list[bool]:
    """Several writers create one object at the same moment; who was told that it was first."""
    barrier, won = threading.Barrier(writers), [False] * writers

    def write(number: int) -> None:
        store = open_store(uri)
        barrier.wait()
        won[number] = store.create("READY", f"{number}".encode())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def one_wins(place: str, rounds: int) -> None:
    for number in range(rounds):
        won = race(f"{place}/{number}")
        assert won.count(True) == 1, f"round {number}: {won}"
        assert open_store(f"{place}/{number}").read("READY") == str(won.index(True)).encode()


def test_of_two_writers_exactly_one_wins_each_of_fifty_races(s3: str) -> None:
    one_wins(f"{s3}/{uuid.uuid4().hex}", 50)


@pytest.mark.full
def test_of_two_writers_exactly_one_wins_each_of_a_thousand_races(s3: str) -> None:
    one_wins(f"{s3}/{uuid.uuid4().hex}", 1000)


def test_a_store_is_asked_once_whether_it_keeps_conditional_writes(proxied: tuple[Proxy, str]) -> None:
    proxy, place = proxied
    for name in ("first", "second"):
        assert open_store(f"{place}/{name}").create("READY", b"x")
    probes = [request for request in proxy.requests if claim.CLAIM in request.path]
    assert [request.method for request in probes] == ["PUT", "PUT", "DELETE"]
    assert [entry.name for entry in open_store(place).entries()] == ["first/READY", "second/READY"]


@pytest.mark.parametrize("how", ["unconditional", pytest.param("501", marks=pytest.mark.full)])
def test_without_conditional_writes_claims_decide_and_it_is_said(
    proxied: tuple[Proxy, str], how: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy, place = proxied
    proxy.restart(lambda request: how if "if-none-match" in request.headers else "")
    monkeypatch.setattr(claim, "SETTLE_SECONDS", 1.0)
    for number in range(3):
        uri = f"{place}/{number}"
        won = race(uri, 4)
        assert won.count(True) == 1
        assert open_store(uri).read("READY") == str(won.index(True)).encode()
        assert [entry.name for entry in open_store(uri).entries()] == ["READY"]
        assert not open_store(uri).create("READY", b"late")
    said = capfd.readouterr().err
    assert said.count("does not keep conditional writes") == 1
    assert "settled by claims" in said


def test_without_conditional_writes_publishing_still_happens_once(
    proxied: tuple[Proxy, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, place = proxied
    proxy.restart(lambda request: "unconditional")
    monkeypatch.setattr(claim, "SETTLE_SECONDS", 0.5)
    seen = []
    for writer in range(2):
        (tmp_path / f"{writer}").mkdir()
        (tmp_path / f"{writer}" / "name").write_text(f"{writer}")
    threads = [
        threading.Thread(target=lambda n=n: seen.append(publish.publish_folder(place, tmp_path / f"{n}")))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 2
    assert seen[0] == seen[1] == publish.get(place)


def test_the_claim_of_a_writer_that_died_long_ago_blocks_nobody(
    proxied: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, place = proxied
    proxy.restart(lambda request: "unconditional")
    monkeypatch.setattr(claim, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(claim, "_WAIT_SECONDS", 1.0)
    store = open_store(place)
    store.write(f"READY{claim.CLAIM}0", b"")
    with pytest.raises(RetryError, match="the writer before this one does not finish"):
        store.create("READY", b"x")
    threading.Event().wait(3)
    assert store.create("READY", b"x")


def test_a_store_that_forbids_writing_is_not_taken_for_a_weak_one(
    s3: str, monkeypatch: pytest.MonkeyPatch, proxied: tuple[Proxy, str]
) -> None:
    from vqa_grpo.storage.store import _client

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    _client.cache_clear()
    with pytest.raises(ConfigurationError, match="refuses access"):
        open_store(proxied[1]).create("READY", b"x")
    assert claim._known == {}
