"""Where a source lies: a folder, a prefix of S3, or one file of either; what is in it, and what its rows may open."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, TypeVar

from vqa_grpo.contract.failure import ConfigurationError, DataError, StepError
from vqa_grpo.storage.reading import File, explain_read_error, find_file, list_files, open_file, read_file
from vqa_grpo.storage.store import is_remote, normalise

HEAD_BYTES = 4 << 20  # so much of a file of lines is looked at beforehand
PICTURE_BYTES = 256 << 20  # a row that names a larger file does not mean a picture
PICTURE_FOLDER = "images"  # beside what a row says, its picture is looked for here
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
T = TypeVar("T")


class BadPicture(ValueError):
    """A row's picture that is refused, in a sentence about it."""


class Place(NamedTuple):
    """What lies at a URI. `name` is as the user wrote it; `files` are in order and hold no pictures.

    The fingerprint covers the names, sizes and times or tags of all files below, pictures too; of one file given
    by its own name, that file alone.
    """

    name: str
    uri: str  # the folder
    files: tuple[File, ...]
    fingerprint: str

    def has(self, file: str) -> bool:
        return any(file == found.name for found in self.files)

    def where(self, file: str) -> str:
        return f"{self.uri}/{file}"

    def open(self, file: str) -> BinaryIO:
        return open_file(self.where(file))

    def picture(self, path: str, folder: str) -> bytes:
        """The file that a row of a file in `folder` names; empty where there is none.

        Rows are not trusted: what they name must lie in the place itself, whatever links stand in the way.
        Raises BadPicture.
        """
        for number, base in enumerate(dict.fromkeys((folder, "", PICTURE_FOLDER))):
            try:
                inside = self._inside(path, base)
            except BadPicture:
                if number:
                    continue
                raise
            try:
                data = read_file(self.where(inside), PICTURE_BYTES)
            except ValueError as error:
                raise BadPicture(f"the picture {_short(path)}: {error}") from None
            if data is not None:
                return data
        return b""

    def _inside(self, path: str, base: str) -> str:
        """The path relative to the place's own folder."""
        path = path.removeprefix(f"{self.uri}/").removeprefix("file://")
        if "://" in path:
            raise BadPicture(f"the picture {_short(path)} is an address: fetch it, and name the file")
        if is_remote(self.uri):
            inside = posixpath.normpath(posixpath.join(base, path))
            outside = inside.startswith(("/", "..")) or "\0" in inside
        else:
            root = os.path.realpath(self.uri)
            try:
                real = os.path.realpath(os.path.join(root, base, path))
            except (ValueError, OSError):  # a NUL, or a name that no file can have
                raise BadPicture(f"the picture {_short(path)} is no file's name") from None
            inside = os.path.relpath(real, root)
            outside = inside.startswith("..") and os.path.commonpath([real, root]) != root
        if outside:
            raise BadPicture(f"the picture {_short(path)} lies outside of {self.name}: put it there")
        return inside


def look_at(name: str) -> Place:
    """List what lies at a path or URI. Raises ConfigurationError where there is nothing, or nothing we may read."""
    uri = normalise(name)
    digest, files, count = hashlib.sha256(), [], 0
    for file in list_files(uri):
        digest.update(json.dumps(file).encode())
        count += 1
        if not file.name.lower().endswith(_PICTURES):
            files.append(file)
    if count:
        return Place(name, uri, tuple(files), digest.hexdigest())
    file_here = find_file(uri)
    if file_here is None:
        if not is_remote(uri) and os.path.isdir(uri):
            return Place(name, uri, (), digest.hexdigest())
        raise ConfigurationError(_nothing_at(name, uri))
    digest.update(json.dumps(file_here).encode())
    return Place(name, uri.rpartition("/")[0], (file_here,), digest.hexdigest())


def _nothing_at(name: str, uri: str) -> str:
    if is_remote(uri):
        return f"nothing lies at {name}: mend data.source, or upload the data there first"
    hub = f"; the data set {name} of the Hub is hub:{name}" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
    return f"data.source {name!r} is not a folder or file here{hub}, and builtin:easy-vqa is built in"


def splits_of(place: Place, suffixes: tuple[str, ...]) -> dict[str, list[File]]:
    """The place's files of a kind by the split that their names or folders tell; all are train where none tells.

    Raises DataError where only some tell: the others may have been held out.
    """
    files = [file for file in place.files if file.name.lower().endswith(suffixes)]
    told = {file.name: _split_of(file.name) for file in files}
    if not any(told.values()):
        return {"train": files}
    untold = [name for name, split in told.items() if not split]
    if untold:
        raise DataError(
            f"{place.name} has files of named splits and also {', '.join(untold[:5])}: name all of them train, "
            "validation or test, so that nobody trains on what was held out"
        )
    return {
        split: [file for file in files if told[file.name] == split]
        for split in ("train", "validation", "test")
        if split in told.values()
    }


def _split_of(name: str) -> str:
    """The split that a file's name tells, or else its nearest folder that tells one; empty where none does."""
    for part in reversed(name.split("/")):
        found = {SPLIT_NAMES[word] for word in re.findall(r"[a-z]+", part.lower()) if word in SPLIT_NAMES}
        if len(found) > 1:
            raise DataError(f"{name} is named after several splits: name it after one of train, validation and test")
        if found:
            return found.pop()
    return ""


def named_splits(names: Iterable[str], where: str) -> dict[str, str]:
    """Our name of each split → the data set's own. One that we cannot place is refused: it may be held out."""
    own = list(names)
    named = {SPLIT_NAMES.get(name.lower(), ""): name for name in own}
    if "" in named or len(named) < len(own):
        raise DataError(
            f"{where} has the splits {', '.join(own)}: name them train, validation and test, so that nobody "
            "trains on what was held out"
        )
    return named


def count_rows(place: Place, files: list[File], count: Callable[[bytes], int]) -> tuple[int, bool]:
    """How many rows some files of lines hold, and whether that is exact: large ones are judged by their beginning."""
    total = sum(file.size for file in files)
    if total <= HEAD_BYTES:
        return sum(count(head(place, file.name)) for file in files), True
    largest = max(files, key=lambda file: file.size)
    sample = head(place, largest.name)
    if len(sample) < largest.size:
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    return max(1, round(count(sample) * total / len(sample))), False


def head(place: Place, file: str) -> bytes:
    with place.open(file) as opened, damage_of(place.where(file)):
        return opened.read(HEAD_BYTES)


@contextmanager
def damage_of(file: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into one line that names the file."""
    try:
        yield
    except StepError:
        raise
    except PermissionError as error:
        raise explain_read_error(error) from error
    except Exception as error:  # Arrow and tarfile raise many kinds
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{file} cannot be read: {said}; make or copy it again") from error


def undamaged(items: Iterator[T], file: str) -> Iterator[T]:
    """The items of an iterator that reads a file, with its errors explained."""
    while True:
        with damage_of(file):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def refuse_empty(place: str, rows: dict[str, int]) -> None:
    if not sum(rows.values()):
        raise DataError(f"{place} holds no rows: give a data set that has some")


def _short(text: str) -> str:
    return ascii(text if len(text) <= 100 else text[:100] + "…")
