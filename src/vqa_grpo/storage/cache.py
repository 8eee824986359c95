"""A cache that many runs share: what nobody has fetched from it for long is found, and deleted on request.

Every fetch marks what it gives as used (`publish.download_once`). A job marks what it needs when it starts, so the time
must be longer than the longest job: a file that another machine has open goes all the same.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from time import time

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.storage.cleanup import Leftover
from vqa_grpo.storage.publish import turn
from vqa_grpo.storage.store import explain_os_error

HOURS = 14 * 24.0
_LEAST_HOURS = 24.0
_FETCHED = re.compile(r"[0-9a-f]{16}(?:[0-9a-f]{48})?")  # a digest, or the key of a model that was copied plainly


def prune(folder: Path, hours: float = HOURS, delete: bool = False) -> list[Leftover]:
    """What nobody has used for `hours` of a cache, downloads that nobody went on with included; with `delete` it goes.

    Raises ConfigurationError where `folder` is none, or `hours` so low that a job could still be reading.
    """
    if hours < _LEAST_HOURS:
        raise ConfigurationError(f"{hours:g} hours: a job may read that long; {_LEAST_HOURS:g} is the least")
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder: name the one that VQA_GRPO_CACHE names")
    limit = time() - hours * 3600
    try:
        return [left for path in _kept(folder) if (left := _pruned(folder, path, limit, delete))]
    except OSError as error:
        raise explain_os_error(error) from error


def _kept(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "models"):
        if place.is_dir():
            folders = [path for path in place.iterdir() if path.is_dir() and path.suffix in ("", ".part")]
            yield from sorted({path.with_suffix("") for path in folders if _FETCHED.fullmatch(path.stem)})


def _pruned(folder: Path, path: Path, limit: float, delete: bool) -> Leftover | None:
    """What was kept at `path` and is older than `limit`."""
    if _last_use(path) >= limit:
        return None
    if not delete:
        return _leftover(folder, path)
    with turn(path.with_name(f"{path.name}.lock")):
        left, (whole, part) = _leftover(folder, path), _places(path)  # which takes its time
        if _last_use(path) >= limit:
            return None
        shutil.rmtree(part, ignore_errors=True)
        if whole.is_dir():
            whole.rename(part)  # nobody is to find half of it
            if part.stat().st_mtime >= limit:  # found and marked a moment ago
                part.rename(whole)
                return None
            shutil.rmtree(part, ignore_errors=True)
    return left


def _places(path: Path) -> tuple[Path, Path]:
    """Where it lies once it is whole, and until then."""
    return path, path.with_name(f"{path.name}.part")


def _last_use(path: Path) -> float:
    """Seconds since 1970; a download that goes on writes its journal."""
    whole, part = _places(path)
    return max((each.stat().st_mtime for each in (whole, part, part / "journal") if each.exists()), default=time())


def _leftover(folder: Path, path: Path) -> Leftover:
    files = [file for place in _places(path) for file in place.rglob("*") if file.is_file()]
    size, hours = sum(file.stat().st_size for file in files), (time() - _last_use(path)) / 3600
    return Leftover("unused", path.relative_to(folder).as_posix(), len(files), size, round(hours, 1))
