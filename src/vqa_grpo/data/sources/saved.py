"""A folder made by `datasets.save_to_disk`, the guide's form: Arrow streams, read batch by batch without a cache.

Between the batches that are wanted the reader jumps from header to header, so that a part of a data set costs
about its part of the bytes, from S3 too. Arrow's own reader cannot jump; the little that is parsed here for that is
https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import REQUIRED_COLUMNS
from vqa_grpo.data.source import Part, Row, Source, Unreadable
from vqa_grpo.data.sources.arrow import check_kinds, rows_in
from vqa_grpo.data.sources.places import Place, damage_of, named_splits, refuse_empty, undamaged
from vqa_grpo.data.sources.records import Columns, place_id, record_of
from vqa_grpo.storage.reading import FETCH_BYTES
from vqa_grpo.storage.store import is_remote

DICT, STATE = "dataset_dict.json", "state.json"
_DICTIONARY, _BATCH = 2, 3  # kinds of messages


class _Message(NamedTuple):
    start: int
    end: int
    rows: int


def is_saved(place: Place) -> bool:
    return place.has(DICT) or place.has(STATE)


def open_saved(place: Place, columns: Columns) -> Source:
    """A Dataset or a DatasetDict; a lone Dataset counts as the split "train"."""
    folders = {"train": ""}
    if place.has(DICT):
        named = named_splits(_json(place, DICT, "splits"), place.name)
        folders = {split: f"{own}/" for split, own in named.items()}
    files = {split: _files(place, folder) for split, folder in folders.items()}
    for split, its_files in files.items():
        if its_files:
            schema = _schema(place, its_files[0])
            where = f"{place.name} ({split})"
            with damage_of(place.name):  # a damaged schema shows when it is looked into
                columns.require(schema.names, where, (*REQUIRED_COLUMNS, *columns.given))
                check_kinds(schema, columns, where, numbers=False)
    counted = {split: _count(place, its_files) for split, its_files in files.items()}
    rows = {split: count for split, (count, _) in counted.items()}
    refuse_empty(place.name, rows)

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        for number, file, row in _rows(place, files[split], part, columns):
            name = place_id(split, number)
            picture = partial(place.picture, folder=file.rpartition("/")[0])
            yield number, Unreadable(name, row) if isinstance(row, str) else record_of(row, columns, name, picture)

    return Source(place.name, place.fingerprint, rows, read, all(exact for _, exact in counted.values()))


def _json(place: Place, file: str, key: str) -> Any:
    # Named after the folder, which is what the user gave and can make again.
    with damage_of(place.name), place.open(file) as opened:
        return json.loads(opened.read())[key]


def _files(place: Place, folder: str) -> list[str]:
    """The Arrow files of a split, in order, by their names in the place."""
    if not place.has(folder + STATE):
        raise DataError(f"{place.name} cannot be read: it has no {folder}{STATE}; save or copy it again")
    with damage_of(place.name):
        names = [folder + str(file["filename"]) for file in _json(place, folder + STATE, "_data_files")]
    for name in names:
        if not place.has(name):
            raise DataError(f"{place.name} cannot be read: it has no {name}; save or copy it again")
    return names


def _schema(place: Place, file: str) -> Any:
    import pyarrow as pa

    with damage_of(place.name), place.open(file) as opened, pa.ipc.open_stream(opened) as stream:
        return stream.schema


def _count(place: Place, files: list[str]) -> tuple[int, bool]:
    """How many rows some files hold; from S3, where each header costs a request, an estimate for large ones."""
    sizes = {file.name: file.size for file in place.files}
    total = sum(sizes[file] for file in files)
    rows = 0
    for file in files:
        with place.open(file) as opened:
            for message in undamaged(_batches(opened), place.name):
                if is_remote(place.uri) and total > 4 * FETCH_BYTES:
                    return max(1, round(message.rows * total / (message.end - message.start))), False
                rows += message.rows
    return rows, True


def _rows(
    place: Place, files: list[str], part: Part, columns: Columns
) -> Iterator[tuple[int, str, dict[str, Any] | str]]:
    first = 0
    for file in files:
        with place.open(file) as opened:
            schema = _schema(place, file)
            for message in undamaged(_batches(opened), place.where(file)):
                if part.is_over(first):
                    return
                if any(map(part.takes, range(first, first + message.rows))):
                    found = _rows_of_message(opened, message, schema, first, part, columns)
                    for number, row in undamaged(found, place.where(file)):
                        if part.is_over(number):
                            return
                        yield number, file, row
                first += message.rows


def _rows_of_message(
    opened: BinaryIO, message: _Message, schema: Any, first: int, part: Part, columns: Columns
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    import pyarrow as pa

    opened.seek(message.start)
    data = opened.read(message.end - message.start)
    yield from rows_in(pa.ipc.read_record_batch(pa.py_buffer(data), schema), first, part, columns)


def _batches(opened: BinaryIO) -> Iterator[_Message]:
    """Every record batch of a stream, its body not read. Raises ValueError for a stream that breaks off."""
    size, start = opened.seek(0, 2), 0
    while True:
        opened.seek(start)
        prefix = opened.read(8)
        marked = prefix[:4] == b"\xff\xff\xff\xff"  # streams before Arrow 0.15 have no such mark
        (length,) = struct.unpack_from("<i", prefix, 4 if marked else 0)
        if length == 0:
            return
        begin = start + (8 if marked else 4)
        opened.seek(begin)
        if not 0 < length <= size - begin:
            raise ValueError("it breaks off in a header")
        kind, body, rows = _facts(opened.read(length))
        end = begin + length + body
        if body < 0 or end > size or rows < 0:
            raise ValueError("it breaks off in a batch")
        if kind == _DICTIONARY:
            raise ValueError("it has dictionary-encoded columns: cast them to plain ones before saving")
        if kind == _BATCH:
            yield _Message(start, end, rows)
        start = end


def _facts(header: bytes) -> tuple[int, int, int]:
    """Kind, length of the body and number of rows of a message, out of its flatbuffer."""
    (message,) = struct.unpack_from("<I", header, 0)
    kind, body = _field(header, message, 1, "<B"), _field(header, message, 3, "<q")
    header_at = _place(header, message, 2)
    if kind != _BATCH or not header_at:
        return kind, body, 0
    (offset,) = struct.unpack_from("<I", header, header_at)
    return kind, body, _field(header, header_at + offset, 0, "<q")


def _field(data: bytes, table: int, number: int, form: str) -> int:
    at = _place(data, table, number)
    return struct.unpack_from(form, data, at)[0] if at else 0


def _place(data: bytes, table: int, number: int) -> int:
    """Where a flatbuffer table's field stands; 0 where it is left out."""
    (back,) = struct.unpack_from("<i", data, table)
    (length,) = struct.unpack_from("<H", data, table - back)
    if 4 + 2 * number >= length:
        return 0
    (offset,) = struct.unpack_from("<H", data, table - back + 4 + 2 * number)
    return table + offset if offset else 0
