"""What tests of the data room share; lets them import `indexing` beside them, which importlib mode does not do."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import Part, Row, Source, rows_of

sys.path.insert(0, str(Path(__file__).parent))


def encoded(colour: int | str = "red", kind: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    """A small picture's bytes; a number is a colour of its own."""
    buffer = io.BytesIO()
    shade = (colour % 256, colour // 256 % 256, 7) if isinstance(colour, int) else colour
    Image.new("RGB", size, shade).save(buffer, kind)
    return buffer.getvalue()


def table(pictures: list[bytes | None], **columns: Any) -> datasets.Dataset:
    """A row for each picture, in the guide's schema; a column given as None is left out."""
    count = len(pictures)
    rows: dict[str, Any] = {
        "image": [{"bytes": data, "path": None} if data is not None else None for data in pictures],
        "question": [f"question {number}?" for number in range(count)],
        "answer": ["red"] * count,
        "reference_steps": [["One step."]] * count,
    } | columns
    made = datasets.Dataset.from_dict({name: values for name, values in rows.items() if values is not None})
    return made.cast_column("image", datasets.Image()) if count and rows["image"] is not None else made


def source_of(**splits: list[Row]) -> Source:
    """A source that lies in memory; records without an id get one as a reader gives it."""

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        for number, row in rows_of(iter(splits[split]), part):
            named = isinstance(row, Record) and not row.id
            yield number, replace(row, id=f"{split}/{number:08d}") if named else row

    return Source("memory", "fingerprint", {split: len(rows) for split, rows in splits.items()}, read)


@pytest.fixture(name="source_of", scope="session")
def _source_of() -> Callable[..., Source]:
    return source_of


@pytest.fixture(name="encoded", scope="session")
def _encoded() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(name="table", scope="session")
def _table() -> Callable[..., datasets.Dataset]:
    return table


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Save a Dataset, or splits by name, as the guide does; gives the folder's path."""

    def write(rows: datasets.Dataset | None = None, name: str = "saved", **splits: datasets.Dataset) -> str:
        folder = str(tmp_path / name)
        (datasets.DatasetDict(splits) if rows is None else rows).save_to_disk(folder)
        return folder

    return write
