"""A model's name made a folder of this machine: a path, `s3://…`, or a hub name with `@revision`.

What has to be fetched is fetched once for all processes of a machine, into a place of its own that gets its final name
when it is whole; one that broke off goes on.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from vqa_grpo.contract.failure import ConfigurationError, RetryError, StepError
from vqa_grpo.contract.layout import key_of
from vqa_grpo.storage import publish
from vqa_grpo.storage.reading import FETCH_BYTES, File, list_files, open_file
from vqa_grpo.storage.store import is_remote, normalise
from vqa_grpo.storage.transfer import Progress, nothing

_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]  # never code, never pickles


def local_model(name: str, revision: str = "", progress: Progress = nothing) -> str:
    """The folder that holds a model, fetched first where need be; a folder's name stays as it is.

    `progress` hears of the bytes of a published model. Raises ConfigurationError where there is no such model,
    RetryError where its place does not answer.
    """
    if publish.looks_published(name):
        if not is_remote(name) or publish.is_published(name):
            return str(publish.fetch(name, publish.cache_folder(), progress))
        return str(_from_prefix(name, publish.cache_folder() / "models"))
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


def pinned(name: str) -> str:
    """A hub name with the commit that it means now, so that every process and every retry gets the same weights.

    Any other name stays as it is, and so does a hub name where the hub does not answer.
    """
    hub = _HUB.fullmatch(name)
    if Path(name).expanduser().is_dir() or is_remote(name) or not hub or _COMMIT.fullmatch(hub["revision"] or ""):
        return name
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return f"{hub['name']}@{HfApi().model_info(hub['name'], revision=hub['revision']).sha}"
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _unknown(name, error) from None
    except Exception:  # of the connection, of which each version of the library has its own kinds
        return name


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


def plain_copy(uri: str) -> str:
    """The URI of a model that somebody copied to S3 as it was; ConfigurationError where there is none."""
    _files_of(uri)
    return normalise(uri)


def _files_of(uri: str) -> list[File]:
    files = [file for file in list_files(uri) if "/" not in file.name]
    if not any(file.name == "config.json" for file in files):
        raise ConfigurationError(f"no model lies at {uri}: neither published, nor a config.json; mend model.base")
    return files


def _from_prefix(uri: str, cache: Path) -> Path:
    """A plain copy has no manifest: it is known by names, sizes and tags of its files."""
    files = _files_of(uri)
    final = cache / key_of(uri, [list(file) for file in files])
    if final.is_dir():
        return final
    with publish.turn(final.with_suffix(".lock")):
        if not final.is_dir():
            unfinished = final.with_suffix(".part")
            unfinished.mkdir(exist_ok=True)
            for file in files:
                _download(uri, file, unfinished / file.name)
            unfinished.rename(final)
    return final


def _download(uri: str, file: File, path: Path) -> None:
    if path.is_file() and path.stat().st_size == file.size:  # an earlier try's, whole: see the rename
        return
    staged = path.with_name(f".{path.name}.part")  # written by whoever holds the lock, over what a killed one left
    with open_file(f"{uri}/{file.name}") as theirs, staged.open("wb") as ours:
        shutil.copyfileobj(theirs, ours, FETCH_BYTES)
    if staged.stat().st_size != file.size:
        raise RetryError(f"{uri}/{file.name} changed while it was fetched: try again")
    staged.rename(path)
