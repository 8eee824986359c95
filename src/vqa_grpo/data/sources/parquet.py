"""Parquet: row groups that hold none of the wanted rows are skipped, the others streamed page by page."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from vqa_grpo.data.source import Part, Row, Source, Unreadable
from vqa_grpo.data.sources.arrow import CHUNK_ROWS, check_kinds, rows_in
from vqa_grpo.data.sources.places import Place, damage_of, refuse_empty, splits_of, undamaged
from vqa_grpo.data.sources.records import REQUIRED, Columns, place_id, record_of

SUFFIXES = (".parquet",)
PAGE_BYTES = 1 << 20  # so much of each column is read ahead, instead of a whole row group of pictures


def open_parquet(place: Place, columns: Columns) -> Source:
    """The rows of every .parquet file; pictures as {bytes, path}, as bytes, or as names of files beside it."""
    import pyarrow.parquet as pq

    splits = splits_of(place, SUFFIXES)
    rows = dict.fromkeys(splits, 0)
    for split, files in splits.items():
        for file in files:
            where = place.where(file.name)
            with damage_of(where), place.open(file.name) as opened, pq.ParquetFile(opened) as found:
                columns.require(found.schema_arrow.names, where, (*REQUIRED, *columns.given))
                check_kinds(found.schema_arrow, columns, where, numbers=True)
                rows[split] += found.metadata.num_rows
    refuse_empty(place.name, rows)

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        first = 0
        for file in splits[split]:
            picture = partial(place.picture, folder=file.name.rpartition("/")[0])
            where = place.where(file.name)
            with place.open(file.name) as opened:
                with damage_of(where):
                    found = pq.ParquetFile(opened, buffer_size=PAGE_BYTES, pre_buffer=False)
                for number, row in undamaged(_rows(found, first, part, columns), where):
                    if part.is_over(number):
                        return
                    name = place_id(split, number)
                    made = Unreadable(name, row) if isinstance(row, str) else record_of(row, columns, name, picture)
                    yield number, made
                first += found.metadata.num_rows
            if part.is_over(first):
                return

    return Source(place.name, place.fingerprint, rows, read)


def _rows(found: Any, first: int, part: Part, columns: Columns) -> Iterator[tuple[int, dict[str, Any] | str]]:
    names = [name for name in found.schema_arrow.names if name in columns.used()]
    for group in range(found.metadata.num_row_groups):
        after = first + found.metadata.row_group(group).num_rows
        if any(map(part.takes, range(first, after))):
            start = first
            for batch in found.iter_batches(CHUNK_ROWS, row_groups=[group], columns=names, use_threads=False):
                if part.is_over(start):
                    return
                yield from rows_in(batch, start, part, columns)
                start += batch.num_rows
        first = after
