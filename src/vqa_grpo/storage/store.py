"""One small interface over S3 and plain files: what publishing needs, no more.

A URI is `s3://bucket/prefix` or a path. `minio://` (a Kubeflow pipeline root) means the same as `s3://`.
S3 is configured by the standard AWS variables alone: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, …
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vqa_grpo.contract.failure import ConfigurationError, DataError, RetryError, StepError


class Entry(NamedTuple):
    """An object below a store's prefix: its name relative to the prefix and its size in bytes."""

    name: str
    size: int


class Store(Protocol):
    """A folder of objects. Names are relative and use `/`."""

    uri: str

    def read(self, name: str) -> bytes | None:
        """The object's bytes, or None where there is no such object."""

    def write(self, name: str, data: bytes) -> None: ...

    def create(self, name: str, data: bytes) -> bool:
        """Write only if nothing is there; False when somebody else was first. Atomic."""

    def upload(self, name: str, path: Path, sha256: str) -> None: ...

    def download(self, name: str, path: Path) -> None: ...

    def entries(self, prefix: str = "") -> list[Entry]: ...

    def delete(self, prefix: str) -> None:
        """Delete every object whose name starts with `prefix`."""


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
        return RetryError(
            f"disk full while writing {name or 'a file'}: free some space, or choose another place with --storage"
        )
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
            with final.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def upload(self, name: str, path: Path, sha256: str) -> None:
        with self._staged(name) as (staged, final):
            shutil.copyfile(path, staged)
            staged.replace(final)

    def download(self, name: str, path: Path) -> None:
        with _disk_errors():
            shutil.copyfile(self._root / name, path)

    def entries(self, prefix: str = "") -> list[Entry]:
        start = self._root / prefix if prefix.endswith("/") else self._root
        found = (path for path in sorted(start.rglob("*")) if path.is_file())
        named = (Entry(path.relative_to(self._root).as_posix(), path.stat().st_size) for path in found)
        return [entry for entry in named if entry.name.startswith(prefix)]

    def delete(self, prefix: str) -> None:
        with _disk_errors():
            for entry in self.entries(prefix):
                (self._root / entry.name).unlink(missing_ok=True)
            shutil.rmtree(self._root / prefix, ignore_errors=True) if prefix.endswith("/") else None

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


@cache
def _client() -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    # Path-style addresses work on every S3; virtual-hosted ones only where DNS plays along.
    style = {"addressing_style": "path"} if os.environ.get("AWS_ENDPOINT_URL") else {}
    config = Config(
        s3=style, retries={"mode": "standard", "total_max_attempts": 5}, connect_timeout=5, max_pool_connections=32
    )
    # A session of our own: boto3's shared one would keep the credentials that it found first.
    try:
        session = boto3.Session()
    except BotoCoreError as error:
        raise ConfigurationError(f"the AWS settings of this environment: {error}") from None
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    try:
        return session.client("s3", config=config, region_name=region)
    except ValueError as error:
        raise ConfigurationError(f"AWS_ENDPOINT_URL: {error}; write it like http://host:port") from None


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

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "AWS")
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
    except (BotoCoreError, Boto3Error) as error:
        if isinstance(error.__context__, ClientError):  # a failed upload is wrapped; the answer of S3 says more
            raise _explain_client_error(error.__context__, what, endpoint) from error
        raise RetryError(f"S3 at {endpoint} failed on {what}: {error}; is AWS_ENDPOINT_URL right?") from error


def _explain_client_error(error: Any, what: str, endpoint: str) -> StepError:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return ConfigurationError(f"no such bucket at {endpoint}: {what}; create it or mend the URI")
    if code in ("NoSuchKey", "404") or status == 404:
        return DataError(f"not found at {endpoint}: {what}")
    if status in (401, 403):
        return ConfigurationError(f"{endpoint} refuses access to {what} ({code}): check the credentials and policy")
    return RetryError(f"S3 at {endpoint} failed on {what}: {code} {error}")


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
                return _client().get_object(Bucket=self._bucket, Key=self._key(name))["Body"].read()
        except DataError:
            return None

    def write(self, name: str, data: bytes) -> None:
        with _s3_errors(f"{self.uri}/{name}"):
            _client().put_object(Bucket=self._bucket, Key=self._key(name), Body=data)

    def create(self, name: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        with _s3_errors(f"{self.uri}/{name}"):
            try:
                _client().put_object(Bucket=self._bucket, Key=self._key(name), Body=data, IfNoneMatch="*")
            except ClientError as error:
                # 412: it is there; 409: another writer is at it this very moment and will win or has won.
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                    return False
                raise
        return True

    def upload(self, name: str, path: Path, sha256: str) -> None:
        # The server checks each part against a SHA-256 that boto3 sends along.
        with _disk_errors(), _s3_errors(f"{self.uri}/{name}"):
            extra = {"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": sha256}}
            _client().upload_file(str(path), self._bucket, self._key(name), ExtraArgs=extra)

    def download(self, name: str, path: Path) -> None:
        with _disk_errors(), _s3_errors(f"{self.uri}/{name}"):
            _client().download_file(self._bucket, self._key(name), str(path))

    def entries(self, prefix: str = "") -> list[Entry]:
        found = []
        with _s3_errors(f"{self.uri}/{prefix}"):
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(prefix))
            start = len(self._key(""))
            for page in pages:
                found += [Entry(item["Key"][start:], item["Size"]) for item in page.get("Contents", [])]
        return found

    def delete(self, prefix: str) -> None:
        with _s3_errors(f"{self.uri}/{prefix}"):
            for entry in self.entries(prefix):
                _client().delete_object(Bucket=self._bucket, Key=self._key(entry.name))
