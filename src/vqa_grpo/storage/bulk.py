"""Bulk bytes to and from S3 through obstore: boto3 spends milliseconds of Python on every request (README.md).

obstore gets what boto3 found: its endpoint, region, credentials and CA bundle. Its errors leave as `BulkError`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError, DataError

PART = 8 << 20  # bytes of one request: what a thread holds, and what a fault costs
_MOST_PARTS = 10_000  # of one object, says S3
_ATTEMPTS = 3  # obstore repeats requests that fail; an answer that breaks off is repeated here
_ALGORITHMS = ("AES256", "aws:kms", "aws:kms:dsse")


class BulkError(Exception):
    """What S3 or the way to it answered, in one line."""

    def __init__(self, text: str, code: str, status: int) -> None:
        super().__init__(text)
        self.code, self.status = code, status


@dataclass(frozen=True)
class Encryption:
    """Server-side encryption that is asked for with every write; without it the bucket's default counts."""

    algorithm: str = ""
    key_id: str = ""

    def named(self, algorithm: str, key_id: str) -> dict[str, str]:
        """What is asked for, by a library's names."""
        return {name: value for name, value in ((algorithm, self.algorithm), (key_id, self.key_id)) if value}


def encryption() -> Encryption:
    """From AWS_SERVER_SIDE_ENCRYPTION and AWS_SSE_KMS_KEY_ID: boto3 knows no variables for it, obstore these."""
    found = Encryption(os.environ.get("AWS_SERVER_SIDE_ENCRYPTION", ""), os.environ.get("AWS_SSE_KMS_KEY_ID", ""))
    if found.algorithm and found.algorithm not in _ALGORITHMS:
        raise ConfigurationError(
            f"AWS_SERVER_SIDE_ENCRYPTION is {found.algorithm!r}: choose one of {', '.join(_ALGORITHMS)}, or none"
        )
    if found.key_id and not found.algorithm.startswith("aws:kms"):
        raise ConfigurationError("AWS_SSE_KMS_KEY_ID needs AWS_SERVER_SIDE_ENCRYPTION=aws:kms beside it")
    return found


def put_options(data: bytes) -> dict[str, str]:
    """What goes with every put through boto3: encryption, and a checksum that the server compares.

    Without one of ours boto3 sends its own behind the data, in chunks, over https: not every S3 understands that.
    """
    checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
    return {"ChecksumSHA256": checksum, **encryption().named("ServerSideEncryption", "SSEKMSKeyId")}


@cache
def connect(client: Any, bucket: str) -> Any:
    """obstore's view of a bucket, by the settings of a boto3 client.

    Raises botocore's NoCredentialsError where there are no credentials.
    """
    import botocore.session
    from botocore.exceptions import NoCredentialsError
    from obstore.store import S3Store

    session = botocore.session.get_session()
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    endpoint = client.meta.endpoint_url
    options: Any = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=5),
        "read_timeout": timedelta(seconds=60),  # without an answer, the upload of a part included
        "timeout": timedelta(minutes=10),
    }
    if (bundle := ca_bundle()) and endpoint.startswith("https://"):
        options["root_certificate"] = bundle
    config: Any = {
        "aws_endpoint_url_s3": endpoint,
        "region": client.meta.region_name,
        "virtual_hosted_style_request": False,
        "checksum_algorithm": "SHA256",  # each part has one anyway, for the signature
        "disable_bulk_delete": True,  # not every S3 knows it
        **encryption().named("server_side_encryption", "sse_kms_key_id"),
    }
    return S3Store(
        bucket,
        config=config,
        client_options=options,
        retry_config={"max_retries": 6, "retry_timeout": timedelta(minutes=2)},
        credential_provider=_provider(credentials),
    )


def ca_bundle() -> bytes | None:
    """What AWS_CA_BUNDLE names; ConfigurationError where it cannot be read."""
    import botocore.session

    path = botocore.session.get_session().get_config_variable("ca_bundle")
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise ConfigurationError(f"AWS_CA_BUNDLE {path} cannot be read: {error.strerror}") from None


def _provider(credentials: Any) -> Callable[[], Any]:
    """botocore's credentials, asked for again every few minutes: it renews those that expire."""

    def provide() -> Any:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }

    return provide


def upload(store: Any, key: str, path: Path, sha256: str, parts_at_once: int) -> None:
    """Put a file, in parts where it is larger than one; it appears whole or not at all."""
    import obstore

    size = path.stat().st_size
    part = max(PART, -(-size // _MOST_PARTS))
    with _errors():
        obstore.put(
            store,
            key,
            path,
            attributes={"sha256": sha256},
            use_multipart=size > PART,
            chunk_size=part,
            max_concurrency=parts_at_once,
        )


def read_range(store: Any, key: str, start: int, end: int) -> Any:
    """The bytes of an object from `start` to `end`, as a buffer."""
    import obstore

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with _errors():
                return obstore.get_range(store, key, start=start, end=end)
        except BulkError as error:
            if error.status or attempt == _ATTEMPTS:
                raise
    raise AssertionError("every attempt returns or raises")


def delete(store: Any, keys: list[str]) -> None:
    import obstore

    with _errors():
        obstore.delete(store, keys)


@contextmanager
def _errors() -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except ValueError as error:
        raise DataError(f"not a name for S3: {' '.join(str(error).split())}") from None
    except (BaseError, FileNotFoundError) as error:
        line = " ".join(str(error).partition("Debug source:")[0].split())
        code = re.search(r"<Code>(\w+)</Code>", line)
        status = re.search(r"status code: (\d{3})", line)
        text = code.group(1) if code else line.partition("<?xml")[0][:300]
        raise BulkError(text, code.group(1) if code else "", int(status.group(1)) if status else 0) from None
