"""WebDataset: tar shards of `key.jpg` and `key.json`, read from front to end; rows not wanted are jumped over."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple, cast

from vqa_grpo.data.source import WHOLE, Part, Row, Source, Unreadable
from vqa_grpo.data.sources.jsonl import parse
from vqa_grpo.data.sources.places import (
    HEAD_BYTES,
    PICTURE_BYTES,
    BadPicture,
    Place,
    refuse_empty,
    splits_of,
    undamaged,
)
from vqa_grpo.data.sources.records import Columns, place_id, record_of
from vqa_grpo.storage.reading import File

SUFFIXES = (".tar", ".tar.gz", ".tgz")
KINDS = ("jpg", "jpeg", "png", "webp", "json")
SAMPLED = 100  # rows that tell how many a shard holds
_NONE = Part(1, 2, 0)  # takes nothing of the rows that are counted


class _Member(NamedTuple):
    key: str
    kind: str  # the extension, in small letters
    size: int
    end: int
    data: bytes  # empty where nobody wanted it


def open_webdataset(place: Place, columns: Columns) -> Source:
    """The samples of every tar file; a sample's text is its .json, its picture the .jpg, .png or .webp beside it."""
    splits = splits_of(place, SUFFIXES)
    rows, exact = {}, True
    for split, files in splits.items():
        rows[split], all_counted = _count(place, files)
        exact = exact and all_counted
    refuse_empty(place.name, rows)
    for files in splits.values():
        _check_columns(place, columns, files)

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        first = 0
        for file in splits[split]:
            for number, sample in _samples(place, file.name, first, part):
                if part.is_over(number):
                    return
                first = number + 1
                if part.takes(number):
                    name = place_id(split, number)
                    row = _row(sample)
                    made = Unreadable(name, row) if isinstance(row, str) else record_of(row, columns, name, _no_file)
                    yield number, made

    return Source(place.name, place.fingerprint, rows, read, exact)


def _no_file(path: str) -> bytes:
    raise BadPicture(f"the picture {path[:100]!a} is a name in the .json: put the picture beside it in the tar")


def _row(sample: list[_Member]) -> dict[str, Any] | str:
    """The sample's JSON, with its picture as the column image and each picture by its extension."""
    row: dict[str, Any] = {}
    for member in sample:
        if member.size > len(member.data):
            return f"{member.key[:100]!a}.{member.kind} has {member.size:,} bytes, more than {PICTURE_BYTES:,}"
        if member.kind != "json":
            row = {"image": member.data} | row | {member.kind: member.data}
    text = next((member.data for member in sample if member.kind == "json"), None)
    if text is None:
        return f"the sample {sample[0].key[:100]!a} has no .json"
    parsed = parse(text)
    if isinstance(parsed, str):
        return parsed.replace("the line", "the sample's .json", 1)
    return {"image": None} | parsed | row


def _samples(place: Place, file: str, first: int, part: Part) -> Iterator[tuple[int, list[_Member]]]:
    """Numbered samples: files that follow each other and have one key, which stands before the name's first dot."""
    with ExitStack() as stack:
        opened = _open(place, file, stack)
        sample: list[_Member] = []
        number = first

        def wanted(key: str) -> bool:
            return part.takes(number + (bool(sample) and sample[0].key != key))

        for member in undamaged(_members(opened, wanted), place.where(file)):
            if sample and sample[0].key != member.key:
                yield number, sample
                sample, number = [], number + 1
            sample.append(member)
        if sample:
            yield number, sample


def _members(opened: BinaryIO, wanted: Callable[[str], bool]) -> Iterator[_Member]:
    """The pictures and texts of a shard. Bytes are read as they come by: a compressed shard cannot go back."""
    with tarfile.open(fileobj=opened, mode="r:") as tar:
        while (found := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # they would add up
            folder, slash, base = found.name.rpartition("/")
            stem, _, kind = base.partition(".")
            key, kind = folder + slash + stem, kind.lower()
            if not found.isreg() or not stem or kind not in KINDS:
                continue
            data = b""
            if found.size <= PICTURE_BYTES and wanted(key):
                opened.seek(found.offset_data)
                data = opened.read(found.size)
                if len(data) < found.size:
                    raise ValueError("it breaks off in a file")
            yield _Member(key, kind, found.size, found.offset_data + found.size, data)
        # tarfile takes any block that is no header for the end.
        opened.seek(tar.offset)
        if opened.read(512) != bytes(512):
            raise ValueError("it breaks off before its end")


def _open(place: Place, file: str, stack: ExitStack) -> BinaryIO:
    opened = stack.enter_context(place.open(file))
    if file.lower().endswith("gz"):
        return cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=opened)))
    return opened


def _count(place: Place, files: list[File]) -> tuple[int, bool]:
    """Exact for one small shard; otherwise judged by the first samples of the first shard."""
    if not files:
        return 0, True
    largest = max(files, key=lambda file: file.size)
    whole = len(files) == 1 and largest.size <= HEAD_BYTES
    count, end = 0, 0
    for _, sample in _samples(place, largest.name, 0, _NONE):
        count, end = count + 1, sample[-1].end
        if count == SAMPLED and not whole:
            break
    if whole or not count:
        return count, True
    return max(1, round(count * sum(file.size for file in files) / end)), False


def _check_columns(place: Place, columns: Columns, files: list[File]) -> None:
    for file in files:
        for _, sample in _samples(place, file.name, 0, WHOLE):
            row = _row(sample)
            if isinstance(row, dict):
                return columns.require(row, place.where(file.name))
    return None
