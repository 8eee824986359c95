"""Clean-up takes what nobody will miss, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
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
    loser = "attempt-0123456789abcdef"
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


@pytest.fixture
def in_between(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """Do something when clean-up deletes the first thing: it has seen them all by then."""

    def do(last: str, work: Callable[[], object]) -> None:
        for kind in (DiskStore, S3Store):

            def delete(self: Any, name: str, really: Any = kind.delete) -> None:
                assert last not in name, f"{name} is at work again"
                really(self, name)
                work()

            monkeypatch.setattr(kind, "delete", delete)

    return do


def test_an_attempt_whose_writer_comes_back_between_look_and_delete_stays(
    tmp_path: Path, make_folder: MakeFolder, in_between: Callable[..., None]
) -> None:
    place = str(tmp_path / "storage")
    dead, slow = make_folder("dead"), make_folder("slow", {"a": b"a", "b": b"bb"})
    gone, attempt = break_off(f"{place}/1-dead", dead), break_off(f"{place}/2-slow", slow)
    for path in Path(place).rglob("*"):
        os.utime(path, (0, 0))
    assert len(clean_up(place)) == 2
    in_between("2-slow", lambda: break_off_again(f"{place}/2-slow", slow))
    assert names(clean_up(place, delete=True)) == [("attempt", f"1-dead/{gone}/")]
    assert Path(place, "2-slow", attempt, "b").read_bytes() == b"bb"


def break_off_again(uri: str, folder: Path) -> None:
    """The writer goes on in its attempt, and is not done yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiskStore, "create", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            publish.publish_folder(uri, folder)


def test_an_attempt_that_is_published_between_look_and_delete_stays(
    place: str, make_folder: MakeFolder, later: Callable[[float], None], in_between: Callable[..., None], tmp_path: Path
) -> None:
    folder = make_folder()
    break_off(f"{place}/1-dead", make_folder("dead", {"x": b"x"}))
    break_off(f"{place}/2-slow", folder)
    later(25)
    assert len(clean_up(place)) == 2
    in_between("2-slow", lambda: publish.publish_folder(f"{place}/2-slow", folder))
    assert len(clean_up(place, delete=True)) == 1
    assert publish.fetch(f"{place}/2-slow", tmp_path / "cache").is_dir()


def test_an_attempt_is_one_thing_whatever_lies_in_it(
    place: str, make_folder: MakeFolder, later: Callable[[float], None]
) -> None:
    inner = "attempt-00000000000000aa/x"
    published = publish.publish_folder(f"{place}/run", make_folder(files={inner: b"x", f"copy/{inner}": b"y"}))
    before = everything(place)
    later(25)
    assert clean_up(place, delete=True) == []
    assert everything(place) == before
    with pytest.raises(ConfigurationError, match="lies inside an attempt, which is one thing: name a folder above it"):
        clean_up(published.root, delete=True)


def test_a_folder_that_is_only_called_so_and_holds_results_stays(
    place: str, make_folder: MakeFolder, later: Callable[[float], None]
) -> None:
    publish.publish_folder(f"{place}/attempt-00000000000000aa/run", make_folder())
    open_store(place).write("attempt-2/notes", b"by a person")
    before = everything(place)
    later(25)
    assert clean_up(place, delete=True) == []
    assert everything(place) == before


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
    begin_upload(place, "model/attempt-00000000000000aa/big")
    assert clean_up(place, delete=True) == []
    later(25)
    assert names(clean_up(place)) == [("unfinished upload", "model/attempt-00000000000000aa/big")]
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
    open_store(place).write("attempt-00000000000000aa/small", b"x")
    begin_upload(place, "attempt-00000000000000aa/big")
    listed = S3Store.unfinished
    young = time.time() + 25 * HOUR
    monkeypatch.setattr(
        S3Store, "unfinished", lambda self, *prefix: [u._replace(written=young) for u in listed(self, *prefix)]
    )
    later(25)
    assert clean_up(place, delete=True) == []


def test_an_old_upload_whose_parts_still_arrive_is_young(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{s3}/{tmp_path.name}/parts"
    begin_upload(place, "big")
    listed = S3Store._listed

    def begun_long_ago(self: S3Store, operation: str, member: str, **which: str) -> Any:
        for item in listed(self, operation, member, **which):
            yield item | ({"Initiated": item["Initiated"] - timedelta(hours=25)} if member == "Uploads" else {})

    monkeypatch.setattr(S3Store, "_listed", begun_long_ago)
    [upload] = open_store(place).unfinished()
    assert [left.key for left in clean_up(place)] == [upload.key]
    bucket, _, key = f"{place}/big".removeprefix("s3://").partition("/")
    store._client().upload_part(Bucket=bucket, Key=key, UploadId=upload.key, PartNumber=1, Body=b"x")
    assert clean_up(place, delete=True) == []
    assert len(open_store(place).unfinished()) == 1


def test_old_claims_go_and_neighbours_stay(place: str, later: Callable[[float], None]) -> None:
    kept = open_store(place)
    for name in (f"a/READY{claim.CLAIM}1", "a/attempt-x/b", "attempts/1", "READY.txt", "my-attempt-0000000000000000/x"):
        kept.write(name, b"x")
    kept_outside = open_store(f"{place}-more")
    kept_outside.write("attempt-0000000000000000/x", b"x")
    later(25)
    assert names(clean_up(place, delete=True)) == [("claim", f"a/READY{claim.CLAIM}1")]
    assert everything(place) == ["READY.txt", "a/attempt-x/b", "attempts/1", "my-attempt-0000000000000000/x"]
    assert everything(f"{place}-more") == ["attempt-0000000000000000/x"]


def test_hours_that_would_hit_a_slow_writer_are_refused(place: str) -> None:
    with pytest.raises(ConfigurationError, match=r"0\.5 hours.*1 is the least"):
        clean_up(place, hours=0.5)
