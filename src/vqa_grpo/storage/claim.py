"""Writing an object only if nobody else has: by a conditional put, or by claims where the store has none.

S3's `If-None-Match: *` decides between any number of writers. Some S3-compatible stores ignore or refuse it, so
each process asks once: it puts an object of its own twice. Where the second put does not fail, writers agree by
claims instead: each puts `NAME.claim-<random>`, waits until all that raced must have done so, and the first in
order of names writes. That needs a store whose listings are up to date and writers that do not pause: one that
sleeps longer than the wait between its last look and its write replaces the object that another wrote meanwhile.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from contextlib import suppress
from typing import Any, NamedTuple

from vqa_grpo.contract.failure import RetryError
from vqa_grpo.storage import bulk

CLAIM = ".claim-"
SETTLE_SECONDS = 2.0
_WAIT_SECONDS = 60.0  # for the writer that goes first
_CONFLICTS = 10  # another writer is at it this very moment: S3 says 409, ask again
_REFUSED = (400, 405, 501)

_known: dict[tuple[str, str], bool] = {}  # endpoint and bucket → whether conditional puts work
_asking = threading.Lock()


class Place(NamedTuple):
    """A key that somebody may write once."""

    client: Any
    bucket: str
    key: str

    def beside(self, suffix: str) -> Place:
        return self._replace(key=self.key + suffix)


def create(place: Place, data: bytes) -> bool:
    """Write `data` if nothing is there; False when somebody else was first. Raises what boto3 raises."""
    if has_conditional_writes(place):
        for _ in range(_CONFLICTS):
            status = _put_if_absent(place, data)
            if status != 409:
                return status == 200
            time.sleep(0.2)
        raise RetryError(f"s3://{place.bucket}/{place.key} is being written by another, again and again: try later")
    return _create_by_claim(place, data)


def has_conditional_writes(place: Place) -> bool:
    """Whether the store keeps `If-None-Match: *`; found out once for each endpoint and bucket of a process."""
    known = (place.client.meta.endpoint_url, place.bucket)
    with _asking:
        if known not in _known:
            _known[known] = _probe(place)
            if not _known[known]:
                print(
                    f"note: the S3 at {known[0]} does not keep conditional writes (If-None-Match): who publishes first "
                    f"is settled by claims, {SETTLE_SECONDS:.0f} s for each; a writer that stalls longer may come too",
                    file=sys.stderr,
                    flush=True,
                )
        return _known[known]


def _probe(place: Place) -> bool:
    own = place.beside(f"{CLAIM}probe-{uuid.uuid4().hex}")
    first = _put_if_absent(own, b"", _REFUSED)
    second = _put_if_absent(own, b"") if first == 200 else first
    _delete(own)
    return second in (409, 412)


def _put_if_absent(place: Place, data: bytes, also: tuple[int, ...] = ()) -> int:
    """The status of a conditional put: 200 written, 412 there already, 409 busy, or one of `also`."""
    from botocore.exceptions import ClientError

    try:
        _put(place, data, IfNoneMatch="*")
    except ClientError as error:
        status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
        if status in (409, 412, *also):
            return status
        raise
    return 200


def _create_by_claim(place: Place, data: bytes) -> bool:
    own = place.beside(CLAIM + uuid.uuid4().hex)
    _put(own, b"")
    try:
        time.sleep(SETTLE_SECONDS)
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            first = _first_claim(place, own.key)
            # Looked at after the claims: a winner takes its claim back once it has written.
            if _exists(place):
                return False
            if first == own.key:
                _put(place, data)
                return True
            if time.monotonic() > deadline:
                raise RetryError(f"s3://{place.bucket}/{place.key}: the writer before this one does not finish: retry")
            time.sleep(0.2)
    finally:
        _delete(own)


def _put(place: Place, data: bytes, **condition: str) -> None:
    place.client.put_object(Bucket=place.bucket, Key=place.key, Body=data, **bulk.put_options(data), **condition)


def _exists(place: Place) -> bool:
    from botocore.exceptions import ClientError

    try:
        place.client.head_object(Bucket=place.bucket, Key=place.key)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return False
        raise
    return True


def _first_claim(place: Place, own: str) -> str:
    """The first claim by name; those that are so old that their writers must be dead do not count."""
    prefix = place.key + CLAIM
    pages = place.client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=prefix)
    made = {item["Key"]: item["LastModified"].timestamp() for page in pages for item in page.get("Contents", [])}
    if own not in made:
        raise RetryError(f"s3://{place.bucket}/{own} was deleted while its writer was at work: retry")
    return min(key for key in made if made[key] > made[own] - 2 * _WAIT_SECONDS)


def _delete(place: Place) -> None:
    """Tidy up; a writer that may not delete leaves it to `vqa-grpo cleanup`."""
    from botocore.exceptions import ClientError

    with suppress(ClientError):
        place.client.delete_object(Bucket=place.bucket, Key=place.key)
