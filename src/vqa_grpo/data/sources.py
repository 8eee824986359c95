"""Where records come from. A source streams its rows and knows a cheap fingerprint of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.record import REQUIRED_COLUMNS, Record


@dataclass(frozen=True)
class Source:
    """A data set as it was found. `fingerprint` is made of names, sizes and times, never of contents: it is
    cheap, and says whether to look again. What a data set holds is the dataset digest's business."""

    name: str
    fingerprint: str
    rows: dict[str, int]  # split → number of rows
    records: Callable[[str], Iterator[Record]]


def open_folder(path: str) -> Source:
    """A folder made by `datasets.save_to_disk`, the guide's form: a Dataset or a DatasetDict.

    A lone Dataset counts as the split "train". Raises ConfigurationError or DataError in one line.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigurationError(
            f"data.source {path!r} is not a folder: give a save_to_disk folder or builtin:easy-vqa"
        )
    splits = _load(folder)
    for split, dataset in splits.items():
        missing = [column for column in REQUIRED_COLUMNS if column not in dataset.column_names]
        if missing:
            raise DataError(
                f"{path} ({split}) lacks the column {', '.join(missing)}; it has {', '.join(dataset.column_names)}: "
                "rename or add it before converting"
            )
        _check_kinds(dataset, f"{path} ({split})")
    rows = {split: len(dataset) for split, dataset in splits.items()}
    if not sum(rows.values()):
        raise DataError(f"{path} holds no rows")
    return Source(path, _fingerprint(folder), rows, lambda split: _records(splits[split], split))


def _check_kinds(dataset: Any, name: str) -> None:
    """Refuse a column of another kind: text where a list belongs would be taken apart into letters."""
    for column, kind in dataset.features.items():
        expected = _EXPECTED.get(column)
        if expected and not _is_kind(kind, expected):
            raise DataError(f"the column {column} of {name} holds {kind}, not {expected}: convert it before saving")


_EXPECTED = {
    "image": "pictures",
    "question": "text",
    "answer": "text",
    "source": "text",
    "reference_steps": "lists of text",
    "choices": "lists of text",
    "options": "lists of text",
}


def _is_kind(kind: Any, expected: str) -> bool:
    import datasets

    dtype = getattr(kind, "dtype", None) if isinstance(kind, datasets.Value) else None
    if expected == "pictures":
        return isinstance(kind, datasets.Image) or dtype in ("string", "binary", "large_string", "large_binary", "null")
    if expected == "lists of text":
        inner = getattr(kind, "feature", None)  # a list that is empty in every row has items of no kind
        return dtype == "null" or (inner is not None and _is_kind(inner, "text"))
    return dtype in ("string", "large_string", "null")


def _load(folder: Path) -> dict[str, Any]:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except FileNotFoundError:
        raise ConfigurationError(f"data.source {str(folder)!r} was not made by datasets.save_to_disk") from None
    except IndexError:  # what datasets says of a data set saved without a single row
        raise DataError(f"{folder} holds no rows") from None
    except Exception as error:  # Arrow raises many kinds of error on a damaged file
        raise DataError(f"{folder} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _fingerprint(folder: Path) -> str:
    facts = [
        (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _records(dataset: Any, split: str) -> Iterator[Record]:
    import datasets

    encoded = dataset.cast_column("image", datasets.Image(decode=False))
    for number, row in enumerate(encoded):
        yield Record(
            image=_bytes(row["image"]),
            question=row["question"] or "",
            answer=row["answer"] or "",
            reference_steps=tuple(row["reference_steps"] or ()),
            choices=tuple(row.get("choices") or ()),
            options=tuple(row.get("options") or ()),
            source=row.get("source") or "",
            id=str(row.get("id") or f"{split}/{number:08d}"),
        )


def _bytes(image: dict[str, Any] | None) -> bytes:
    """The encoded picture; empty when the row has none, which the checks then report."""
    if not image:
        return b""
    if image.get("bytes"):
        return image["bytes"]
    try:
        return Path(image["path"]).read_bytes() if image.get("path") else b""
    except OSError:
        return b""
