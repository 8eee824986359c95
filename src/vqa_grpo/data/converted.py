"""What a converted data set is: what is known of it, and its records again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record

CONVERSION = "conversion.json"
ROWS = "rows.parquet"


@dataclass(frozen=True)
class ConvertedData:
    """What came out, and what did not. Written as conversion.json, the last file of a finished conversion.

    `digest` covers pictures and texts of every split, in the order of the source whatever the shards are: of a
    part's rows where only a part was converted. `plan` names everything that decides which rows go where.
    """

    digest: str
    splits: dict[str, int]  # rows
    left_out: dict[str, int]  # unusable rows by code
    held_out: dict[str, int]  # rows dropped because their picture is held out elsewhere, by the source's split
    orientations: dict[str, int]  # rows by the EXIF orientation that a reader of raw bytes has to apply
    resized: int  # rows whose picture is no longer the source's bytes
    shards: list[dict[str, Any]]  # name, rows, bytes
    rule: dict[str, Any]
    resize: dict[str, Any] | None
    part: dict[str, int]
    plan: str
    job: str  # the plan, the part and the size of shards: what a folder that was broken off must agree with


def read_conversion(folder: Path) -> ConvertedData | None:
    """What a finished conversion says of itself; None where there is none. Raises DataError on a damaged one."""
    try:
        return ConvertedData(**json.loads((folder / CONVERSION).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder / CONVERSION} is not one of ours or damaged: convert into a new folder") from error


def read_records(folder: Path, split: str) -> Iterator[Record]:
    """The records of a converted split, pictures still encoded; one batch of a shard in memory at a time."""
    import pyarrow as pa

    try:
        files = json.loads((folder / split / "state.json").read_bytes())["_data_files"]
    except FileNotFoundError:
        raise DataError(f"{folder} has no split {split}, or its conversion never ended: convert again") from None
    for file in files:
        with pa.OSFile(str(folder / split / file["filename"])) as opened, pa.ipc.open_stream(opened) as stream:
            for batch in stream:
                yield from (_record(row) for row in batch.to_pylist())


def _record(row: dict[str, Any]) -> Record:
    lists = {name: tuple(row[name]) for name in ("reference_steps", "choices", "options")}
    return Record(**row | lists | {"image": row["image"]["bytes"]})
