from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo.contract.failure import StepError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import Part, Source
from vqa_grpo.data.sources import open_place
from vqa_grpo.storage.store import open_store


def write(place: str, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        open_store(place).write(name, data)
    return place


@pytest.fixture
def on_disk(tmp_path: Path) -> Callable[[dict[str, bytes]], str]:
    """Write files by name into a new folder; gives its path."""
    return lambda files: write(str(tmp_path / f"place-{uuid.uuid4().hex[:6]}"), files)


@pytest.fixture(params=["disk", "s3"])
def lay(request: pytest.FixtureRequest, on_disk: Callable[..., str]) -> Callable[[dict[str, bytes]], str]:
    """The same, on each kind of storage; gives the URI."""
    if request.param == "disk":
        return on_disk
    bucket = request.getfixturevalue("s3")
    return lambda files: write(f"{bucket}/{uuid.uuid4().hex}/set", files)


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def read_whole(place: str, columns: dict[str, str] | None) -> None:
    source = open_place(place, columns)
    for split in source.rows:
        list(source.read(split, Part()))


def refused(kind: type[StepError], place: str, columns: dict[str, str] | None = None) -> str:
    """The one line with which opening a place, or else reading it, is refused."""
    with pytest.raises(kind) as caught:
        read_whole(place, columns)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


def rows_of(source: Source, split: str = "train") -> list[Any]:
    return [row for _, row in source.read(split, Part())]


def asked(source: Source, split: str = "train") -> list[tuple[bytes, str, str]]:
    return [(row.image, row.question, row.answer) for row in rows_of(source, split) if isinstance(row, Record)]


@pytest.fixture(name="files_of", scope="session")
def _files_of() -> Callable[[Path], dict[str, bytes]]:
    return files_of


@pytest.fixture(name="refused", scope="session")
def _refused() -> Callable[..., str]:
    return refused


@pytest.fixture(name="rows_of", scope="session")
def _rows_of() -> Callable[..., list[Any]]:
    return rows_of


@pytest.fixture(name="asked", scope="session")
def _asked() -> Callable[..., list[tuple[bytes, str, str]]]:
    return asked
