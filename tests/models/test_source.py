"""A model's name made a folder: fetched once, whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from vqa_grpo.contract.failure import ConfigurationError, RetryError
from vqa_grpo.models import source
from vqa_grpo.models.source import local_model, pinned
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import open_store

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VQA_GRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copied(s3: str, tmp_path: Path) -> str:
    """A model that somebody copied to S3 as it was."""
    store = open_store(f"{s3}/{tmp_path.name}/qwen")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "deep/er.json"):
        store.write(name, f"{name} of the model".encode())
    return store.uri


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []
    original = source.open_file

    def open_file(uri: str) -> BinaryIO:
        done.append(uri.rpartition("/")[2])
        return original(uri)

    monkeypatch.setattr(source, "open_file", open_file)
    return done


class HalfAFile(io.BytesIO):
    """Four bytes, and then the connection breaks."""

    def read(self, size: int | None = -1) -> bytes:
        if found := super().read(size):
            return found
        raise RetryError("the connection broke")


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
    whole = source.open_file

    def broken(uri: str) -> BinaryIO:
        return HalfAFile(b"half") if uri.endswith("model.safetensors") else whole(uri)

    with monkeypatch.context() as patched:
        patched.setattr(source, "open_file", broken)
        with pytest.raises(RetryError):
            local_model(copied)
    assert not [path for path in (cache / "models").iterdir() if not path.suffix]
    folder = Path(local_model(copied))
    assert downloads == ["config.json", "model.safetensors", "tokenizer.json"]  # the first one once
    assert sorted(path.name for path in folder.iterdir()) == downloads


def test_a_prefix_without_a_model_is_said_in_words(s3: str) -> None:
    with pytest.raises(ConfigurationError, match=r"neither published, nor a config\.json"):
        local_model(f"{s3}/nothing/here")


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

    def info(name: str, revision: str | None) -> Any:
        return SimpleNamespace(sha=f"sha-of-{name}-{revision}")

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=info))
    assert pinned("org/name") == "org/name@sha-of-org/name-None"
    assert pinned("org/name@v1") == "org/name@sha-of-org/name-v1"
    for same in (f"org/name@{COMMIT}", str(tmp_path), "s3://bucket/model", "/no/such"):
        assert pinned(same) == same
    monkeypatch.setattr(
        huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=failing(ConnectionError("no network")))
    )
    assert pinned("org/name") == "org/name"
    unknown = failing(of_the_hub("RevisionNotFoundError"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=unknown))
    with pytest.raises(ConfigurationError, match="mend the name or revision"):
        pinned("org/name@v9")
