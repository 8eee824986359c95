"""CSV and TSV with a header line, pictures in files beside it; lists as JSON or with | between their items."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from typing import Any, TextIO

from vqa_grpo.contract.failure import DataError
from vqa_grpo.data.source import Part, Row, Source, Unreadable, rows_of
from vqa_grpo.data.sources.places import Place, count_rows, damage_of, refuse_empty, splits_of, undamaged
from vqa_grpo.data.sources.records import LISTS, REQUIRED, Columns, place_id, record_of
from vqa_grpo.storage.reading import File

SUFFIXES = (".csv", ".tsv")
LINE_CHARACTERS = 1 << 20


def open_table(place: Place, columns: Columns) -> Source:
    """The rows of every .csv and .tsv file, in UTF-8 with or without a byte-order mark."""
    splits = splits_of(place, SUFFIXES)
    counted = {
        split: count_rows(place, files, lambda data: _count(data, files[0].name))  # noqa: B023 - used at once
        for split, files in splits.items()
    }
    rows = {split: count for split, (count, _) in counted.items()}
    refuse_empty(place.name, rows)
    for file in (file for files in splits.values() for file in files if file.size):
        columns.require(_header(place, file.name), place.where(file.name), (*REQUIRED, *columns.given))

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        for number, (file, header, cells) in rows_of(_rows(place, splits[split]), part):
            picture = partial(place.picture, folder=file.rpartition("/")[0])
            row = cells if isinstance(cells, str) else row_of(header, cells, columns)
            name = place_id(split, number)
            yield number, Unreadable(name, row) if isinstance(row, str) else record_of(row, columns, name, picture)

    return Source(place.name, place.fingerprint, rows, read, all(exact for _, exact in counted.values()))


def row_of(header: list[str], cells: list[str], columns: Columns) -> dict[str, Any] | str:
    """A row by column, its lists taken apart, or the sentence that says why there is none."""
    if len(cells) != len(header):
        return f"the row has {len(cells)} cells, and the header {len(header)}: quote cells that hold the separator"
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
        return "the row is not UTF-8: save the file as UTF-8"
    for column in map(columns.theirs, LISTS):
        if column in row:
            try:
                row[column] = list_of(row[column])
            except (ValueError, RecursionError) as error:
                return f"the column {column} begins like a JSON list and is none: {' '.join(str(error).split())[:200]}"
    return row


def list_of(cell: str) -> Any:
    """The items of a cell.

    >>> list_of('["2003", "2010"]'), list_of("2003 | 2010"), list_of("2003"), list_of("")
    (['2003', '2010'], ['2003', '2010'], ['2003'], [])
    """
    text = cell.strip()
    if text.startswith(("[", "{")):
        return json.loads(text)
    return [item.strip() for item in text.split("|")] if text else []


def _rows(place: Place, files: list[File]) -> Iterator[tuple[str, list[str], list[str] | str]]:
    """File, header and cells of each row; in the place of cells that cannot be told, the sentence that says why."""
    for file in files:
        with place.open(file.name) as opened:
            found = undamaged(_cells(_as_text(opened), file.name), place.where(file.name))
            header = next(found, [])
            for cells in found:
                yield file.name, header if isinstance(header, list) else [], cells


def _cells(text: TextIO, name: str) -> Iterator[list[str] | str]:
    # Of a line without end no more is read at once than csv's own limit on a cell lets through.
    reader = csv.reader(iter(lambda: text.readline(LINE_CHARACTERS), ""), delimiter=_separator(name))
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"the row is not {'TSV' if _separator(name) == chr(9) else 'CSV'}: {error}"
            continue
        if cells:
            yield cells


def _separator(name: str) -> str:
    return "\t" if name.lower().endswith(".tsv") else ","


def _as_text(opened: Any) -> TextIO:
    # What is not UTF-8 becomes lone surrogates, so that one bad row does not end the file.
    return io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _header(place: Place, file: str) -> list[str]:
    with place.open(file) as opened, damage_of(place.where(file)):
        header = next(_cells(_as_text(opened), file), [])
    if isinstance(header, str):
        raise DataError(f"{place.where(file)} has no header line: {header}")
    return header


def _count(data: bytes, name: str) -> int:
    return max(0, sum(1 for _ in _cells(_as_text(io.BytesIO(data)), name)) - 1)
