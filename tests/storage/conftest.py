from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vqa_grpo.storage import claim, store

sys.path.insert(0, str(Path(__file__).parent))

from storage_proxy import Proxy, between

FILES = {"a.txt": b"alpha", "deep/er/b.bin": bytes(range(256)), "empty": b"", "ümläut name": b"x"}


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI where nothing is yet, on each kind of storage."""
    if request.param == "disk":
        return str(tmp_path / "storage" / "result")
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}/result"


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "made", files: dict[str, bytes] | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for relative, data in (FILES if files is None else files).items():
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            (folder / relative).write_bytes(data)
        return folder

    return make


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """A folder as names and bytes, without what storage adds of its own."""

    def read(folder: Path) -> dict[str, bytes]:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        files.pop("manifest.json", None)
        return files

    return read


@pytest.fixture
def proxied(s3: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the real S3, which all requests of this process go through, and a URI where nothing is yet."""
    with between(s3_server["AWS_ENDPOINT_URL"]) as (proxy, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        store._client.cache_clear()
        claim._known.clear()
        yield proxy, f"{s3}/{uuid.uuid4().hex}"
    store._client.cache_clear()
