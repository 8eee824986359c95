"""Publish once: whole or not at all, the same on plain files and on S3."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo.contract.failure import DataError, RetryError
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import DiskStore, S3Store, open_store

MakeFolder = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def manifest_name(published: publish.Published) -> str:
    return f"{published.root.rsplit('/', 1)[1]}/{publish.MANIFEST}"


def forge(place: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a published manifest and let READY vouch for it, as someone with write access to the store could."""
    store, published = open_store(place), publish.get(place)
    attempt = published.root.rsplit("/", 1)[1]
    manifest = json.loads(store.read(manifest_name(published)) or b"")
    change(manifest)
    data = json.dumps(manifest).encode()
    store.write(manifest_name(published), data)
    ready = {"attempt": attempt, "manifest_sha256": hashlib.sha256(data).hexdigest()}
    store.write(publish.READY, json.dumps(ready).encode())


# --- the good way -----------------------------------------------------------------------------------------------


def test_what_was_published_is_fetched_byte_for_byte(
    place: str, make_folder: MakeFolder, contents: Contents, tmp_path: Path
) -> None:
    folder = make_folder()
    published = publish.publish_folder(place, folder, {"rows": 3})
    assert contents(publish.fetch(place, tmp_path / "cache")) == contents(folder)
    assert publish.find(place) == published
    assert published.metadata == {"rows": 3}
    assert published.files["a.txt"] == {"size": 5, "sha256": hashlib.sha256(b"alpha").hexdigest()}


def test_a_second_publish_returns_the_first_and_stores_nothing(place: str, make_folder: MakeFolder) -> None:
    first = publish.publish_folder(place, make_folder(), {"try": 1})
    before = open_store(place).entries()
    second = publish.publish_folder(place, make_folder("other", {"other": b"content"}), {"try": 2})
    assert second == first
    assert open_store(place).entries() == before


def test_a_result_that_is_there_is_not_built_again(place: str, tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> dict[str, Any]:
        built.append(folder)
        (folder / "result.json").write_text("{}")
        return {"n": len(built)}

    first = publish.publish(place, build, tmp_path / "work")
    assert publish.publish(place, build, tmp_path / "work") == first
    assert len(built) == 1
    assert list((tmp_path / "work").iterdir()) == []


def test_a_build_that_fails_leaves_nothing_behind(place: str, tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("half")
        raise DataError("no good")

    with pytest.raises(DataError, match="no good"):
        publish.publish(place, build, tmp_path / "work")
    assert not publish.is_published(place)
    assert list((tmp_path / "work").iterdir()) == []


def test_the_digest_is_that_of_names_and_contents_alone(make_folder: MakeFolder, place: str, tmp_path: Path) -> None:
    digest = publish.publish_folder(place, make_folder(), {"metadata": "one"}).digest
    again = publish.publish_folder(str(tmp_path / "elsewhere"), make_folder("again"), {"metadata": "two"}).digest
    renamed = publish.publish_folder(str(tmp_path / "renamed"), make_folder("r", {"b.txt": b"alpha"})).digest
    changed = publish.publish_folder(str(tmp_path / "changed"), make_folder("c", {"b.txt": b"alphA"})).digest
    assert again == digest
    assert len({digest, renamed, changed}) == 3


def test_a_folder_without_files_can_be_published(place: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    publish.publish_folder(place, make_folder(files={}))
    assert publish.fetch(place, tmp_path / "cache").is_dir()


def test_of_two_writers_one_wins_and_both_see_it(place: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    folders = [make_folder(f"writer{n}", {"name": f"writer {n}".encode(), "more": b"m" * 1000}) for n in range(2)]
    for number in range(20):
        uri, barrier, seen = f"{place}/{number}", threading.Barrier(2), []

        def write(
            n: int, uri: str = uri, barrier: threading.Barrier = barrier, seen: list[publish.Published] = seen
        ) -> None:
            barrier.wait()
            seen.append(publish.publish_folder(uri, folders[n], {"writer": n}))

        threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 2
        assert seen[0] == seen[1] == publish.get(uri)
        winner = seen[0].metadata["writer"]
        fetched = publish.fetch(uri, tmp_path / "cache")
        assert (fetched / "name").read_bytes() == f"writer {winner}".encode()
        attempts = {entry.name.split("/")[0] for entry in open_store(uri).entries()} - {publish.READY}
        assert attempts == {seen[0].root.rsplit("/", 1)[1]}  # the loser cleans up after itself


def test_a_fetched_folder_is_downloaded_once(
    s3: str, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3}/{tmp_path.name}/once"
    publish.publish_folder(uri, make_folder())
    first = publish.fetch(uri, tmp_path / "cache")
    monkeypatch.setattr(S3Store, "read_range", lambda *_: pytest.fail("downloaded again"))
    assert publish.fetch(uri, tmp_path / "cache") == first
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.name]


def test_turns_are_taken_one_by_one_however_many_want_them(tmp_path: Path) -> None:
    inside: list[int] = []
    crowds: list[list[int]] = []

    def take(number: int) -> int:
        for _ in range(2000):
            with publish.turn(tmp_path / "lock"):
                inside.append(number)
                crowds.append(list(inside))
                inside.remove(number)
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(take, range(4))) == [0, 1, 2, 3]
    assert all(len(crowd) == 1 for crowd in crowds)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loss", ["a file", "bytes of a file", "a folder"])
def test_a_cached_folder_that_lost_something_is_fetched_anew(
    s3: str, make_folder: MakeFolder, contents: Contents, tmp_path: Path, loss: str
) -> None:
    uri, folder = f"{s3}/{tmp_path.name}/lost", make_folder()
    publish.publish_folder(uri, folder)
    cached = publish.fetch(uri, tmp_path / "cache")
    if loss == "a file":
        (cached / "a.txt").unlink()
    elif loss == "bytes of a file":
        (cached / "a.txt").write_bytes(b"")
    else:
        shutil.rmtree(cached / "deep")
    assert publish.fetch(uri, tmp_path / "cache") == cached
    assert contents(cached) == contents(folder)


# --- killed, lost, damaged --------------------------------------------------------------------------------------


def test_an_upload_that_was_killed_is_invisible_and_can_be_repeated(
    place: str, make_folder: MakeFolder, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> bool:
        raise Killed

    folder = make_folder()
    with monkeypatch.context() as patch:
        patch.setattr(DiskStore, "create", die)
        patch.setattr(S3Store, "create", die)
        with pytest.raises(Killed):
            publish.publish_folder(place, folder)
    assert open_store(place).entries()  # the attempt lies there
    assert publish.find(place) is None
    assert not publish.is_published(place)
    with pytest.raises(DataError, match="nothing is published"):
        publish.fetch(place, tmp_path / "cache")
    publish.publish_folder(place, folder)
    assert contents(publish.fetch(place, tmp_path / "cache")) == contents(folder)


def test_a_ready_file_whose_answer_was_lost_is_not_taken_for_another_writers(
    place: str, make_folder: MakeFolder, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (DiskStore, S3Store):

        def create_twice(self: Any, name: str, data: bytes, once: Any = kind.create) -> bool:
            once(self, name, data)  # arrived, but the answer did not: the client asks again by itself
            return bool(once(self, name, data))

        monkeypatch.setattr(kind, "create", create_twice)
    publish.publish_folder(place, make_folder())
    assert contents(publish.fetch(place, tmp_path / "cache")) == contents(tmp_path / "made")


@pytest.mark.parametrize("name", ["a.txt", "deep/er/b.bin", "empty"])
@pytest.mark.parametrize("damage", ["changed", "longer", "gone"])
def test_a_damaged_file_is_refused(place: str, make_folder: MakeFolder, tmp_path: Path, name: str, damage: str) -> None:
    published = publish.publish_folder(place, make_folder())
    store, path = open_store(place), f"{published.root.rsplit('/', 1)[1]}/{name}"
    if damage == "gone":
        store.delete(path)
    else:
        original = store.read(path) or b""
        same_size = bytes(byte ^ 1 for byte in original) or b"!"
        store.write(path, same_size if damage == "changed" else original + b"!")
    with pytest.raises(DataError) as caught:
        publish.fetch(place, tmp_path / "cache")
    assert name in one_line(caught.value)
    left = tmp_path / "cache"
    assert not left.exists() or list(left.iterdir()) == []


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_manifest_is_refused(place: str, make_folder: MakeFolder, damage: str) -> None:
    published = publish.publish_folder(place, make_folder())
    store, name = open_store(place), manifest_name(published)
    if damage == "gone":
        store.delete(name)
    else:
        store.write(name, (store.read(name) or b"").replace(b'"size": 5', b'"size": 6'))
    with pytest.raises(DataError) as caught:
        publish.find(place)
    assert "manifest.json is missing or not what READY promises" in one_line(caught.value)


@pytest.mark.parametrize(
    "ready",
    [b"", b"not json", b"\xff\xfe", b"[]", b'"text"', b"{}", b'{"attempt": "x"}', b"null", b"[" * 100_000],
    ids=["empty", "text", "bytes", "list", "string", "object", "half", "null", "deep"],
)
def test_a_damaged_ready_file_is_refused(place: str, make_folder: MakeFolder, ready: bytes) -> None:
    publish.publish_folder(place, make_folder())
    open_store(place).write(publish.READY, ready)
    with pytest.raises(DataError) as caught:
        publish.publish_folder(place, make_folder("again"))
    assert "READY is not one of ours or damaged" in one_line(caught.value)


@pytest.mark.parametrize("name", ["../outside", "deep/../../outside", "/tmp/outside-of-all", "a\0b"])  # noqa: S108
def test_a_manifest_that_leads_outside_is_refused(
    place: str, make_folder: MakeFolder, tmp_path: Path, name: str
) -> None:
    publish.publish_folder(place, make_folder())

    def point_outside(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("a.txt")
        manifest["digest"] = publish.digest_of(manifest["files"])

    forge(place, point_outside)
    with pytest.raises(DataError) as caught:
        publish.fetch(place, tmp_path / "cache")
    assert "leads outside its folder" in one_line(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(digest="../../somewhere"),
        lambda manifest: manifest.update(digest="0" * 64),
        lambda manifest: manifest.pop("digest"),
        lambda manifest: manifest.update(files=["a.txt"]),
        lambda manifest: manifest.update(files={"a.txt": 5}),
        lambda manifest: manifest.pop("metadata"),
        lambda manifest: manifest["files"]["a.txt"].pop("size"),
        lambda manifest: manifest["files"]["a.txt"].update(size="5"),
    ],
    ids=[
        "a path for a digest",
        "another digest",
        "no digest",
        "a list of files",
        "no facts",
        "no metadata",
        "no size",
        "words for a size",
    ],
)
def test_a_manifest_of_another_shape_is_refused(
    place: str, make_folder: MakeFolder, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    # The cache's folders are named by digest: a digest that is not the files' own would hand out anything.
    publish.publish_folder(place, make_folder())
    forge(place, change)
    with pytest.raises(DataError) as caught:
        publish.fetch(place, tmp_path / "cache")
    assert "do not trust it" in one_line(caught.value)


def test_a_symbolic_link_is_refused_and_nothing_becomes_visible(place: str, make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "link").symlink_to(folder / "a.txt")
    with pytest.raises(DataError, match="link is a symbolic link"):
        publish.publish_folder(place, folder)
    assert publish.find(place) is None
    assert open_store(place).entries() == []


def test_a_folder_that_is_not_there_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        publish.publish_folder(place, tmp_path / "nowhere")
    assert publish.find(place) is None


def test_an_upload_that_does_not_arrive_whole_is_not_published(
    place: str, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shorten(self: Any, name: str, path: Path, sha256: str, parts_at_once: int) -> None:
        self.write(name, path.read_bytes()[:-1])

    monkeypatch.setattr(DiskStore, "upload", shorten)
    monkeypatch.setattr(S3Store, "upload", shorten)
    with pytest.raises(RetryError, match="did not arrive whole"):
        publish.publish_folder(place, make_folder())
    assert publish.find(place) is None


def test_nothing_published_is_one_clear_error(place: str, tmp_path: Path) -> None:
    assert publish.find(place) is None
    with pytest.raises(DataError, match=r"nothing is published at .*; did the step before it finish"):
        publish.fetch(place, tmp_path)


def test_only_storage_places_look_published(place: str, make_folder: MakeFolder) -> None:
    folder = make_folder()
    publish.publish_folder(place, folder)
    assert publish.looks_published(place)
    assert not publish.looks_published(str(folder))
    assert not publish.looks_published("org/some-model")
