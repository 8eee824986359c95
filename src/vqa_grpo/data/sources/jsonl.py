"""JSONL: one JSON object in each line, pictures in files beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from vqa_grpo.data.source import Part, Row, Source, Unreadable, rows_of
from vqa_grpo.data.sources.places import Place, count_rows, head, refuse_empty, splits_of, undamaged
from vqa_grpo.data.sources.records import Columns, kind_of, place_id, record_of
from vqa_grpo.storage.reading import File

SUFFIXES = (".jsonl", ".ndjson")
LINE_BYTES = 64 << 20  # a longer line is one broken row, and is not held in memory


def open_jsonl(place: Place, columns: Columns) -> Source:
    """The rows of every .jsonl file. A line that is no JSON object is an unreadable row, an empty one no row."""
    splits = splits_of(place, SUFFIXES)
    counted = {split: count_rows(place, files, _count) for split, files in splits.items()}
    rows = {split: count for split, (count, _) in counted.items()}
    refuse_empty(place.name, rows)
    for files in splits.values():
        _check_columns(place, columns, files)

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        for number, (file, line) in rows_of(_lines(place, splits[split]), part):
            picture = partial(place.picture, folder=file.rpartition("/")[0])
            row = parse(line)
            name = place_id(split, number)
            yield number, Unreadable(name, row) if isinstance(row, str) else record_of(row, columns, name, picture)

    return Source(place.name, place.fingerprint, rows, read, all(exact for _, exact in counted.values()))


def parse(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or the sentence that says why there is none."""
    if len(line) > LINE_BYTES:
        return f"the line is longer than {LINE_BYTES:,} bytes"
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"the line is not UTF-8: {error.reason} at byte {error.start}"
    except RecursionError:
        return "the line is nested too deeply"
    except ValueError as error:
        return f"the line is not JSON: {' '.join(str(error).split())[:200]}"
    return row if isinstance(row, dict) else f"the line is {kind_of(row)}, not an object"


def _lines(place: Place, files: list[File]) -> Iterator[tuple[str, bytes]]:
    for file in files:
        with place.open(file.name) as opened:
            for line in undamaged(iter(lambda: opened.readline(LINE_BYTES + 1), b""), place.where(file.name)):
                if line.strip():
                    yield file.name, line
                while len(line) > LINE_BYTES and not line.endswith(b"\n"):  # the rest of a line too long
                    line = opened.readline(LINE_BYTES + 1)


def _count(data: bytes) -> int:
    return sum(1 for line in data.split(b"\n") if line.strip())


def _check_columns(place: Place, columns: Columns, files: list[File]) -> None:
    """Every row may lack what it likes, but a column that no row has is a mistake in the configuration."""
    for file in files:
        there: dict[str, None] = {}
        for line in head(place, file.name).split(b"\n")[:100]:
            row = parse(line)
            if isinstance(row, dict):
                there |= dict.fromkeys(row)
        if there:
            return columns.require(there, place.where(file.name))
    return None
