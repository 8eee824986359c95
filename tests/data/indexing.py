"""Records in memory as a source, and the index that validation would make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vqa_grpo.contract.record import Record
from vqa_grpo.data.index import IndexWriter, RowFacts, content_digest, picture_digest
from vqa_grpo.data.source import Part, Row, Source, rows_of


def source_of(**splits: list[Record]) -> Source:
    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        return rows_of(iter(splits[split]), part)

    return Source("somewhere", "", {split: len(rows) for split, rows in splits.items()}, read)


@dataclass(frozen=True)
class Facts:
    """What looking at a row would tell, for tests that need more than the usual."""

    fatal: Callable[[Record], str] = lambda record: ""
    kind: Callable[[Record], str] = lambda record: "text"
    size: tuple[int, int] = (24, 16)
    orientation: Callable[[Record], int] = lambda record: 1


def index_of(path: Path, facts: Facts | None = None, /, **splits: list[Record]) -> Path:
    """Write the index of a source made of these rows; gives its path back."""
    facts = facts or Facts()
    writer = IndexWriter(path)
    for split, rows in splits.items():
        for number, record in enumerate(rows):
            picture = picture_digest(record.image)
            content = content_digest(picture, record)
            row = [split, number, record.id, picture, content, picture, b"12345678", len(record.image), *facts.size]
            row += [facts.orientation(record), record.source, facts.kind(record), facts.fatal(record)]
            writer.add(RowFacts(*row))
    writer.close()
    return path
