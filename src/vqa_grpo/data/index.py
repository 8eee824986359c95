"""What is known of each row after one look: enough to split, to report and to convert without decoding again.

An index is a Parquet file with one line for each row of the source, in the source's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

BATCH_ROWS = 1000


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


def read_index(paths: Iterable[Path]) -> Iterator[RowFacts]:
    """The facts of all rows of some indexes, one file after the other, batch by batch."""
    import pyarrow.parquet as pq

    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from (RowFacts(**row) for row in batch.to_pylist())
