"""Tar shards of pictures and JSON, read front to end; a broken sample never stops the others, a broken shard does."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import Part, Unreadable
from vqa_grpo.data.sources import open_place, webdataset

Lay, Encoded, Refused = Callable[..., str], Callable[..., bytes], Callable[..., str]
TEXT = {"question": "what?", "answer": "red"}


def shard(members: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def samples(first: int, count: int) -> bytes:
    named = {
        f"{number:06d}.{kind}": value
        for number in range(first, first + count)
        for kind, value in (("jpg", b"picture %d" % number), ("json", TEXT))
    }
    return shard(named)


def test_samples_of_several_shards_are_rows_in_order(lay: Lay, encoded: Encoded, rows_of: Any) -> None:
    one = shard({"a/1.png": encoded(1), "a/1.json": TEXT, "a/1.txt": b"x", "a/2.json": TEXT | {"id": "own"}})
    two = shard({"3.json": TEXT, "3.JPEG": encoded(3), "4.webp": encoded(4), "4.json": TEXT})
    source = open_place(lay({"train-0.tar": one, "train-1.tar": two, "test-0.tar": one}))
    assert set(source.rows) == {"train", "test"}
    assert [(row.image, row.id) for row in rows_of(source)] == [
        (encoded(1), "train/00000000"),
        (b"", "own"),
        (encoded(3), "train/00000002"),
        (encoded(4), "train/00000003"),
    ]


def test_compressed_shards_are_read_as_they_come(lay: Lay, rows_of: Any) -> None:
    place = lay({"train-0.tar.gz": gzip.compress(samples(0, 3)), "train-1.tgz": gzip.compress(samples(3, 2))})
    assert [row.image for row in rows_of(open_place(place))] == [b"picture %d" % number for number in range(5)]


def test_a_column_may_name_the_picture_by_its_extension(on_disk: Lay, rows_of: Any) -> None:
    place = on_disk({"x.tar": shard({"1.png": b"left", "1.jpg": b"right", "1.json": TEXT})})
    assert [row.image for row in rows_of(open_place(place))] == [b"left"]
    assert [row.image for row in rows_of(open_place(place, {"image": "jpg"}))] == [b"right"]


def test_a_broken_sample_is_a_row_of_its_own_and_stops_nothing(on_disk: Lay, rows_of: Any) -> None:
    members = {
        "0.jpg": b"x",
        "0.json": TEXT,
        "1.jpg": b"x",
        "2.jpg": b"x",
        "2.json": b"{",
        "3.json": TEXT | {"answer": []},
    }
    found = rows_of(open_place(on_disk({"x.tar": shard(members | {"4.jpg": b"x", "4.json": TEXT})})))
    assert [isinstance(row, Record) for row in found] == [True, False, False, False, True]
    said = [row.sentence for row in found if isinstance(row, Unreadable)]
    assert said[0] == "the sample '1' has no .json"
    assert "the sample's .json is not JSON" in said[1]
    assert "the column answer holds a list" in said[2]


def test_a_picture_too_large_to_be_one_is_not_held(on_disk: Lay, rows_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "PICTURE_BYTES", 1000)
    members = {"0.jpg": b"x" * 2000, "0.json": TEXT, "1.jpg": b"x", "1.json": TEXT}
    first, second = rows_of(open_place(on_disk({"x.tar": shard(members)})))
    assert "'0'.jpg has 2,000 bytes, more than 1,000" in first.sentence
    assert isinstance(second, Record)


def test_links_and_names_in_the_json_open_nothing(on_disk: Lay, rows_of: Any, tmp_path: Any) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        link = tarfile.TarInfo("0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.jpg")
        tar.addfile(link)
        for name, row in {"0.json": TEXT, "1.json": TEXT | {"image": str(tmp_path / "secret.jpg")}}.items():
            data = json.dumps(row).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    first, second = rows_of(open_place(on_disk({"x.tar": file.getvalue()})))
    assert first.image == b""
    assert "put the picture beside it in the tar" in second.sentence


def test_only_the_samples_of_the_part_are_held(on_disk: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_place(on_disk({"a.tar": samples(0, 1500), "b.tar": samples(1500, 1000)}))
    made: list[bytes] = []
    members = webdataset._members

    def watched(*arguments: Any) -> Any:
        for member in members(*arguments):
            made.append(member.data)
            yield member

    monkeypatch.setattr(webdataset, "_members", watched)
    found = list(source.read("train", Part(1, 2)))
    assert [number for number, _ in found] == list(range(1000, 2000))
    assert all(isinstance(row, Record) and row.image == b"picture %d" % number for number, row in found)
    assert sum(bool(data) for data in made) == 2000
    assert [number for number, _ in source.read("train", Part(limit=3))] == [0, 1, 2]


def test_the_rows_are_counted_in_a_small_shard_and_estimated_in_more(on_disk: Lay) -> None:
    small = open_place(on_disk({"a.tar": samples(0, 150)}))
    assert (small.rows, small.exact) == ({"train": 150}, True)
    several = open_place(on_disk({"a.tar": samples(0, 300), "b.tar": samples(300, 300)}))
    assert not several.exact
    assert several.rows["train"] == pytest.approx(600, rel=0.05)


@pytest.mark.parametrize("keep", [0.5, 0.51, 0.99])
@pytest.mark.parametrize("at_border", [False, True])
def test_a_shard_that_breaks_off_is_named(lay: Lay, refused: Refused, keep: float, at_border: bool) -> None:
    data = samples(0, 40)
    data = data[: data.rindex(b"000039.json") + 1024]  # without its end
    cut = int(len(data) * keep)
    cut -= cut % 1024 if at_border else -7
    assert "/x.tar cannot be read: " in refused(DataError, lay({"x.tar": data[:cut]}))


def test_a_damaged_header_is_not_taken_for_the_end(on_disk: Lay, refused: Refused) -> None:
    data = bytearray(samples(0, 40))
    at = data.index(b"000020.jpg")
    data[at : at + 200] = b"x" * 200
    assert "cannot be read" in refused(DataError, on_disk({"x.tar": bytes(data)}))


def test_what_is_no_tar_or_a_damaged_gzip_is_named(on_disk: Lay, refused: Refused) -> None:
    assert "x.tar cannot be read" in refused(DataError, on_disk({"x.tar": b"not a tar" * 1000}))
    packed = gzip.compress(samples(0, 40))
    assert "x.tgz cannot be read" in refused(DataError, on_disk({"x.tgz": packed[: len(packed) // 2]}))


def test_a_shard_without_samples_is_refused(on_disk: Lay, refused: Refused) -> None:
    assert "holds no rows" in refused(DataError, on_disk({"x.tar": shard({})}))
    assert "holds no rows" in refused(DataError, on_disk({"x.tar": shard({"readme.md": b"x"})}))


def test_a_missing_column_is_named(on_disk: Lay, refused: Refused) -> None:
    place = on_disk({"x.tar": shard({"1.jpg": b"x", "1.json": {"caption": "x", "answer": "y"}})})
    assert "x.tar lacks the column question; it has image, caption, answer, jpg" in refused(DataError, place)
