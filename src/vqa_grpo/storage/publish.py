"""Publish once: a folder becomes visible whole, with its digest, or not at all.

    URI/attempt-<id>/manifest.json what the attempt consists of, put first; its digest is the attempt's id
    URI/attempt-<id>/<files>       each with its size and SHA-256
    URI/READY                      put last and only if absent: names the attempt and the manifest's digest

A reader trusts READY, then the manifest whose digest READY names, then each file's digest. A retried step finds
READY and returns; one that broke off goes on in the same attempt, when it has the same to publish. Of two writers
one wins, and both get the winner's result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import DataError, RetryError, StepError
from vqa_grpo.storage import transfer
from vqa_grpo.storage.reading import explain_read_error
from vqa_grpo.storage.store import explain_os_error, is_remote, open_store, sha256_of
from vqa_grpo.storage.transfer import Files, Progress, nothing

READY = "READY"
MANIFEST = "manifest.json"
ATTEMPT = "attempt-"


@dataclass(frozen=True)
class Published:
    """A published folder. `root` is where the files lie; `digest` covers their names and contents, nothing else."""

    uri: str
    root: str
    digest: str
    files: Files
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
        trusted = digest == digest_of(files) and all(type(facts["size"]) is int for facts in files.values())
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


def publish_folder(
    uri: str,
    folder: Path,
    metadata: dict[str, Any] | None = None,
    files: Files | None = None,
    progress: Progress = nothing,
) -> Published:
    """Upload `folder` and mark it ready; returns what is already there if it was published before.

    `files` are its facts, as `describe` gives them, where they are known already. Raises RetryError when an upload
    does not arrive whole. Symbolic links are refused: they could reach outside.
    """
    if (existing := find(uri)) is not None:
        return existing
    store = open_store(uri)
    files = files or describe(folder)
    manifest = {"digest": digest_of(files), "files": files, "metadata": metadata or {}}
    data = json.dumps(manifest, indent=1, sort_keys=True).encode()
    manifest_sha256 = hashlib.sha256(data).hexdigest()
    attempt = f"{ATTEMPT}{manifest_sha256[:16]}"
    store.write(f"{attempt}/{MANIFEST}", data)  # first: it makes an old attempt young again in the eyes of clean-up
    try:
        transfer.send(store, attempt, folder, files, progress)
    except RetryError:
        if (winner := find(uri)) is not None:  # who had the same and was faster has cleared up
            return winner
        raise
    first = store.create(READY, json.dumps({"attempt": attempt, "manifest_sha256": manifest_sha256}).encode())
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


def fetch(uri: str, cache: Path, progress: Progress = nothing) -> Path:
    """A local folder with the files published at `uri`, every digest checked when they arrive.

    Files already on this machine's disk are used where they lie; others are downloaded once into `cache`, under
    their digest, by one of the processes that share it while the others wait. What breaks off goes on next time.
    """
    published = get(uri)
    if not published.root.startswith("s3://"):
        _check_digests(Path(published.root), published)
        return Path(published.root)

    def download(work: Path) -> Path:
        return transfer.receive(open_store(published.root), published.files, work, progress)

    return download_once(cache / published.digest, published.files, download)


def download_once(final: Path, files: Files, download: Callable[[Path], Path]) -> Path:
    """The folder `final` with `files`, made by one of the processes of a machine while the others wait.

    `download` gets a folder that keeps what an earlier try left to go on from, and returns the whole one in it.
    """
    if _has_all(final, files) and _used(final):
        return final
    with turn(final.with_name(f"{final.name}.lock")):
        if _has_all(final, files) and _used(final):
            return final
        shutil.rmtree(final, ignore_errors=True)
        work = final.with_name(f"{final.name}.part")
        try:
            folder = download(work)
        except StepError:
            if final.is_dir():  # a machine that shares this disk, but not our lock, was faster
                return final
            raise
        try:
            folder.rename(final)
        except OSError as error:
            if not final.is_dir():
                raise explain_os_error(error) from error
        shutil.rmtree(work, ignore_errors=True)
    return final


def _used(folder: Path) -> bool:
    """Mark it for `cache.prune`, which goes by the time of the last use; whether it is there still."""
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    except OSError:  # somebody else's folder, or one that nobody may write to: then nobody prunes it either
        pass
    return True


def _has_all(folder: Path, files: Files) -> bool:
    """By names and sizes: a power cut, or who tidies up old files, leaves folders that only seem to be whole."""
    try:
        return folder.is_dir() and all((folder / name).stat().st_size == files[name]["size"] for name in files)
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine is between here and the end; leaves nothing behind."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with path.open("ab") as file:
                with suppress(OSError):  # without locks two may download: the same bytes to the same places
                    fcntl.flock(file, fcntl.LOCK_EX)
                # Who had it before us has deleted it: what we hold then keeps nobody else out.
                if not _lies_at(path, file.fileno()):
                    continue
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
    except OSError as error:
        raise explain_os_error(error) from error


def _lies_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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


def describe(folder: Path) -> Files:
    """Size and SHA-256 of every file below `folder`, by relative name."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: nothing to publish")
    try:
        paths = sorted(_files_below(folder))
        names = [path.relative_to(folder).as_posix() for path in paths]
        with ThreadPoolExecutor(min(transfer.AT_ONCE, os.cpu_count() or 1)) as pool:
            return dict(zip(names, pool.map(facts_of, paths), strict=True))
    except OSError as error:
        raise explain_read_error(error) from error


def _files_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:  # what cannot be listed must not be left out
        raise error

    for at, folders, names in os.walk(folder, onerror=refuse):
        for path in (Path(at, name) for name in (*folders, *names)):
            if path.is_symlink():
                raise DataError(f"{path} is a symbolic link: only plain files can be published")
            if path.is_file():
                yield path


def facts_of(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def digest_of(files: Files) -> str:
    """One digest for a folder's names and contents, the same wherever and whenever it was made."""
    text = json.dumps({name: facts["sha256"] for name, facts in files.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_digests(folder: Path, published: Published) -> None:
    for name, facts in published.files.items():
        path = transfer.inside(folder, name)
        if not path.is_file() or path.stat().st_size != facts["size"] or sha256_of(path) != facts["sha256"]:
            raise DataError(f"{name} of {published.uri} is missing or damaged: its SHA-256 is not the manifest's")
