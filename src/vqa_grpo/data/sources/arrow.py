"""What the readers of Arrow and Parquet share: the kinds of columns, and rows out of batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vqa_grpo.contract.failure import DataError
from vqa_grpo.data.source import Part
from vqa_grpo.data.sources.records import CONVERSATIONS, LISTS, Columns

CHUNK_ROWS = 32  # rows that become Python objects at once, pictures and all


def check_kinds(schema: Any, columns: Columns, where: str, numbers: bool) -> None:
    """Refuse a column of another kind: text where a list belongs would be taken apart into letters.

    `numbers` lets numbers count as text. The numbers of a Hugging Face ClassLabel never do: they stand for names.
    """
    labels = _class_labels(schema)
    for ours in ("image", "question", "answer", "source", *LISTS):
        column = columns.theirs(ours)
        if column not in schema.names:
            continue
        kind = schema.field(column).type
        expected = "pictures" if ours == "image" else "lists of text" if ours in LISTS else "text"
        fits = {"pictures": _is_picture, "lists of text": _is_list, "text": _is_text}[expected]
        if column in labels or not fits(kind, numbers):
            shown = "the numbers of a ClassLabel" if column in labels else " ".join(str(kind).split())[:200]
            raise DataError(f"the column {column} of {where} holds {shown}, not {expected}: convert it before saving")
    if CONVERSATIONS in schema.names and "dictionary" in str(schema.field(CONVERSATIONS).type):
        raise DataError(f"the column {CONVERSATIONS} of {where} is dictionary-encoded: convert it before saving")


def rows_in(batch: Any, first: int, part: Part, columns: Columns) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The part's rows of a batch whose first row has the number `first`; a sentence where a row cannot be read."""
    batch = batch.select([name for name in batch.schema.names if name in columns.used()])
    for column in batch.columns:
        _validate(column)
    for start in range(0, batch.num_rows, CHUNK_ROWS):
        numbers = range(first + start, first + min(start + CHUNK_ROWS, batch.num_rows))
        if any(map(part.takes, numbers)):
            rows = _rows(batch.slice(start, len(numbers)))
            yield from ((number, row) for number, row in zip(numbers, rows, strict=True) if part.takes(number))


def _validate(column: Any) -> None:
    """Damaged offsets would make Arrow read other memory; damaged text is its row's own affair."""
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise


def _rows(batch: Any) -> list[dict[str, Any] | str]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [f"the row is not UTF-8: {error.reason}"]
        return [row for number in range(batch.num_rows) for row in _rows(batch.slice(number, 1))]


def _class_labels(schema: Any) -> set[str]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return set()


def _is_text(kind: Any, numbers: bool) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type, numbers)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)
    return text or (numbers and (types.is_integer(kind) or types.is_floating(kind)))


def _is_list(kind: Any, numbers: bool) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return "text" in kind.names and all(_is_list(kind.field(name).type, numbers) for name in kind.names)
    return types.is_null(kind) or (_is_any_list(kind) and _is_text(kind.value_type, numbers))


def _is_picture(kind: Any, numbers: bool) -> bool:
    import pyarrow.types as types

    if _is_any_list(kind):
        return _is_picture(kind.value_type, numbers)
    if types.is_struct(kind):
        return bool({"bytes", "path"} & set(kind.names))
    return types.is_binary(kind) or types.is_large_binary(kind) or _is_text(kind, False)


def _is_any_list(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
