"""Reading what others wrote, on a disk or in S3: files listed, and opened as streams that fetch what is read."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from vqa_grpo.contract.failure import ConfigurationError, DataError, RetryError, StepError
from vqa_grpo.storage.store import _client, _s3_errors, is_remote, normalise, read_whole

FETCH_BYTES = 8 << 20  # one request for so much: enough to hide its latency, little enough to hold


class File(NamedTuple):
    """A file below a URI: its name relative to it, its size in bytes, and a tag that changes with its contents."""

    name: str
    size: int
    tag: str


def list_files(uri: str) -> Iterator[File]:
    """Every file below a folder or prefix, in order of names; none where there is no such folder.

    Hidden files and folders are left out: downloads and Finder leave them about. Links to folders are not followed.
    """
    uri = normalise(uri)
    return _list_remote(uri) if is_remote(uri) else _list_folder(uri, "")


def find_file(uri: str) -> File | None:
    """The facts of the file at a URI, by its own last name; None where there is none."""
    uri = normalise(uri)
    if is_remote(uri):
        try:
            head = _head(uri)
        except DataError:
            return None
        return File(uri.rpartition("/")[2], head["ContentLength"], head["ETag"])
    if not os.path.isfile(uri):
        return None
    return _file(Path(uri).name, os.stat(uri))


def open_file(uri: str) -> BinaryIO:
    """A seekable stream of a file's bytes. Raises DataError where there is none, ConfigurationError where we may not.

    From S3 it reads in ranges, all of one version: a file that is replaced meanwhile is a DataError.
    """
    uri = normalise(uri)
    if is_remote(uri):
        return cast(BinaryIO, io.BufferedReader(_Ranged(uri), FETCH_BYTES))
    try:
        return open(uri, "rb")
    except OSError as error:
        raise explain_read_error(error) from error


def read_file(uri: str, most: int) -> bytes | None:
    """A small file's bytes; None where there is none. Raises ValueError for one of more than `most` bytes."""
    uri = normalise(uri)
    if is_remote(uri):
        return _read_remote(uri, most)
    if not os.path.isfile(uri):  # nor is a pipe one, whose end may never come
        return None
    try:
        _check_size(os.stat(uri).st_size, most)
        return Path(uri).read_bytes()
    except OSError as error:
        raise explain_read_error(error) from error


def explain_read_error(error: OSError) -> StepError:
    if isinstance(error, PermissionError):
        return ConfigurationError(f"no permission to read {error.filename}: mend its mode, or run as its owner")
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return DataError(f"{error.filename}: {error.strerror}")
    return RetryError(f"{error.filename or 'a file'} cannot be read: {error.strerror or error}")


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"{size:,} bytes are more than {most:,}")


# --- plain files ------------------------------------------------------------------------------------------------


def _list_folder(folder: str, above: str) -> Iterator[File]:
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise explain_read_error(error) from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _list_folder(entry.path, f"{above}{entry.name}/")
        elif os.path.isfile(entry.path):  # entry.is_file() raises for a link to itself
            yield _file(above + entry.name, entry.stat())


def _file(name: str, facts: os.stat_result) -> File:
    return File(name, facts.st_size, str(facts.st_mtime_ns))


# --- S3 ---------------------------------------------------------------------------------------------------------


def _bucket_and_key(uri: str) -> dict[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


def _list_remote(uri: str) -> Iterator[File]:
    place = _bucket_and_key(uri)
    prefix = f"{place['Key']}/" if place["Key"] else ""
    with _s3_errors(uri):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=place["Bucket"], Prefix=prefix):
            for item in page.get("Contents", []):
                name = item["Key"][len(prefix) :]
                if name and not name.endswith("/") and not any(part.startswith(".") for part in name.split("/")):
                    yield File(name, item["Size"], item["ETag"])


def _head(uri: str) -> Any:
    place = _bucket_and_key(uri)
    if not place["Key"]:
        raise DataError(f"{uri} is a bucket, not a file")
    with _s3_errors(uri):
        return _client().head_object(**place)


def _read_remote(uri: str, most: int) -> bytes | None:
    try:
        with _s3_errors(uri):
            return read_whole(lambda size: _check_size(size, most), **_bucket_and_key(uri))
    except DataError:
        return None


class _Ranged(io.RawIOBase):
    """One version of an object, read by ranges."""

    def __init__(self, uri: str) -> None:
        head = _head(uri)
        self._uri, self._size, self._tag = uri, head["ContentLength"], head["ETag"]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} lies before the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        data = self._fetch(self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetch(self, start: int, end: int) -> bytes:
        from botocore.exceptions import ClientError

        wanted = _bucket_and_key(self._uri) | {"Range": f"bytes={start}-{end - 1}", "IfMatch": self._tag}
        with _s3_errors(self._uri):
            try:
                return read_whole(**wanted)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                    raise DataError(f"{self._uri} changed while it was read: start again") from None
                raise
