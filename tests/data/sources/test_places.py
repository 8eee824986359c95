"""What lies at a place: its splits and fingerprint, what its rows may open, and one line for whatever is wrong."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo.config import Data
from vqa_grpo.contract.failure import ConfigurationError, DataError, RetryError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import WHOLE, Unreadable
from vqa_grpo.data.sources import open_place, open_source, places
from vqa_grpo.storage import reading, store

Lay, Refused = Callable[..., str], Callable[..., str]
ROW = {"image": "1.png", "question": "what?", "answer": "red"}


def line(**more: Any) -> bytes:
    return json.dumps(ROW | more).encode() + b"\n"


# --- splits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data.jsonl", "train"),
        ("train-00000-of-00002.jsonl", "train"),
        ("vqa_Val2014.jsonl", "validation"),
        ("dev.jsonl", "validation"),
        ("deep/valid/part-1.jsonl", "validation"),
        ("test/train.jsonl", "train"),
        ("default/test/0000.jsonl", "test"),
        ("latest.jsonl", "train"),
    ],
)
def test_a_files_name_or_folder_tells_its_split(on_disk: Lay, name: str, split: str) -> None:
    assert open_place(on_disk({name: line()})).rows == {split: 1}


def test_files_without_a_split_beside_others_with_one_may_be_held_out(on_disk: Lay, refused: Refused) -> None:
    said = refused(DataError, on_disk({"train.jsonl": line(), "holdout.jsonl": line()}))
    assert "has files of named splits and also holdout.jsonl: name all of them train, validation or test" in said
    assert "named after several splits" in refused(DataError, on_disk({"train_val.jsonl": line()}))


# --- fingerprint ------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_a_name_a_size_and_what_a_file_holds(lay: Lay) -> None:
    place = lay({"a.jsonl": line(), "images/1.png": b"one"})
    seen = [open_place(place).fingerprint]
    assert open_place(place).fingerprint == seen[0]
    for name, data in {"images/1.png": b"two", "images/2.png": b"", "a.jsonl": line() * 2}.items():
        store.open_store(place).write(name, data)
        seen.append(open_place(place).fingerprint)
    assert len(set(seen)) == 4


def test_hidden_files_are_neither_data_nor_part_of_the_fingerprint(lay: Lay) -> None:
    place = lay({"a.jsonl": line()})
    before = open_place(place).fingerprint
    for name in (".cache/b.jsonl", "._a.jsonl", ".DS_Store"):
        store.open_store(place).write(name, line())
    assert (open_place(place).fingerprint, open_place(place).rows) == (before, {"train": 1})


# --- what rows may open -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "images/../../secret.png",
        "{above}/secret.png",
        "/etc/passwd",
        "{place}/../secret.png",
        "link.png",
        "linked/secret.png",
        "file:///etc/passwd",
        "..",
        "\0.png",
        "https://example.com/1.png",
    ],
)
def test_a_row_opens_nothing_outside_of_its_place(tmp_path: Path, rows_of: Any, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    place = tmp_path / "place"
    place.mkdir()
    (place / "link.png").symlink_to(tmp_path / "secret.png")
    (place / "linked").symlink_to(tmp_path)
    name = name.format(above=tmp_path, place=place)
    (place / "a.jsonl").write_bytes(line(image=name) + line())
    broken, good = rows_of(open_place(str(place)))
    assert isinstance(good, Record)
    assert isinstance(broken, Unreadable)
    assert broken.id == "train/00000000"
    assert any(words in broken.sentence for words in ("lies outside of", "is no file's name", "is an address"))


@pytest.mark.parametrize("name", ["../secret.png", "/secret.png", "x/../../secret.png", "s3://vqa-grpo/secret.png"])
def test_a_row_opens_nothing_outside_of_its_prefix(lay: Lay, rows_of: Any, name: str, s3: str) -> None:
    store.open_store(s3).write("secret.png", b"secret")
    place = f"{s3}/prefix"
    store.open_store(place).write("a.jsonl", line(image=name) + line(image=f"{place}/1.png"))
    store.open_store(place).write("1.png", b"mine")
    broken, good = rows_of(open_place(place))
    assert isinstance(broken, Unreadable)
    assert good.image == b"mine"


@pytest.mark.parametrize("name", [".", "x" * 5000, "a/" * 3000, "loop.png", "pipe.png", "images"])
def test_a_name_that_is_no_file_is_a_missing_picture(tmp_path: Path, rows_of: Any, name: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.jsonl").write_bytes(line(image=name))
    (found,) = rows_of(open_place(str(tmp_path)))
    assert found.image == b""


def test_a_link_within_the_place_is_followed(tmp_path: Path, rows_of: Any) -> None:
    (tmp_path / "real.png").write_bytes(b"mine")
    (tmp_path / "1.png").symlink_to(tmp_path / "real.png")
    (tmp_path / "a.jsonl").write_bytes(line())
    assert [row.image for row in rows_of(open_place(str(tmp_path)))] == [b"mine"]


def test_a_file_too_large_for_a_picture_is_not_read(lay: Lay, rows_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PICTURE_BYTES", 100)
    (found,) = rows_of(open_place(lay({"a.jsonl": line(), "1.png": b"x" * 101})))
    assert "101 bytes are more than 100" in found.sentence


# --- what is wrong ----------------------------------------------------------------------------------------------


def test_a_path_where_nothing_is_says_so_and_what_a_hub_name_looks_like(tmp_path: Path, refused: Refused) -> None:
    said = refused(ConfigurationError, str(tmp_path / "nowhere"))
    assert f"data.source '{tmp_path}/nowhere' is not a folder or file here, and builtin:easy-vqa is built in" in said
    assert "the data set org/name of the Hub is hub:org/name" in refused(ConfigurationError, "org/name")
    assert "only s3://bucket/prefix and plain paths" in refused(ConfigurationError, "gs://bucket/x")


def test_a_place_without_data_is_told_from_an_empty_data_set(lay: Lay, tmp_path: Path, refused: Refused) -> None:
    for place in (lay({"1.png": b"x", "readme.md": b"x"}), str(tmp_path)):
        said = refused(ConfigurationError, place)
        assert "was not made by datasets.save_to_disk, and holds no file of .parquet, .jsonl" in said


def test_files_of_several_kinds_are_not_guessed_at(on_disk: Lay, refused: Refused) -> None:
    said = refused(ConfigurationError, on_disk({"a.jsonl": line(), "b.csv": b"x"}))
    assert "holds .jsonl and .csv files: give a folder or file of one kind" in said


def test_a_wrong_key_or_bucket_is_named(s3: str, refused: Refused) -> None:
    assert f"nothing lies at {s3}/no/such: mend data.source" in refused(ConfigurationError, f"{s3}/no/such")
    assert "no such bucket" in refused(ConfigurationError, "s3://not-made-by-anyone/x")
    assert "names no bucket" in refused(ConfigurationError, "s3://")


@pytest.mark.parametrize("form", ["parquet", "saved", "jsonl", "tar"])
def test_what_goes_wrong_in_s3_while_a_library_reads_is_still_said_by_name(
    form: str, s3: str, tmp_path: Path, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FETCH_BYTES", 10_000)
    if form == "tar":
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for number in range(100):
                for kind, data in (("jpg", b"x" * 2000), ("json", line())):
                    info = tarfile.TarInfo(f"{number}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    elif form == "jsonl":
        (tmp_path / "x.jsonl").write_bytes(line(question="?" * 1000) * 100)
    else:
        rows = table([os.urandom(20_000) for _ in range(300)])
        rows.to_parquet(str(tmp_path / "x.parquet")) if form == "parquet" else rows.save_to_disk(str(tmp_path))
    place = store.open_store(f"{s3}/swapped-{form}")
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name, data in files.items():
        place.write(name, data)
    rows = open_place(place.uri).read("train", WHOLE)
    next(rows)
    for name, data in files.items():
        place.write(name, data + b"more")
    with pytest.raises(DataError, match=r"changed while it was read: start again$"):
        list(rows)


@pytest.fixture
def fresh_client() -> Iterator[None]:
    store._client.cache_clear()
    yield
    store._client.cache_clear()


def test_no_permission_in_s3_is_one_line(
    s3: str, refused: Refused, monkeypatch: pytest.MonkeyPatch, fresh_client: None
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    said = refused(ConfigurationError, f"{s3}/private/set")
    assert f"refuses access to {s3}/private/set" in said
    assert "check the credentials and policy" in said


def test_a_dead_endpoint_is_worth_a_retry(
    s3: str, refused: Refused, monkeypatch: pytest.MonkeyPatch, fresh_client: None
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "is AWS_ENDPOINT_URL right?" in refused(RetryError, f"{s3}/set")


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read everything; nobody may not."""
    if os.getuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())


@pytest.mark.parametrize("closed", [".", "a.jsonl", "1.png"])
def test_no_permission_on_disk_is_one_line(closed: str, refused: Refused) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        place = Path(folder)
        place.chmod(0o755)
        (place / "a.jsonl").write_bytes(line())
        (place / "1.png").write_bytes(b"x")
        (place / closed).chmod(0)
        with nobody():
            said = refused(ConfigurationError, folder)
        (place / closed).chmod(0o700)
    assert f"no permission to read {place / closed}: mend its mode" in said


# --- the configuration's source ---------------------------------------------------------------------------------


def test_built_in_sources_come_from_the_caller(on_disk: Lay) -> None:
    asked: list[str] = []
    given = open_place(on_disk({"a.jsonl": line()}))
    assert open_source(Data(), lambda name: asked.append(name) or given) is given  # type: ignore[func-returns-value]
    assert asked == ["builtin:easy-vqa"]


def test_the_configurations_columns_reach_the_reader(on_disk: Lay) -> None:
    place = on_disk({"a.jsonl": json.dumps({"img": "1.png", "q": "what?", "a": 5.0}).encode()})
    data = Data(source=place, columns={"image": "img", "question": "q", "answer": "a"})
    (record,) = open_source(data, open_place).records("train")
    assert (record.question, record.answer) == ("what?", "5.0")
