"""What writers that were killed have left behind: found, and deleted on request.

Only what is surely nobody's goes: an attempt that no READY names, or an upload that never ended, when nothing of it
was written for hours. Whatever READY names stays, and so does everything beside a READY that cannot be read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from time import time
from typing import NamedTuple

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.storage.claim import CLAIM
from vqa_grpo.storage.publish import ATTEMPT, READY, find
from vqa_grpo.storage.store import Entry, Store, open_store

HOURS = 24.0
_PART_OF_ATTEMPT = re.compile(rf"((?:.*/)?{ATTEMPT}[0-9a-f]+/).+")
_CLAIM = re.compile(rf"(?:.*/)?{READY}{re.escape(CLAIM)}[^/]+")


class Leftover(NamedTuple):
    """Something to delete: an attempt (its name ends in /), a claim, or an unfinished upload."""

    kind: str
    name: str
    objects: int
    size: int  # bytes; what lies in an unfinished upload is not told
    hours: float  # since something of it was last written


def clean_up(uri: str, hours: float = HOURS, delete: bool = False) -> list[Leftover]:
    """The leftovers below `uri` that are older than `hours`; with `delete` they are gone afterwards.

    Raises ConfigurationError where `hours` is so low that a slow writer could still be at work.
    """
    if hours < 1:
        raise ConfigurationError(f"{hours:g} hours: an upload may take that long; 1 is the least")
    store = open_store(uri)
    limit = time() - hours * 3600
    uploads = store.unfinished()
    staged = {upload.key for upload in uploads}
    entries = [entry for entry in store.entries() if entry.name not in staged]
    found = []
    for upload in (upload for upload in uploads if upload.started < limit):
        found.append(Leftover("unfinished upload", upload.name, 1, 0, _hours_since(upload.started)))
        if delete:
            store.discard(upload)
    for entry in entries:
        if _CLAIM.fullmatch(entry.name) and entry.modified < limit:
            found.append(Leftover("claim", entry.name, 1, entry.size, _hours_since(entry.modified)))
            if delete:
                store.delete(entry.name)
    for name, own in _attempts(entries).items():
        last = max([*(e.modified for e in own), *(u.started for u in uploads if u.name.startswith(name))])
        if last < limit and not _is_kept(store, name):
            found.append(Leftover("attempt", name, len(own), sum(e.size for e in own), _hours_since(last)))
            if delete:
                store.delete(name)
    return found


def _attempts(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    attempts: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if match := _PART_OF_ATTEMPT.fullmatch(entry.name):
            attempts[match.group(1)].append(entry)
    return attempts


def _is_kept(store: Store, attempt: str) -> bool:
    """Asked at the last moment: READY may have come since the listing."""
    parent = attempt.rstrip("/").rpartition("/")[0]
    try:
        published = find(f"{store.uri}/{parent}" if parent else store.uri)
    except DataError:  # damaged, or not ours: a person must look at it
        return True
    return published is not None and published.root == f"{store.uri}/{attempt.rstrip('/')}"


def _hours_since(moment: float) -> float:
    return round((time() - moment) / 3600, 1)
