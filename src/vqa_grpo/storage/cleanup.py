"""What writers that were killed have left behind: found, and deleted on request.

Only what is surely nobody's goes: an attempt that no READY names, or an upload that never ended, when nothing of it
was written for hours. Whatever READY names stays, and so does everything beside a READY that cannot be read. All of
that is asked again right before each delete: a writer that was thought dead may have come back.
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
# The outermost of several: an attempt may hold a copy of what was published elsewhere.
_PART_OF_ATTEMPT = re.compile(rf"((?:.*?/)?{ATTEMPT}[0-9a-f]{{16}}/).+")
_CLAIM = re.compile(rf"(?:.*/)?{READY}{re.escape(CLAIM)}[^/]+")


class Leftover(NamedTuple):
    """Something to delete: an attempt (its name ends in /), a claim, or an unfinished upload."""

    kind: str
    name: str
    objects: int
    size: int  # bytes; what lies in an unfinished upload is not told
    hours: float  # since something of it was last written
    key: str = ""  # what tells an unfinished upload from others of its name


def clean_up(uri: str, hours: float = HOURS, delete: bool = False) -> list[Leftover]:
    """The leftovers below `uri` that are older than `hours`; with `delete` they are gone afterwards.

    Raises ConfigurationError where `hours` is so low that a slow writer could still be at work.
    """
    if hours < 1:
        raise ConfigurationError(f"{hours:g} hours: an upload may take that long; 1 is the least")
    store = open_store(uri)
    if _PART_OF_ATTEMPT.fullmatch(f"{store.uri}/x"):
        raise ConfigurationError(f"{store.uri} lies inside an attempt, which is one thing: name a folder above it")
    limit = time() - hours * 3600
    found = _leftovers(store, limit)
    return [left for left in found if _delete(store, limit, left)] if delete else found


def _delete(store: Store, limit: float, left: Leftover) -> bool:
    """Delete it if it is nobody's still; whether it was."""
    now = [(other.kind, other.name, other.key) for other in _leftovers(store, limit, left.name)]
    if (left.kind, left.name, left.key) not in now:
        return False
    if left.kind == "unfinished upload":
        store.discard(left.name, left.key)
    else:
        store.delete(left.name)
    return True


def _leftovers(store: Store, limit: float, prefix: str = "") -> list[Leftover]:
    """What begins with `prefix` and was not written to since `limit`."""
    uploads = store.unfinished(prefix)
    staged = {upload.key for upload in uploads}
    entries = [entry for entry in store.entries(prefix) if entry.name not in staged]
    found = [
        Leftover("unfinished upload", upload.name, 1, 0, _hours_since(upload.written), upload.key)
        for upload in uploads
        if upload.written < limit
    ]
    found += [
        Leftover("claim", entry.name, 1, entry.size, _hours_since(entry.modified))
        for entry in entries
        if _CLAIM.fullmatch(entry.name) and entry.modified < limit
    ]
    for name, own in _attempts(entries).items():
        last = max([*(e.modified for e in own), *(u.written for u in uploads if u.name.startswith(name))])
        if last < limit and not _is_kept(store, name, own):
            found.append(Leftover("attempt", name, len(own), sum(e.size for e in own), _hours_since(last)))
    return found


def _attempts(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    attempts: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if match := _PART_OF_ATTEMPT.fullmatch(entry.name):
            attempts[match.group(1)].append(entry)
    return attempts


def _is_kept(store: Store, attempt: str, own: list[Entry]) -> bool:
    """Asked after the listing: READY may have come since."""
    if any(entry.name.endswith(f"/{READY}") for entry in own):  # somebody's own folder, and what is published in it
        return True
    parent = attempt.rstrip("/").rpartition("/")[0]
    try:
        published = find(f"{store.uri}/{parent}" if parent else store.uri)
    except DataError:  # damaged, or not ours: a person must look at it
        return True
    return published is not None and published.root == f"{store.uri}/{attempt.rstrip('/')}"


def _hours_since(moment: float) -> float:
    return round((time() - moment) / 3600, 1)
