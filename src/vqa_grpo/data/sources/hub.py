"""A data set of the Hugging Face Hub, streamed: `hub:org/name[@revision][#config]`. Its code is never run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from vqa_grpo.contract.failure import ConfigurationError, RetryError, StepError
from vqa_grpo.data.source import Part, Row, Source, rows_of
from vqa_grpo.data.sources.places import BadPicture, named_splits, refuse_empty
from vqa_grpo.data.sources.records import REQUIRED, Columns, place_id, record_of

PREFIX = "hub:"
_FORM = re.compile(r"hub:(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^#]+))?(?:#(?P<config>.+))?")


class Spec(NamedTuple):
    name: str
    revision: str | None
    config: str | None


def open_hub(text: str, columns: Columns) -> Source:
    """Raises ConfigurationError for a name that is not there or not ours to read, RetryError without a network."""
    spec = spec_of(text)
    if os.path.isdir(spec.name):  # datasets would take it instead
        raise ConfigurationError(
            f"data.source {text}: a folder {spec.name} is here, too: give ./{spec.name} to read that"
        )
    with _explained(text):
        import datasets
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(spec.name, revision=spec.revision).sha or ""
        found = datasets.load_dataset(spec.name, name=spec.config, revision=commit or spec.revision, streaming=True)
    return source_of(found, text, f"{commit}#{spec.config or ''}", columns)


def spec_of(text: str) -> Spec:
    """
    >>> spec_of("hub:org/name@v1.0#small")
    Spec(name='org/name', revision='v1.0', config='small')
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigurationError(f"data.source {text!r}: a data set of the Hub is hub:org/name[@revision][#config]")
    return Spec(found["name"], found["revision"], found["config"])


def source_of(found: Any, name: str, fingerprint: str, columns: Columns) -> Source:
    """The source of streamed splits by name, as `datasets.load_dataset(…, streaming=True)` gives them."""
    own = named_splits(found, name)
    streams = {split: _encoded(found[theirs], columns) for split, theirs in own.items()}
    rows = {}
    for split, stream in streams.items():
        with _explained(name):
            first = list(islice(iter(stream), 1))
        if first:
            columns.require(first[0], f"{name} ({split})", (*REQUIRED, *columns.given))
        rows[split] = _told(found[own[split]], own[split]) or len(first)
    refuse_empty(name, rows)

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        for number, row in rows_of(_stream(streams[split], name), part):
            yield number, record_of(row, columns, place_id(split, number), _no_file)

    return Source(name, fingerprint, rows, read, exact=False)


def _encoded(stream: Any, columns: Columns) -> Any:
    import datasets

    column = columns.theirs("image")
    if isinstance((stream.features or {}).get(column), datasets.Image):
        return stream.cast_column(column, datasets.Image(decode=False))
    return stream


def _told(stream: Any, split: str) -> int:
    """How many rows the data set's own card speaks of; 0 where it does not."""
    splits = getattr(stream.info, "splits", None) or {}
    return (splits[split].num_examples or 0) if split in splits else 0


def _stream(stream: Any, name: str) -> Iterator[dict[str, Any]]:
    rows = iter(stream)
    while True:
        with _explained(name):
            try:
                row = next(rows)
            except StopIteration:
                return
        yield row


def _no_file(path: str) -> bytes:
    raise BadPicture(f"the picture {path[:100]!a} is a file of its own: download the data set and give its folder")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except StepError:
        raise
    except Exception as error:  # datasets and its helpers raise dozens of kinds
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if type(error).__name__ in _MISTAKES:
            raise ConfigurationError(f"{name} cannot be opened ({said}): mend the name, or set HF_TOKEN") from error
        raise RetryError(
            f"{name} cannot be read ({said}); where this machine does not reach the Hub, download the data set "
            "elsewhere and give its folder, or s3://…, as data.source"
        ) from error


_MISTAKES = (
    *(
        "RepositoryNotFoundError",
        "GatedRepoError",
        "RevisionNotFoundError",
        "HFValidationError",
        "DatasetNotFoundError",
    ),
    *("ValueError", "OfflineModeIsEnabled", "DataFilesNotFoundError", "EmptyDatasetError"),
)
