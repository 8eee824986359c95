"""What nobody uses any more of a shared cache goes, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.models.source import local_model
from vqa_grpo.storage import cache, publish
from vqa_grpo.storage.cache import prune

MakeFolder = Callable[..., Path]
HOUR = 3600.0


def age(path: Path, hours: float) -> Path:
    then = time.time() - hours * HOUR
    os.utime(path, (then, then))
    return path


@pytest.fixture
def fetched(s3: str, make_folder: MakeFolder, tmp_path: Path) -> Callable[[str], Path]:
    """Publishes a folder of its own under a name, once, and fetches it."""

    def fetch(name: str) -> Path:
        uri = f"{s3}/{tmp_path.name}/{name}"
        if not publish.is_published(uri):
            publish.publish_folder(uri, make_folder(name, {"data": name.encode()}))
        return publish.fetch(uri, tmp_path / "cache")

    return fetch


def test_what_was_not_fetched_for_long_is_found_and_on_request_deleted(
    fetched: Callable[[str], Path], tmp_path: Path
) -> None:
    old, new = age(fetched("old"), 400), fetched("new")
    (found,) = prune(tmp_path / "cache")
    assert (found.name, found.objects, found.size, found.hours) == (old.name, 1, 3, 400.0)
    assert old.is_dir()
    assert prune(tmp_path / "cache", delete=True) == [found]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [new.name]
    assert (fetched("old") / "data").read_bytes() == b"old"


def test_what_is_fetched_again_counts_as_used(fetched: Callable[[str], Path], tmp_path: Path) -> None:
    age(fetched("old"), 400)
    fetched("old")
    assert prune(tmp_path / "cache") == []


def test_a_fetch_that_comes_in_between_keeps_its_folder(
    fetched: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(fetched("old"), 400)
    turn = cache.turn

    def late(path: Path) -> object:
        fetched("old")
        return turn(path)

    monkeypatch.setattr(cache, "turn", late)
    assert prune(tmp_path / "cache", delete=True) == []
    assert (fetched("old") / "data").is_file()


def test_a_download_that_nobody_goes_on_with_is_found_and_one_that_goes_on_is_not(tmp_path: Path) -> None:
    for name, hours in (("a" * 64, 400), ("b" * 64, 1)):
        part = tmp_path / f"{name}.part"
        part.mkdir()
        (part / "journal").write_text("")
        age(age(part / "journal", hours).parent, 400)
    assert [left.name for left in prune(tmp_path, delete=True)] == ["a" * 64]
    assert [path.name for path in tmp_path.iterdir()] == [f"{'b' * 64}.part"]


def test_a_model_that_was_copied_plainly_is_pruned_too(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_grpo.storage.store import open_store

    store = open_store(f"{s3}/{tmp_path.name}/plain")
    for name in ("config.json", "model.safetensors"):
        store.write(name, b"{}")
    monkeypatch.setenv("VQA_GRPO_CACHE", str(tmp_path / "cache"))
    folder = Path(local_model(f"{s3}/{tmp_path.name}/plain"))
    assert prune(tmp_path / "cache") == []
    age(folder, 400)
    assert [left.name for left in prune(tmp_path / "cache", delete=True)] == [f"models/{folder.name}"]
    assert not folder.exists()


def test_what_is_not_of_the_cache_stays(tmp_path: Path) -> None:
    for name in ("notes", "a" * 63, "models", f"{'a' * 64}.mine"):
        (tmp_path / name).mkdir()
    (tmp_path / ("a" * 64)).write_text("a file")
    kept = [age(path, 4000) for path in tmp_path.iterdir()]
    assert prune(tmp_path, delete=True) == []
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize(("place", "hours", "word"), [("missing", 400, "is no folder"), ("", 23, "24 is the least")])
def test_a_wrong_place_or_too_short_a_time_is_refused(tmp_path: Path, place: str, hours: float, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        prune(tmp_path / place, hours)
