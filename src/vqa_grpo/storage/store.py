"""One small interface over S3 and plain files: what publishing needs, no more.

A URI is `s3://bucket/prefix` or a path. `minio://` (a Kubeflow pipeline root) means the same as `s3://`.
S3 is configured by the AWS variables alone; README.md lists them. boto3 asks and decides, `bulk` moves the bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vqa_grpo.contract.failure import ConfigurationError, DataError, RetryError, StepError
from vqa_grpo.storage import bulk, claim


class Entry(NamedTuple):
    """An object below a store's prefix: its name relative to the prefix, its size in bytes, when it was written."""

    name: str
    size: int
    modified: float  # seconds since 1970


class Unfinished(NamedTuple):
    """An upload that has begun and not ended: the name it is for, its last sign of life, what tells it from others."""

    name: str
    written: float  # seconds since 1970
    key: str


# What a read gives: bytes, or memory of the library that fetched them, which `os.pwrite` and hashlib take as it is.
Buffer = Any


class Store(Protocol):
    """A folder of objects. Names are relative and use `/`."""

    uri: str

    def read(self, name: str) -> bytes | None:
        """The object's bytes, or None where there is no such object."""

    def write(self, name: str, data: bytes) -> None: ...

    def create(self, name: str, data: bytes) -> bool:
        """Write only if nothing is there; False when somebody else was first. Atomic."""

    def upload(self, name: str, path: Path, sha256: str, parts_at_once: int = 4) -> None: ...

    def holds(self, name: str, sha256: str) -> bool:
        """Whether the object was uploaded whole with this digest."""

    def read_range(self, name: str, start: int, end: int) -> Buffer:
        """The object's bytes from `start` up to, not including, `end`; DataError where there is no such object."""

    def entries(self, prefix: str = "") -> list[Entry]: ...

    def delete(self, prefix: str) -> None:
        """Delete every object whose name starts with `prefix`."""

    def unfinished(self, prefix: str = "") -> list[Unfinished]: ...

    def discard(self, name: str, key: str) -> None:
        """Delete what there is of an unfinished upload."""


def normalise(uri: str) -> str:
    """`file://` becomes a path, `minio://` becomes `s3://`, a path becomes absolute; no slash at the end."""
    if is_remote(uri):
        place = uri.partition("://")[2].rstrip("/")
        if not place.strip("/"):
            raise ConfigurationError(f"storage {uri!r} names no bucket: write s3://bucket/prefix")
        return f"s3://{place}"
    # A misspelt s3:/bucket must not become a folder of that name.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", uri) and not uri.startswith("file://"):
        raise ConfigurationError(f"storage {uri!r}: only s3://bucket/prefix and plain paths are understood")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def is_remote(uri: str) -> bool:
    return uri.startswith(("s3://", "minio://"))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_store(uri: str) -> Store:
    uri = normalise(uri)
    return S3Store(uri) if is_remote(uri) else DiskStore(uri)


# --- plain files ------------------------------------------------------------------------------------------------

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain_os_error(error: OSError) -> StepError:
    """One line that names the file, where the system did, and what to do about it."""
    name = error.filename2 or error.filename  # a copy that fails names its source first
    if error.errno in _FULL:
        return RetryError(f"disk full while writing {name or 'a file'}: free some space, or choose another place")
    if error.errno in _FORBIDDEN:
        return ConfigurationError(f"no permission to write {name or error}: choose a place you own, or mend its mode")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return ConfigurationError(f"{name}: a file stands where a folder must be, or the reverse: choose another place")
    if isinstance(error, FileNotFoundError):
        return ConfigurationError(f"{name}: {error.strerror}" if name else f"not found: {error}")
    return RetryError(f"{name}: {error.strerror}" if name else str(error))


def is_about_the_disk(error: BaseException) -> bool:
    """Whether a person can mend this with space or a mode, whatever the code was doing."""
    return isinstance(error, OSError) and error.errno in (*_FULL, *_FORBIDDEN)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_os_error(error) from error


_STAGED = re.compile(r"\.(.+)\.[0-9a-f]{32}\.part")


class DiskStore:
    """A folder. Every write goes to a temporary name first, so that readers never see half a file."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._root = Path(uri)

    def read(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise explain_os_error(error) from error

    def write(self, name: str, data: bytes) -> None:
        with self._staged(name) as (staged, final):
            staged.write_bytes(data)
            staged.replace(final)

    def create(self, name: str, data: bytes) -> bool:
        with self._staged(name) as (staged, final):
            staged.write_bytes(data)
            try:
                os.link(staged, final)  # unlike a rename, a link never replaces what is there
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._create_in_place(final, data)
            return True

    @staticmethod
    def _create_in_place(final: Path, data: bytes) -> bool:
        """On a file system without links (exFAT, SMB): as exclusive, but a reader may see the file half-written."""
        try:
            with final.open("xb", buffering=0) as file:
                try:
                    left = memoryview(data)
                    while left:
                        left = left[file.write(left) :]
                except BaseException:
                    final.unlink()
                    raise
        except FileExistsError:
            return False
        return True

    def upload(self, name: str, path: Path, sha256: str, parts_at_once: int = 4) -> None:
        with self._staged(name) as (staged, final):
            shutil.copyfile(path, staged)
            staged.replace(final)

    def holds(self, name: str, sha256: str) -> bool:
        path = self._root / name
        with _disk_errors():
            return path.is_file() and sha256_of(path) == sha256

    def read_range(self, name: str, start: int, end: int) -> Buffer:
        path = self._root / name
        if not path.is_file():
            raise DataError(f"not found: {path}")
        with _disk_errors(), path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def entries(self, prefix: str = "") -> list[Entry]:
        with _disk_errors():
            return sorted(entry for entry in self._entries(prefix.rpartition("/")[0]) if entry.name.startswith(prefix))

    def _entries(self, below: str) -> Iterator[Entry]:
        """Every file; what another process renames or deletes meanwhile may be missing."""

        def explain(error: OSError) -> None:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise error

        for folder, _, names in os.walk(self._root / below, onerror=explain):
            for path in (Path(folder, name) for name in names):
                with suppress(FileNotFoundError):
                    facts = path.stat()
                    if stat.S_ISREG(facts.st_mode):
                        yield Entry(path.relative_to(self._root).as_posix(), facts.st_size, facts.st_mtime)

    def delete(self, prefix: str) -> None:
        with _disk_errors():
            for entry in self.entries(prefix):
                (self._root / entry.name).unlink(missing_ok=True)
            shutil.rmtree(self._root / prefix, ignore_errors=True) if prefix.endswith("/") else None

    def unfinished(self, prefix: str = "") -> list[Unfinished]:
        found = []
        for entry in self.entries(prefix[: prefix.rfind("/") + 1]):
            folder, slash, own = entry.name.rpartition("/")
            match = _STAGED.fullmatch(own)
            if match and (name := f"{folder}{slash}{match.group(1)}").startswith(prefix):
                found.append(Unfinished(name, entry.modified, entry.name))
        return found

    def discard(self, name: str, key: str) -> None:
        with _disk_errors():
            (self._root / key).unlink(missing_ok=True)

    @contextmanager
    def _staged(self, name: str) -> Iterator[tuple[Path, Path]]:
        final = self._root / name
        staged = final.with_name(f".{final.name}.{uuid.uuid4().hex}.part")
        with _disk_errors():
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield staged, final
            finally:
                staged.unlink(missing_ok=True)


# --- S3 ---------------------------------------------------------------------------------------------------------


_ATTEMPTS = 3  # botocore repeats a request that fails, but not an answer that breaks off


@cache
def _client() -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    # Path-style addresses work on every S3; virtual-hosted ones only where DNS plays along.
    config = Config(
        s3={"addressing_style": "path"},
        retries={"mode": "standard", "total_max_attempts": 5},
        connect_timeout=5,
        max_pool_connections=32,
    )
    # A session of our own: boto3's shared one would keep the credentials that it found first.
    try:
        session = boto3.Session()
    except BotoCoreError as error:
        raise ConfigurationError(f"the AWS settings of this environment: {error}") from None
    bulk.ca_bundle()
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    try:
        return session.client("s3", config=config, region_name=region)
    except ValueError as error:
        raise ConfigurationError(f"{_endpoint_variable()}: {error}; write it like http://host:port") from None


def _endpoint_variable() -> str:
    return "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"


def read_whole(accept: Callable[[int], object] = lambda size: None, **wanted: str) -> bytes:
    """What `get_object` gives, asked for again where the answer breaks off; `accept` may refuse its size by raising."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError
    from urllib3.exceptions import HTTPError

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            answer = _client().get_object(**wanted)
            accept(answer["ContentLength"])
            return bytes(answer["Body"].read())
        except (HTTPClientError, IncompleteReadError, HTTPError):
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("every attempt returns or raises")


@contextmanager
def _s3_errors(what: str) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )
    from urllib3.exceptions import HTTPError  # botocore lets it through where an error's own text breaks off

    endpoint = os.environ.get(_endpoint_variable()) or "AWS"
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError):
        raise ConfigurationError(
            f"no S3 credentials for {what}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod a role"
        ) from None
    except ClientError as error:
        raise _explain_client_error(error, what, endpoint) from error
    except ParamValidationError as error:
        raise ConfigurationError(f"storage {what}: {' '.join(str(error).split())[:200]}") from None
    except (BotoCoreError, Boto3Error, HTTPError) as error:
        if isinstance(error.__context__, ClientError):  # a failed upload is wrapped; the answer of S3 says more
            raise _explain_client_error(error.__context__, what, endpoint) from error
        raise RetryError(f"S3 at {endpoint} failed on {what}: {error}; is {_endpoint_variable()} right?") from error
    except bulk.BulkError as error:
        raise _explain(error.code, error.status, str(error), what, endpoint) from error


# Refusals that a new pod may not meet: it may get another node, and gets the Secret as it is by then.
_TOKEN = "the session token is wrong, or has run out"  # noqa: S105 - words
_MAY_PASS = {
    "RequestTimeTooSkewed": "this node's clock is wrong",
    "InvalidAccessKeyId": "the access key is wrong, or was replaced since this process began",
    "ExpiredToken": _TOKEN,
    "InvalidToken": _TOKEN,
    "InvalidTokenId": _TOKEN,
    "TokenRefreshRequired": _TOKEN,
}


def _explain_client_error(error: Any, what: str, endpoint: str) -> StepError:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return _explain(code, status, f"{code} {error}", what, endpoint)


_ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed")


def _explain(code: str, status: int, text: str, what: str, endpoint: str) -> StepError:
    if code == "NoSuchBucket":
        return ConfigurationError(f"no such bucket at {endpoint}: {what}; create it or mend the URI")
    if code in ("NoSuchKey", "404") or status == 404:
        return DataError(f"not found at {endpoint}: {what}")
    if code in _MAY_PASS:
        return RetryError(f"{endpoint} refuses access to {what} ({code}): {_MAY_PASS[code]}")
    if status == 301 or code in _ELSEWHERE or "incorrectly configured region" in text:
        return ConfigurationError(
            f"{what} lies in another region than AWS_REGION says: set it to the bucket's ({text})"
        )
    if status in (401, 403):
        return ConfigurationError(f"{endpoint} refuses access to {what} ({code}): check the credentials and policy")
    return RetryError(f"S3 at {endpoint} failed on {what}: {text}")


class S3Store:
    """A bucket's prefix. Single requests are retried by botocore; what still fails is explained in one line."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._bucket, _, self._prefix = uri.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise ConfigurationError(f"storage {uri!r} names no bucket: write s3://bucket/prefix")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def read(self, name: str) -> bytes | None:
        try:
            with _s3_errors(f"{self.uri}/{name}"):
                return read_whole(Bucket=self._bucket, Key=self._key(name))
        except DataError:
            return None

    def write(self, name: str, data: bytes) -> None:
        with _s3_errors(f"{self.uri}/{name}"):
            _client().put_object(Bucket=self._bucket, Key=self._key(name), Body=data, **bulk.put_options(data))

    def create(self, name: str, data: bytes) -> bool:
        with _s3_errors(f"{self.uri}/{name}"):
            return claim.create(claim.Place(_client(), self._bucket, self._key(name)), data)

    def upload(self, name: str, path: Path, sha256: str, parts_at_once: int = 4) -> None:
        # The server checks each part against a SHA-256 that is sent along.
        with _disk_errors():
            path.stat()
        with _s3_errors(f"{self.uri}/{name}"):
            bulk.upload(self._bulk(), self._key(name), path, sha256, parts_at_once)

    def holds(self, name: str, sha256: str) -> bool:
        try:
            with _s3_errors(f"{self.uri}/{name}"):
                head = _client().head_object(Bucket=self._bucket, Key=self._key(name))
        except DataError:
            return False
        return head.get("Metadata", {}).get("sha256") == sha256

    def read_range(self, name: str, start: int, end: int) -> Buffer:
        with _s3_errors(f"{self.uri}/{name}"):
            return bulk.read_range(self._bulk(), self._key(name), start, end)

    def _bulk(self) -> Any:
        return bulk.connect(_client(), self._bucket)

    def entries(self, prefix: str = "") -> list[Entry]:
        start = len(self._key(""))
        return [
            Entry(item["Key"][start:], item["Size"], item["LastModified"].timestamp())
            for item in self._listed("list_objects_v2", "Contents", Prefix=self._key(prefix))
        ]

    def _listed(self, operation: str, member: str, **which: str) -> Iterator[Any]:
        with _s3_errors(self.uri):
            for page in _client().get_paginator(operation).paginate(Bucket=self._bucket, **which):
                yield from page.get(member, [])

    def delete(self, prefix: str) -> None:
        keys = [self._key(entry.name) for entry in self.entries(prefix)]
        with _s3_errors(f"{self.uri}/{prefix}"):
            bulk.delete(self._bulk(), keys)

    def unfinished(self, prefix: str = "") -> list[Unfinished]:
        start = len(self._key(""))
        found = []
        for item in self._listed("list_multipart_uploads", "Uploads", Prefix=self._key(prefix)):
            one = {"Key": item["Key"], "UploadId": item["UploadId"]}
            try:
                parts = [part["LastModified"] for part in self._listed("list_parts", "Parts", **one)]
            except DataError:
                continue  # it ended meanwhile
            written = max([item["Initiated"], *parts]).timestamp()
            found.append(Unfinished(item["Key"][start:], written, item["UploadId"]))
        return found

    def discard(self, name: str, key: str) -> None:
        try:
            with _s3_errors(f"{self.uri}/{name}"):
                _client().abort_multipart_upload(Bucket=self._bucket, Key=self._key(name), UploadId=key)
        except DataError:
            return  # it ended meanwhile
