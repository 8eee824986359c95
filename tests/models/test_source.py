"""A model's name made a folder: fetched once, whole or not at all."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo.contract.failure import ConfigurationError, RetryError
from vqa_grpo.models import source
from vqa_grpo.models.source import local_model, pinned, plain_copy
from vqa_grpo.storage import bulk, publish, store, transfer
from vqa_grpo.storage.store import S3Store, open_store

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VQA_GRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copied(s3: str, tmp_path: Path) -> str:
    """A model that somebody copied to S3 as it was."""
    place = open_store(f"{s3}/{tmp_path.name}/qwen")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "deep/er.json"):
        place.write(name, f"{name} of the model".encode())
    return place.uri


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is fetched, once for each piece."""
    done: list[str] = []
    original = S3Store.read_range

    def read_range(self: S3Store, name: str, start: int, end: int) -> Any:
        done.append(name)
        return original(self, name, start, end)

    monkeypatch.setattr(S3Store, "read_range", read_range)
    return done


def test_a_folder_stays_where_it_is(tmp_path: Path) -> None:
    assert local_model(str(tmp_path)) == str(tmp_path)


def test_a_published_model_is_fetched_by_its_manifest(s3: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    made = publish.publish_folder(f"{s3}/{tmp_path.name}/published", tmp_path / "model")
    assert Path(local_model(made.uri)) == cache / made.digest


def test_a_plain_copy_is_fetched_once_however_many_ask_and_anew_when_it_changes(
    copied: str, downloads: list[str]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(local_model, [copied] * 4))
    assert sorted(downloads) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (Path(folder) / "model.safetensors").read_text() == "model.safetensors of the model"
    assert sorted(path.name for path in Path(folder).iterdir()) == sorted(downloads)
    open_store(copied).write("model.safetensors", b"other weights")
    assert local_model(copied) != folder


def test_a_fetch_that_broke_off_is_not_trusted_and_goes_on(
    copied: str, downloads: list[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(transfer, "AT_ONCE", 1)
    monkeypatch.setattr(bulk, "PART", 10)
    read_range = S3Store.read_range

    def broken(self: S3Store, name: str, start: int, end: int) -> Any:
        if (name, start) == ("model.safetensors", 20):
            raise RetryError("the connection broke")
        return read_range(self, name, start, end)

    with monkeypatch.context() as patched:
        patched.setattr(S3Store, "read_range", broken)
        with pytest.raises(RetryError, match="the connection broke"):
            local_model(copied)
    assert not [path for path in (cache / "models").iterdir() if not path.suffix]
    assert len(downloads) >= 5
    folder = Path(local_model(copied))
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(downloads) == sorted(names * 3)  # each of the pieces once
    for name in names:
        assert (folder / name).read_text() == f"{name} of the model"
    assert [path.name for path in (cache / "models").iterdir()] == [folder.name]


@pytest.mark.parametrize("new", [b"other weights of a model!!!!!!", b"longer weights, of another model", b"short"])
def test_a_copy_that_changes_while_it_is_fetched_is_never_two_halves(
    copied: str, monkeypatch: pytest.MonkeyPatch, cache: Path, new: bytes
) -> None:
    monkeypatch.setattr(transfer, "AT_ONCE", 1)
    monkeypatch.setattr(bulk, "PART", 10)
    old, read_range, changed = open_store(copied).read("model.safetensors") or b"", S3Store.read_range, []

    def change(self: S3Store, name: str, start: int, end: int) -> Any:
        if start == 10 and name == "model.safetensors" and not changed:
            changed.append(name)
            open_store(copied).write(name, new)
        return read_range(self, name, start, end)

    monkeypatch.setattr(S3Store, "read_range", change)
    with pytest.raises(RetryError, match=f"{copied} changed while it was fetched: try again"):
        local_model(copied)
    assert list((cache / "models").iterdir()) == []
    assert (Path(local_model(copied)) / "model.safetensors").read_bytes() == new
    open_store(copied).write("model.safetensors", old)
    assert (Path(local_model(copied)) / "model.safetensors").read_bytes() == old


def test_code_and_pickles_stay_where_they_are_and_weights_among_them_are_named(copied: str) -> None:
    assert plain_copy(f"{copied}/") == (copied, "")
    for name in ("modeling_own.py", "pytorch_model-1.bin", "pytorch_model-2.bin", "README.md", "merges.txt"):
        open_store(copied).write(name, b"x")
    folder = Path(local_model(copied))
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
    ]
    note = plain_copy(copied).note
    assert note == (
        f"only safetensors are loaded, never pickles: pytorch_model-1.bin and 1 more at {copied} will not be used"
    )


def test_a_copy_without_weights_that_may_be_loaded_is_refused(s3: str, tmp_path: Path) -> None:
    place = open_store(f"{s3}/{tmp_path.name}/old")
    for name in ("config.json", "pytorch_model.bin"):
        place.write(name, b"x")
    for call in (plain_copy, local_model):
        with pytest.raises(ConfigurationError, match=r"no \*\.safetensors, only pytorch_model\.bin: pickles are never"):
            call(place.uri)


def test_a_prefix_without_a_model_is_said_in_words(s3: str) -> None:
    with pytest.raises(ConfigurationError, match=r"neither published, nor a config\.json"):
        local_model(f"{s3}/nothing/here")


def test_a_model_at_the_top_of_a_bucket_is_fetched_too(s3: str, copied: str, downloads: list[str]) -> None:
    bucket = f"model-{uuid.uuid4().hex[:12]}"
    store._client().create_bucket(Bucket=bucket)
    for name in ("config.json", "model.safetensors"):
        open_store(f"s3://{bucket}").write(name, b"x")
    assert sorted(path.name for path in Path(local_model(f"s3://{bucket}/")).iterdir()) == sorted(downloads)


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Any]]:
    import huggingface_hub

    found: list[tuple[str, Any]] = []

    def snapshot_download(name: str, revision: Any, allow_patterns: list[str]) -> str:
        assert not [pattern for pattern in allow_patterns if pattern.endswith((".py", ".bin", ".pt"))]
        found.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return found


@pytest.mark.parametrize(
    ("name", "revision", "wanted"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", "", ("Qwen/Qwen2.5-VL-3B-Instruct", None)),
        ("org/name@v1.0", "", ("org/name", "v1.0")),
        (f"org/name@{COMMIT}", "main", ("org/name", COMMIT)),
        ("org/name", "v2", ("org/name", "v2")),
    ],
)
def test_a_hub_name_may_have_a_revision(name: str, revision: str, wanted: tuple, asked: list, tmp_path: Path) -> None:
    assert local_model(name, revision) == str(tmp_path)
    assert asked == [wanted]


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "not a name", "a/b/c"])
def test_what_is_no_name_of_the_hub_is_left_to_who_loads_it(name: str, asked: list) -> None:
    assert local_model(name) == name
    assert asked == []


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def of_the_hub(kind: str) -> Exception:
    """An error as the library raises it, for an answer that it got."""
    from huggingface_hub import errors

    error = getattr(errors, kind).__new__(getattr(errors, kind))
    error.args = ("404\nNot Found",)
    return error


def test_a_hub_that_knows_no_such_model_is_no_reason_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(of_the_hub("RepositoryNotFoundError")))
    with pytest.raises(ConfigurationError, match="org/name@v1") as caught:
        local_model("org/name@v1")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(OSError("connection reset")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(RetryError, match="connection reset"):
        local_model("org/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="HF_HUB_OFFLINE"):
        local_model("org/name")


def test_a_hub_name_is_pinned_to_its_commit_where_the_hub_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from types import SimpleNamespace

    import huggingface_hub

    def info(name: str, revision: str | None, timeout: float) -> Any:
        return SimpleNamespace(sha=f"sha-of-{name}-{revision}")

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=info))
    assert pinned("org/name") == ("org/name@sha-of-org/name-None", "")
    assert pinned("org/name@v1") == ("org/name@sha-of-org/name-v1", "")
    for same in (f"org/name@{COMMIT}", str(tmp_path), "s3://bucket/model", "/no/such"):
        assert pinned(same) == (same, "")
    unknown = failing(of_the_hub("RevisionNotFoundError"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=unknown))
    with pytest.raises(ConfigurationError, match="mend the name or revision"):
        pinned("org/name@v9")


def test_a_hub_that_cannot_be_reached_leaves_the_name_as_it_is_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import huggingface_hub

    refused = failing(ConnectionError("no network\nat all"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=refused))
    assert pinned("org/name@v1") == (
        "org/name@v1",
        "the hub does not say which commit org/name@v1 is now (no network at all), so that a later process or retry "
        "may get other weights: write org/name@COMMIT, or a folder",
    )


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(source, "_HUB_SECONDS", 0.5)
        name, note = pinned("org/name")
    assert name == "org/name"
    assert "(no answer in 0.5 s)" in note or "timed out" in note
