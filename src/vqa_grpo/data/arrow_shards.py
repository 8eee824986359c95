"""A split as Arrow shards, in the folder layout of `datasets.save_to_disk`, each finished whole or not at all.

    SPLIT/data-00000-of-00003.arrow   an Arrow stream of record batches
    SPLIT/state.json                  which files, in which order
    SPLIT/dataset_info.json           what the columns are

Which rows a shard holds is known before anything is read, from the index alone. A shard is written under another
name, synced and renamed; its receipt, a small Parquet file with one line for each row, comes after it. A shard
with a receipt is finished, any other is not there. The layout is datasets' own: a test pins it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vqa_grpo.contract.record import Record

SHARD_BYTES = 500_000_000
ROW_BYTES = 512  # what a row takes beside its picture, about: the index knows no texts
BATCH_ROWS = 1000
BATCH_BYTES = 2_000_000  # a batch ends after this much, so that large pictures do not pile up
PART = ".part"


@dataclass(frozen=True)
class Shard:
    """One file of a split: its place among `count`, and how many rows it is to hold."""

    split: str
    place: int
    count: int
    rows: int

    @property
    def name(self) -> str:
        return f"{self.split}/data-{self.place:05d}-of-{self.count:05d}.arrow"


@dataclass(frozen=True)
class Written:
    """What is recorded of a written row. Digests are SHA-256 of what was written; sizes are as shown."""

    split: str
    id: str
    source_split: str
    number: int  # position in the source's split
    orientation: int  # EXIF orientation, which a reader of raw bytes has to apply
    width: int
    height: int
    picture: bytes
    content: bytes  # see index.RowFacts


def written_schema() -> Any:
    import pyarrow as pa

    kinds = {"str": pa.string(), "int": pa.int64(), "bytes": pa.binary()}
    return pa.schema([(field.name, kinds[str(field.type)]) for field in fields(Written)])


def plan_shards(split: str, sizes: np.ndarray, shard_bytes: int) -> tuple[np.ndarray, list[Shard]]:
    """Which shard each row of a split belongs to, (rows,) int32, from the sizes of their pictures, in order.

    A shard ends with the row that fills it. A split without rows has one empty shard: datasets wants a file.
    """
    before = np.cumsum(sizes + ROW_BYTES) - (sizes + ROW_BYTES)
    _, place, rows = np.unique(before // shard_bytes, return_inverse=True, return_counts=True)
    counts = rows.tolist() or [0]
    return place.astype(np.int32), [Shard(split, at, len(counts), count) for at, count in enumerate(counts)]


class ShardWriter:
    """Writes one shard of `folder`, batch by batch; `finish` makes it whole, and its receipt after it."""

    def __init__(self, folder: Path, shard: Shard, receipt: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path, self._receipt = folder / shard.name, receipt
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = row_schema()
        self._sink = pa.OSFile(str(part_of(self._path)), "wb")
        self._stream = pa.ipc.new_stream(self._sink, self._schema)
        self._written_schema = written_schema()
        self._written = pq.ParquetWriter(part_of(receipt), self._written_schema)
        self._rows: list[Record] = []
        self._facts: list[Written] = []
        self._bytes = 0
        self.left = shard.rows

    def add(self, record: Record, facts: Written) -> None:
        self._rows.append(record)
        self._facts.append(facts)
        self._bytes += len(record.image)
        self.left -= 1
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._stream.write_batch(_batch(self._rows, self._schema))
            self._rows, self._bytes = [], 0
        if len(self._facts) >= BATCH_ROWS:
            self._flush_facts()

    def _flush_facts(self) -> None:
        import pyarrow as pa

        arrays = [
            pa.array([getattr(facts, kind.name) for facts in self._facts], kind.type) for kind in self._written_schema
        ]
        self._written.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._written_schema))
        self._facts = []

    def finish(self) -> None:
        self._flush()
        if self._facts:
            self._flush_facts()
        self._stream.close()
        self._sink.close()
        self._written.close()
        put_in_place(self._path)
        put_in_place(self._receipt)

    def abandon(self) -> None:
        """Let go of the files; what was written stays unfinished."""
        self._sink.close()
        self._written.close()


def _batch(records: Sequence[Record], schema: Any) -> Any:
    import pyarrow as pa

    images = pa.array([record.image for record in records], pa.binary())
    paths = pa.nulls(len(records), pa.string())
    columns = [pa.StructArray.from_arrays([images, paths], ["bytes", "path"])]
    columns += [pa.array([getattr(record, name) for record in records], schema.field(name).type) for name in _KINDS]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Let Arrow use the system's allocator meanwhile: its own keeps more the longer it works."""
    import pyarrow as pa

    usual = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(usual)


def part_of(path: Path) -> Path:
    """What a file is called while it is being written."""
    return path.with_name(path.name + PART)


def put_in_place(path: Path) -> None:
    """Give a written file its name, once its bytes are safe; a crash leaves either the whole file or none."""
    for name in (part_of(path), path.parent):
        if name == path.parent:
            os.replace(part_of(path), path)
        handle = os.open(name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    part_of(path).write_text(text, encoding="utf-8")
    put_in_place(path)


# --- what datasets wants to find --------------------------------------------------------------------------------

_TEXT: dict[str, Any] = {"dtype": "string", "_type": "Value"}
_TEXTS: dict[str, Any] = {"feature": _TEXT, "_type": "List"}
_KINDS = {
    "question": _TEXT,
    "answer": _TEXT,
    "reference_steps": _TEXTS,
    "choices": _TEXTS,
    "options": _TEXTS,
    "source": _TEXT,
    "id": _TEXT,
}
FEATURES: dict[str, Any] = {"image": {"_type": "Image"}, **_KINDS}  # as Features.to_dict says them


def row_schema() -> Any:
    """The Arrow schema that datasets gives these features; written here since importing datasets takes seconds."""
    import pyarrow as pa

    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kinds = {name: pa.string() if kind is _TEXT else pa.list_(pa.string()) for name, kind in _KINDS.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pa.schema({"image": image, **kinds}, metadata=metadata)


def write_split_files(folder: Path, names: Sequence[str], fingerprint: str) -> None:
    """Beside a split's shards, what makes the folder one that `datasets.load_from_disk` reads."""
    info = {"features": FEATURES, "description": "", "citation": "", "homepage": "", "license": ""}
    state: dict[str, Any] = {
        "_data_files": [{"filename": Path(name).name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_text(folder / "dataset_info.json", json.dumps(info))
    write_text(folder / "state.json", json.dumps(state))
