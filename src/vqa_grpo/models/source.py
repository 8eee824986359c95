"""A model's name made a folder of this machine: a path, `s3://…`, or a hub name with `@revision`.

What has to be fetched is fetched once for all processes of a machine, into a place of its own that gets its final name
when it is whole; one that broke off goes on.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypeVar

from vqa_grpo.contract.failure import ConfigurationError, RetryError, StepError
from vqa_grpo.contract.layout import key_of
from vqa_grpo.storage import publish, transfer
from vqa_grpo.storage.reading import File, list_files
from vqa_grpo.storage.store import is_remote, normalise, open_store
from vqa_grpo.storage.transfer import Progress, nothing

_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]  # never code, never pickles
_OTHER_WEIGHTS = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.gguf"]
_HUB_SECONDS = 10.0  # to say what a name means
T = TypeVar("T")


class Named(NamedTuple):
    """What a model is called from here on, and where a person should know something about it, one line that says so."""

    name: str
    note: str = ""


def local_model(name: str, revision: str = "", progress: Progress = nothing) -> str:
    """The folder that holds a model, fetched first where need be; a folder's name stays as it is.

    `progress` hears of the bytes that come from S3. Raises ConfigurationError where there is no such model,
    RetryError where its place does not answer.
    """
    if publish.looks_published(name):
        if not is_remote(name) or publish.is_published(name):
            return str(publish.fetch(name, publish.cache_folder(), progress))
        return str(_from_prefix(normalise(name), publish.cache_folder() / "models", progress))
    if Path(name).expanduser().is_dir() or not (hub := _HUB.fullmatch(name)):
        return name
    return _from_hub(hub["name"], hub["revision"] or revision)


def check_source(source: str, called: str) -> None:
    """Refuse what is no model folder, or one that runs only with code of its own.

    `source` is what `local_model` gave, `called` the option or thing that a person named it by.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise ConfigurationError(f"{called} {source}: there is no such folder")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{called} {source} is no model folder: config.json: {error}") from None
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        raise ConfigurationError(
            f"{called} {source} has model_type {kind!r}, which transformers does not support natively; "
            "code in a repository is never executed: use a checkpoint in transformers' own format"
        )


def pinned(name: str) -> Named:
    """A hub name with the commit that it means now, so that every process and every retry gets the same weights.

    Any other name stays as it is, and so does a hub name where the hub does not answer, which the note then says.
    """
    hub = _HUB.fullmatch(name)
    if Path(name).expanduser().is_dir() or is_remote(name) or not hub or _COMMIT.fullmatch(hub["revision"] or ""):
        return Named(name)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    def ask() -> str:
        return str(HfApi().model_info(hub["name"], revision=hub["revision"], timeout=_HUB_SECONDS).sha)

    try:
        return Named(f"{hub['name']}@{_in_time(ask)}")
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _unknown(name, error) from None
    except TimeoutError:
        why = f"no answer in {_HUB_SECONDS:g} s"
    except Exception as error:  # of the connection, of which each version of the library has its own kinds
        why = _line(error)
    return Named(
        name,
        f"the hub does not say which commit {name} is now ({why}), so that a later process or retry may get other "
        f"weights: write {hub['name']}@COMMIT, or a folder",
    )


def _in_time(ask: Callable[[], T]) -> T:
    """What `ask` returns or raises, or TimeoutError: the library's own limit counts anew for each address it tries."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="hub", daemon=True).start()
    return answer.result(_HUB_SECONDS)


def _from_hub(name: str, revision: str) -> str:
    """The hub's own cache keeps what is whole and locks what is not."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return str(snapshot_download(name, revision=revision or None, allow_patterns=_FILES))
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise _unknown(f"{name}@{revision}" if revision else name, error) from None
    except Exception as error:
        if constants.HF_HUB_OFFLINE:
            raise ConfigurationError(f"model {name} is not in the hub's cache, and HF_HUB_OFFLINE is set") from None
        raise RetryError(f"model {name} cannot be fetched from the hub: {_line(error)}") from error


def _unknown(name: str, error: Exception) -> StepError:
    return ConfigurationError(f"model {name}: {_line(error)}; mend the name or revision, or set HF_TOKEN to see it")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def plain_copy(uri: str) -> Named:
    """A model that somebody copied to S3 as it was; ConfigurationError where there is none that may be loaded."""
    names = [file.name for file in _copied(uri)]
    left = [name for name in names if _is_any(name, _OTHER_WEIGHTS)]
    more = f" and {len(left) - 1} more" if left[1:] else ""
    note = f"only safetensors are loaded, never pickles: {left[0]}{more} at {uri} will not be used" if left else ""
    return Named(normalise(uri), note)


def _copied(uri: str) -> list[File]:
    """All that lies there beside a config.json and weights that may be loaded."""
    files = [file for file in list_files(uri) if "/" not in file.name]
    names = [file.name for file in files]
    if "config.json" not in names:
        raise ConfigurationError(f"no model lies at {uri}: neither published, nor a config.json; mend model.base")
    if not any(name.endswith(".safetensors") for name in names):
        others = ", ".join(name for name in names if _is_any(name, _OTHER_WEIGHTS))
        raise ConfigurationError(
            f"the model at {uri} has no *.safetensors{f', only {others}' if others else ''}: pickles are never loaded; "
            "save it with transformers' save_pretrained, and copy that"
        )
    return files


def _is_any(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _from_prefix(uri: str, cache: Path, progress: Progress) -> Path:
    """A plain copy has no manifest: it is known by names, sizes and tags of its files."""

    def wanted() -> list[File]:
        return [file for file in _copied(uri) if _is_any(file.name, _FILES)]

    files = wanted()
    sizes = {file.name: {"size": file.size} for file in files}

    def download(work: Path) -> Path:
        try:
            folder = transfer.receive(open_store(uri), sizes, work, progress)
        except StepError:
            if wanted() == files:
                raise
        else:
            whole = all((folder / file.name).stat().st_size == file.size for file in files)
            if whole and wanted() == files:
                return folder
        shutil.rmtree(work, ignore_errors=True)  # some of it may be of the one version, some of the other
        raise RetryError(f"{uri} changed while it was fetched: try again")

    return publish.download_once(cache / key_of(uri, [list(file) for file in files]), sizes, download)
