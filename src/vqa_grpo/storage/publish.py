"""Publish once: a folder becomes visible whole, with its digest, or not at all.

    URI/attempt-<id>/<files>       uploaded first, each with its size and SHA-256
    URI/attempt-<id>/manifest.json what was uploaded
    URI/READY                      put last and only if absent: names the attempt and the manifest's digest

A reader trusts READY, then the manifest whose digest READY names, then each file's digest. A retried step finds
READY and returns. Of two writers one wins, and both get the winner's result.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import DataError, RetryError
from vqa_grpo.storage.store import Store, explain_os_error, is_remote, open_store

READY = "READY"
MANIFEST = "manifest.json"
PARALLEL = 8


@dataclass(frozen=True)
class Published:
    """A published folder. `root` is where the files lie; `digest` covers their names and contents, nothing else."""

    uri: str
    root: str
    digest: str
    files: dict[str, dict[str, Any]]  # name → {"size": bytes, "sha256": hex}
    metadata: dict[str, Any]


def find(uri: str) -> Published | None:
    """What is published at `uri`, or None. Raises DataError where READY and the manifest disagree."""
    store = open_store(uri)
    ready_bytes = store.read(READY)
    if ready_bytes is None:
        return None
    try:
        ready = json.loads(ready_bytes)
        attempt, expected = ready["attempt"], ready["manifest_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{store.uri}/{READY} is not one of ours or damaged: publish to another place") from None
    manifest_bytes = store.read(f"{attempt}/{MANIFEST}")
    if manifest_bytes is None or hashlib.sha256(manifest_bytes).hexdigest() != expected:
        raise DataError(f"{store.uri}/{attempt}/{MANIFEST} is missing or not what {READY} promises: do not trust it")
    try:
        manifest = json.loads(manifest_bytes)
        digest, files, metadata = manifest["digest"], manifest["files"], manifest["metadata"]
        # The digest names a folder in the cache: it must be the files' own, whatever the manifest says.
        trusted = digest == digest_of(files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        trusted = False
    if not trusted:
        raise DataError(f"{store.uri}/{attempt}/{MANIFEST} is not one of ours or damaged: do not trust it")
    return Published(store.uri, f"{store.uri}/{attempt}", digest, files, metadata)


def get(uri: str) -> Published:
    """What is published at `uri`; DataError where there is nothing."""
    published = find(uri)
    if published is None:
        raise DataError(f"nothing is published at {uri}: no {READY} there; did the step before it finish?")
    return published


def publish_folder(uri: str, folder: Path, metadata: dict[str, Any] | None = None) -> Published:
    """Upload `folder` and mark it ready; returns what is already there if it was published before.

    Raises RetryError when an upload does not arrive whole. Symbolic links are refused: they could reach outside.
    """
    if (existing := find(uri)) is not None:
        return existing
    store = open_store(uri)
    attempt = f"attempt-{uuid.uuid4().hex[:12]}"
    files = describe(folder)
    with ThreadPoolExecutor(PARALLEL) as pool:
        jobs = [
            pool.submit(store.upload, f"{attempt}/{name}", folder / name, facts["sha256"])
            for name, facts in files.items()
        ]
        for job in jobs:
            job.result()
    _check_arrived(store, attempt, files)
    manifest = {"digest": digest_of(files), "files": files, "metadata": metadata or {}}
    data = json.dumps(manifest, indent=1, sort_keys=True).encode()
    store.write(f"{attempt}/{MANIFEST}", data)
    ready = {"attempt": attempt, "manifest_sha256": hashlib.sha256(data).hexdigest()}
    first = store.create(READY, json.dumps(ready).encode())
    published = get(uri)
    # A request that S3 fulfilled but whose answer was lost is sent again, and then finds its own READY there.
    if not first and published.root != f"{store.uri}/{attempt}":
        store.delete(f"{attempt}/")
    return published


def publish(uri: str, build: Callable[[Path], dict[str, Any]], work: Path) -> Published:
    """Build a folder under `work` and publish it; `build` is not called when `uri` is ready. Leaves `work` clean."""
    if (existing := find(uri)) is not None:
        return existing
    with scratch(work) as folder:
        return publish_folder(uri, folder, build(folder))


@contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """A fresh folder below `work`, gone afterwards."""
    folder = work / f"tmp-{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise explain_os_error(error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fetch(uri: str, cache: Path) -> Path:
    """A local folder with the files published at `uri`, every digest checked when they arrive.

    Files already on this machine's disk are used where they lie; others are downloaded once into `cache`, under
    their digest, so that processes can share them.
    """
    published = get(uri)
    if not published.root.startswith("s3://"):
        _check_digests(Path(published.root), published)
        return Path(published.root)
    final = cache / published.digest
    if final.is_dir():
        return final
    with scratch(cache) as folder:
        store = open_store(published.root)
        for name in published.files:
            _inside(folder, name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(lambda name: store.download(name, folder / name), published.files))
        _check_digests(folder, published)
        try:
            os.rename(folder, final)
        except OSError as error:
            if not final.is_dir():  # another process of ours may have been faster
                raise explain_os_error(error) from error
    return final


def is_published(uri: str) -> bool:
    return open_store(uri).read(READY) is not None


def cache_folder() -> Path:
    """Where this machine keeps what it fetched: VQA_GRPO_CACHE, or a folder in the home directory."""
    return Path(os.environ.get("VQA_GRPO_CACHE") or Path.home() / ".cache" / "vqa-grpo")


def work_folder() -> Path:
    """Scratch space: VQA_GRPO_WORK, or the system's temporary folder."""
    return Path(os.environ.get("VQA_GRPO_WORK") or Path(tempfile.gettempdir()) / "vqa-grpo")


def looks_published(name: str) -> bool:
    """Whether a model's or data set's name is a storage URI, rather than a plain folder or a hub name."""
    return is_remote(name) or (Path(name) / READY).is_file()


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder`, by relative name."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: nothing to publish")
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise DataError(f"{path} is a symbolic link: only plain files can be published")
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    return files


def digest_of(files: dict[str, dict[str, Any]]) -> str:
    """One digest for a folder's names and contents, the same wherever and whenever it was made."""
    text = json.dumps({name: facts["sha256"] for name, facts in files.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inside(folder: Path, name: str) -> Path:
    """`folder/name`, refused when a manifest's name would lead outside."""
    path = folder / name
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise DataError(f"a manifest names {name!r}, which leads outside its folder: do not trust it")
    return path


def _check_arrived(store: Store, attempt: str, files: dict[str, dict[str, Any]]) -> None:
    sizes = {entry.name.removeprefix(f"{attempt}/"): entry.size for entry in store.entries(f"{attempt}/")}
    lost = [name for name, facts in files.items() if sizes.get(name) != facts["size"]]
    if lost:
        raise RetryError(f"{len(lost)} of {len(files)} files did not arrive whole at {store.uri}, first {lost[0]}")


def _check_digests(folder: Path, published: Published) -> None:
    for name, facts in published.files.items():
        path = _inside(folder, name)
        if not path.is_file() or path.stat().st_size != facts["size"] or sha256_of(path) != facts["sha256"]:
            raise DataError(f"{name} of {published.uri} is missing or damaged: its SHA-256 is not the manifest's")
