from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

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
