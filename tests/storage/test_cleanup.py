"""Clean-up takes what nobody will miss, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.storage import claim, cleanup, publish, store
from vqa_grpo.storage.cleanup import clean_up
from vqa_grpo.storage.store import DiskStore, S3Store, open_store

MakeFolder = Callable[..., Path]
HOUR = 3600


class Killed(BaseException):
    pass


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let hours pass in the eyes of clean-up."""

    def passed(hours: float) -> None:
        now = time.time() + hours * HOUR
        monkeypatch.setattr(cleanup, "time", lambda: now)

    return passed


def break_off(uri: str, folder: Path) -> str:
    """A publish that is killed before READY; the name of its attempt."""
    before = {entry.name for entry in open_store(uri).entries()}
    with pytest.MonkeyPatch.context() as patch:

        def die(*_: object) -> bool:
            raise Killed

        patch.setattr(DiskStore, "create", die)
        patch.setattr(S3Store, "create", die)
        with pytest.raises(Killed):
            publish.publish_folder(uri, folder)
    [attempt] = {entry.name.split("/")[0] for entry in open_store(uri).entries() if entry.name not in before}
    return attempt


def names(found: list[cleanup.Leftover]) -> list[tuple[str, str]]:
    return sorted((left.kind, left.name) for left in found)


def everything(uri: str) -> list[str]:
    return [entry.name for entry in open_store(uri).entries()]


def test_an_old_attempt_that_no_ready_names_goes_and_what_is_published_stays(
    place: str, make_folder: MakeFolder, tmp_path: Path, later: Callable[[float], None]
) -> None:
    kept = publish.publish_folder(f"{place}/run/done", make_folder("done"))
    open_store(place).write("run/done/summary.json", b"{}")
    orphan = break_off(f"{place}/run/broken", make_folder("broken", {"a": b"a", "b": b"bb"}))
    loser = "attempt-0123456789ab"
    open_store(place).write(f"run/done/{loser}/a", b"x")
    before = everything(place)
    later(25)
    found = clean_up(place)
    assert names(found) == [("attempt", f"run/broken/{orphan}/"), ("attempt", f"run/done/{loser}/")]
    assert {left.name: left.objects for left in found}[f"run/broken/{orphan}/"] == 3
    assert everything(place) == before  # it only looked
    assert names(clean_up(place, delete=True)) == names(found)
    assert clean_up(place) == []
    assert publish.get(f"{place}/run/done") == kept
    assert publish.fetch(f"{place}/run/done", tmp_path / "cache").is_dir()
    assert "run/done/summary.json" in everything(place)


def test_a_young_attempt_stays(place: str, make_folder: MakeFolder, later: Callable[[float], None]) -> None:
    break_off(place, make_folder())
    before = everything(place)
    later(23)
    assert clean_up(place, delete=True) == []
    assert everything(place) == before
    later(25)
    assert clean_up(place, hours=48, delete=True) == []


def test_an_old_attempt_that_is_gone_on_with_is_young_again(
    tmp_path: Path, make_folder: MakeFolder, later: Callable[[float], None]
) -> None:
    place, folder = str(tmp_path / "storage"), make_folder()
    attempt = break_off(place, folder)
    for path in Path(place, attempt).rglob("*"):
        os.utime(path, (0, 0))
    assert len(clean_up(place)) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiskStore, "create", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            publish.publish_folder(place, folder)
    assert clean_up(place, delete=True) == []


def test_what_lies_beside_a_damaged_ready_stays(
    place: str, make_folder: MakeFolder, later: Callable[[float], None]
) -> None:
    publish.publish_folder(place, make_folder())
    open_store(place).write(publish.READY, b"damaged")
    before = everything(place)
    later(1000)
    assert clean_up(place, delete=True) == []
    assert everything(place) == before


def test_a_ready_that_comes_after_the_listing_is_seen(
    place: str, make_folder: MakeFolder, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder()
    break_off(place, folder)
    attempts = cleanup._attempts

    def and_then_it_is_published(entries: Any) -> Any:
        found = attempts(entries)
        publish.publish_folder(place, folder)
        return found

    monkeypatch.setattr(cleanup, "_attempts", and_then_it_is_published)
    later(25)
    assert clean_up(place, delete=True) == []
    assert publish.is_published(place)


def test_uploads_that_never_ended_are_found_by_their_age(place: str, later: Callable[[float], None]) -> None:
    begin_upload(place, "model/attempt-00aa/big")
    assert clean_up(place, delete=True) == []
    later(25)
    assert names(clean_up(place)) == [("unfinished upload", "model/attempt-00aa/big")]
    assert len(clean_up(place, delete=True)) == 1
    assert open_store(place).unfinished() == []
    assert everything(place) == []


def begin_upload(place: str, name: str) -> None:
    if place.startswith("s3://"):
        bucket, _, key = f"{place}/{name}".removeprefix("s3://").partition("/")
        store._client().create_multipart_upload(Bucket=bucket, Key=key)
    else:
        path = Path(place, name)
        path.parent.mkdir(parents=True)
        path.with_name(f".{path.name}.{'0' * 32}.part").write_bytes(b"half")


def test_a_young_upload_keeps_the_old_attempt_around_it(
    tmp_path: Path, s3: str, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{s3}/{tmp_path.name}/slow"
    open_store(place).write("attempt-00aa/small", b"x")
    begin_upload(place, "attempt-00aa/big")
    listed = S3Store.unfinished
    young = time.time() + 25 * HOUR
    monkeypatch.setattr(S3Store, "unfinished", lambda self: [u._replace(started=young) for u in listed(self)])
    later(25)
    assert clean_up(place, delete=True) == []


def test_old_claims_go_and_neighbours_stay(place: str, later: Callable[[float], None]) -> None:
    kept = open_store(place)
    for name in (f"a/READY{claim.CLAIM}1", "a/attempt-x/b", "attempts/1", "READY.txt", "my-attempt-00/x"):
        kept.write(name, b"x")
    kept_outside = open_store(f"{place}-more")
    kept_outside.write("attempt-00/x", b"x")
    later(25)
    assert names(clean_up(place, delete=True)) == [("claim", f"a/READY{claim.CLAIM}1")]
    assert everything(place) == ["READY.txt", "a/attempt-x/b", "attempts/1", "my-attempt-00/x"]
    assert everything(f"{place}-more") == ["attempt-00/x"]


def test_hours_that_would_hit_a_slow_writer_are_refused(place: str) -> None:
    with pytest.raises(ConfigurationError, match=r"0\.5 hours.*1 is the least"):
        clean_up(place, hours=0.5)
