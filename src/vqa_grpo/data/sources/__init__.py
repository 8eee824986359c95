"""Where records come from: a reader for each format, on a disk, in S3, on the Hub or built in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vqa_grpo.config import Data, MixedSource
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.data.source import Source
from vqa_grpo.data.sources import hub, jsonl, parquet, saved, table, webdataset
from vqa_grpo.data.sources.mix import Component, mixed
from vqa_grpo.data.sources.places import Place, look_at
from vqa_grpo.data.sources.records import Columns

__all__ = ["Source", "open_place", "open_source"]

BUILT_IN = "builtin:"
_READERS: dict[tuple[str, ...], Callable[[Place, Columns], Source]] = {
    parquet.SUFFIXES: parquet.open_parquet,
    jsonl.SUFFIXES: jsonl.open_jsonl,
    table.SUFFIXES: table.open_table,
    webdataset.SUFFIXES: webdataset.open_webdataset,
}


def open_source(data: Data, builtin: Callable[[str], Source]) -> Source:
    """The source of a configuration: data.source, or the mixture of data.mix. `builtin` opens builtin:NAME.

    Nothing is read but names, headers and beginnings. Raises ConfigurationError or DataError in one line.
    """
    if not data.mix:
        return _open(data.source, data.columns, builtin)
    return mixed([_component(part, data.columns, builtin) for part in data.mix])


def _component(part: MixedSource, columns: Mapping[str, str], builtin: Callable[[str], Source]) -> Component:
    own = {**columns, **part.columns}
    return Component(part.called(), _open(part.source, own, builtin), part.weight, own)


def _open(place: str, columns: Mapping[str, str], builtin: Callable[[str], Source]) -> Source:
    return builtin(place) if place.startswith(BUILT_IN) else open_place(place, columns)


def open_place(place: str, columns: Mapping[str, str] | None = None) -> Source:
    """The source at a path, at s3://bucket/prefix, or of the Hub at hub:org/name. `columns` are ours → theirs."""
    named = Columns(columns or {})
    if place.startswith(hub.PREFIX):
        return hub.open_hub(place, named)
    found = look_at(place)
    if saved.is_saved(found):
        return saved.open_saved(found, named)
    kinds = [suffixes for suffixes in _READERS if any(file.name.lower().endswith(suffixes) for file in found.files)]
    if not kinds:
        known = ", ".join(suffix for suffixes in _READERS for suffix in suffixes)
        raise ConfigurationError(
            f"data.source {place!r} was not made by datasets.save_to_disk, and holds no file of {known}"
        )
    if len(kinds) > 1:
        mixture = " and ".join(suffixes[0] for suffixes in kinds)
        raise ConfigurationError(f"data.source {place!r} holds {mixture} files: give a folder or file of one kind")
    return _READERS[kinds[0]](found, named)
