"""What is known of each row after one look: enough to split, to report and to convert without decoding again.

An index is a Parquet file with one line for each row of the source, in the source's order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vqa_grpo.contract.record import Record

BATCH_ROWS = 1000
COLUMN_ROWS = 65_536  # a column is read in pieces of this many rows


def picture_digest(data: bytes) -> bytes:
    """SHA-256 of the encoded picture."""
    return hashlib.sha256(data).digest()


def content_digest(picture: bytes, record: Record) -> bytes:
    """SHA-256 of a picture's digest and of all texts; the id does not count, since it may name a place only."""
    texts = [record.question, record.answer, record.reference_steps, record.choices, record.options, record.source]
    return hashlib.sha256(picture + json.dumps(texts, separators=(",", ":")).encode()).digest()


@dataclass(frozen=True)
class RowFacts:
    """One row. Digests are SHA-256, whole; `picture` is that of the encoded bytes, `content` that of picture
    and texts together (not of the id), `asked` that of picture and question."""

    split: str
    number: int  # position in its split
    id: str
    picture: bytes
    content: bytes
    asked: bytes
    answer: bytes  # the first 8 bytes of its normalised text's digest: whether two answers differ
    bytes: int  # size of the encoded picture
    width: int  # as shown, after EXIF orientation; 0 where the picture does not decode
    height: int
    orientation: int  # EXIF orientation, 1 to 8
    source: str
    answer_type: str
    fatal: str  # code of the first problem that keeps it out; empty for a usable row


def schema() -> Any:
    import pyarrow as pa

    kinds = {"str": pa.string(), "int": pa.int64(), "bytes": pa.binary()}
    return pa.schema([(field.name, kinds[str(field.type)]) for field in fields(RowFacts)])


class IndexWriter:
    """Writes facts in batches, so that memory stays flat. `close` makes the file whole."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._schema = schema()
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._batch: list[tuple[Any, ...]] = []

    def add(self, facts: RowFacts) -> None:
        self._batch.append(astuple(facts))
        if len(self._batch) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._batch:
            columns = zip(*self._batch, strict=True)
            arrays = [pa.array(column, kind.type) for column, kind in zip(columns, self._schema, strict=True)]
            self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
            self._batch = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


def number_column(path: Path, name: str, kind: Any = np.int64) -> np.ndarray:
    """One column of whole numbers, (rows,)."""
    return _filled(path, name, lambda column: column.to_numpy(zero_copy_only=False), kind)


def digest_column(path: Path, name: str, length: int = 32) -> np.ndarray:
    """The first bytes of a column of SHA-256 digests, (rows, length) uint8; zeros where a row has none."""

    def digests(column: Any) -> np.ndarray:
        whole = b"".join(digest if len(digest) == 32 else bytes(32) for digest in column.to_pylist())
        return np.frombuffer(whole, np.uint8).reshape(-1, 32)[:, :length]

    return _filled(path, name, digests, np.uint8, (length,))


def text_column(path: Path, name: str) -> tuple[np.ndarray, list[str]]:
    """A column of texts as numbers, (rows,) int32, and the sorted texts that these stand for."""
    codes: dict[str, int] = {}

    def encoded(column: Any) -> np.ndarray:
        found = column.dictionary_encode()
        known = [codes.setdefault(text, len(codes)) for text in found.dictionary.to_pylist()]
        return np.array(known, np.int32)[found.indices.to_numpy(zero_copy_only=False)]

    column = _filled(path, name, encoded, np.int32)
    texts = sorted(codes)
    rank = np.empty(len(texts), np.int32)
    rank[[codes[text] for text in texts]] = np.arange(len(texts))
    return (rank[column] if texts else column), texts


def _filled(path: Path, name: str, convert: Callable[[Any], np.ndarray], kind: Any, shape: Any = ()) -> np.ndarray:
    """A column as one array, filled piece by piece: never the whole column a second time as Arrow has it."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        column, done = np.empty((file.metadata.num_rows, *shape), kind), 0
        for batch in file.iter_batches(COLUMN_ROWS, columns=[name], use_threads=False):
            column[done : done + len(batch)] = convert(batch.column(0))
            done += len(batch)
    return column
