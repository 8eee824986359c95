"""Conversion: pictures untouched, every row what was validated, and a folder that is finished or not there."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from indexing import Facts, index_of, source_of
from PIL import Image

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.record import COLUMNS, Record
from vqa_grpo.data import arrow_shards
from vqa_grpo.data.convert import convert, merge
from vqa_grpo.data.converted import ConvertedData, read_conversion, read_records
from vqa_grpo.data.resize import Resize
from vqa_grpo.data.source import Part, Row, Source, Unreadable
from vqa_grpo.data.splits import SPLITS, SplitRule

Encoded = Callable[..., bytes]
RULE = SplitRule(0, 0.2, 0.2)
ALL_TRAIN = SplitRule(0, 0.0, 0.0)


def converted(
    folder: Path, rule: SplitRule = RULE, facts: Facts | None = None, /, *, splits: dict[str, list[Record]], **more: Any
) -> ConvertedData:
    """Index and convert rows in memory into `folder`/out."""
    folder.mkdir(exist_ok=True)
    index = index_of(folder / "index.parquet", facts, **splits)
    return convert(source_of(**splits), index, rule, folder / "out", **more)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everything(folder: Path) -> list[Record]:
    return [record for split in SPLITS for record in read_records(folder, split)]


@pytest.fixture(scope="module")
def rows(encoded: Encoded) -> list[Record]:
    """Sixty pictures with three questions each."""
    return [
        Record(encoded(number), f"question {asked}?", "red", ("One step.",), id=f"{number}/{asked}")
        for number in range(60)
        for asked in range(3)
    ]


@pytest.fixture(scope="module")
def many() -> list[Record]:
    """Enough rows for several blocks; nothing here decodes, so neither need the pictures."""
    return [Record(f"{number // 2}".encode() * 40, f"{number}?", "red", id=str(number)) for number in range(3210)]


# --- what is written --------------------------------------------------------------------------------------------


def test_the_guides_own_example_comes_out_as_it_went_in(encoded: Encoded, tmp_path: Path) -> None:
    steps = (
        "Check for visible text related to brands on the mobile phone in the image.",
        "Identify the brand text 'NOKIA' in close proximity to the mobile phone.",
        "Verify there are no other text labels or logos visible on the mobile phone.",
        "Return the exact answer string.",
    )
    picture = encoded("navy", "JPEG", (1024, 730))
    record = Record(picture, "what is the brand of phone?", "nokia", steps, source="textvqa", id="train/00000000")
    converted(tmp_path, ALL_TRAIN, splits={"train": [record]})
    assert list(read_records(tmp_path / "out", "train")) == [record]
    row = datasets.load_from_disk(str(tmp_path / "out"))["train"][0]
    assert row["image"].size == (1024, 730)
    assert (row["question"], row["answer"]) == ("what is the brand of phone?", "nokia")
    assert (row["reference_steps"], row["choices"], row["options"]) == (list(steps), [], [])
    assert row["source"] == "textvqa"


def test_the_bytes_of_every_kind_of_picture_pass_untouched(encoded: Encoded, tmp_path: Path) -> None:
    originals = [encoded("red", "JPEG"), encoded("blue", "PNG"), encoded("green", "WEBP"), encoded("red", "GIF")]
    converted(tmp_path, ALL_TRAIN, splits={"train": [Record(data, "?", "red") for data in originals]})
    assert [record.image for record in read_records(tmp_path / "out", "train")] == originals


def test_every_field_of_a_record_comes_back(encoded: Encoded, tmp_path: Path) -> None:
    full = Record(encoded(), "Wöß?", "B", ("One.", "Two."), ("x", "y"), ("p", "q"), "textvqa", "my-id")
    bare = Record(encoded(), "Which?", "red", id="other")
    converted(tmp_path, ALL_TRAIN, splits={"train": [full, bare]})
    assert list(read_records(tmp_path / "out", "train")) == [full, bare]


def test_the_folder_is_one_that_datasets_loads_whatever_its_shards(rows: list[Record], tmp_path: Path) -> None:
    result = converted(tmp_path, splits={"train": rows}, shard_bytes=20_000)
    assert len(result.shards) > 6
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert isinstance(loaded, datasets.DatasetDict)
    assert list(loaded) == list(SPLITS)
    assert {split: len(part) for split, part in loaded.items()} == result.splits
    assert sorted(loaded["train"].column_names) == sorted(COLUMNS)
    assert loaded["train"]["id"][:] == [record.id for record in read_records(tmp_path / "out", "train")]
    row = loaded["train"][0]
    assert (row["image"].size, row["reference_steps"], row["options"]) == ((24, 16), ["One step."], [])
    assert datasets.load_from_disk(str(tmp_path / "out" / "test")).num_rows == result.splits["test"]


def test_columns_are_described_as_datasets_would() -> None:
    text, texts = datasets.Value("string"), datasets.List(datasets.Value("string"))
    lists = dict.fromkeys(("reference_steps", "choices", "options"), texts)
    features = datasets.Features(
        {"image": datasets.Image(), "question": text, "answer": text, **lists, "source": text, "id": text}
    )
    assert datasets.Features.from_dict(arrow_shards.FEATURES) == features
    assert arrow_shards.row_schema().equals(features.arrow_schema)
    assert datasets.Features.from_arrow_schema(arrow_shards.row_schema()) == features


def test_an_empty_split_is_there_and_loads(rows: list[Record], tmp_path: Path) -> None:
    converted(tmp_path, ALL_TRAIN, splits={"train": rows})
    assert list(read_records(tmp_path / "out", "test")) == []
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 180, "validation": 0, "test": 0}
    assert loaded["test"].features == loaded["train"].features


def test_rows_keep_the_order_of_the_source_over_batches_and_shards(many: list[Record], tmp_path: Path) -> None:
    result = converted(tmp_path, ALL_TRAIN, splits={"train": many}, shard_bytes=1_000_000)
    assert sum(shard["rows"] > 0 for shard in result.shards) == 3
    assert list(read_records(tmp_path / "out", "train")) == many


def test_a_batch_ends_before_large_pictures_pile_up(tmp_path: Path) -> None:
    import pyarrow as pa

    large = [Record(os.urandom(900_000), "?", "red") for _ in range(7)]
    converted(tmp_path, ALL_TRAIN, splits={"train": large})
    with pa.ipc.open_stream(tmp_path / "out/train/data-00000-of-00001.arrow") as stream:
        assert [len(batch) for batch in stream] == [3, 3, 1]


def test_what_is_known_of_each_row_stands_beside_the_data_set(rows: list[Record], tmp_path: Path) -> None:
    turned = Facts(orientation=lambda record: 6 if record.id.startswith("7/") else 1, size=(16, 24))
    result = converted(tmp_path, RULE, turned, splits={"train": rows}, shard_bytes=20_000)
    assert result.orientations == {"1": 177, "6": 3}
    assert read_conversion(tmp_path / "out") == result
    table = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert [row["id"] for row in table] == [record.id for record in everything(tmp_path / "out")]
    assert {row["id"] for row in table if row["orientation"] == 6} == {"7/0", "7/1", "7/2"}
    assert {(row["width"], row["height"]) for row in table} == {(16, 24)}
    assert sum(row["split"] == "test" for row in table) == result.splits["test"]


def test_unusable_rows_are_left_out_and_counted_by_code(rows: list[Record], tmp_path: Path) -> None:
    facts = Facts(fatal=lambda record: {"3": "image_bomb", "4": "answer_empty"}.get(record.id.partition("/")[0], ""))
    result = converted(tmp_path, ALL_TRAIN, facts, splits={"train": rows})
    assert result.left_out == {"answer_empty": 3, "image_bomb": 3}
    assert result.splits["train"] == 174
    assert not {record.id for record in everything(tmp_path / "out")} & {"3/0", "4/2"}


def test_a_row_that_is_no_record_is_left_out_when_validation_said_so(rows: list[Record], tmp_path: Path) -> None:
    index = index_of(tmp_path / "index", Facts(fatal=lambda r: "row_unreadable" if r.id == "0/1" else ""), train=rows)

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        for number, record in enumerate(rows):
            yield number, Unreadable("0/1", "not JSON") if number == 1 else record

    result = convert(Source("x", "", {"train": 180}, read), index, ALL_TRAIN, tmp_path / "out")
    assert (result.splits["train"], result.left_out) == (179, {"row_unreadable": 1})


def test_a_planted_duplicate_is_written_on_one_side_only(rows: list[Record], tmp_path: Path) -> None:
    planted = replace(rows[30], question="asked again?", id="planted")
    result = converted(tmp_path, ALL_TRAIN, splits={"train": rows, "test": [planted]})
    assert result.splits == {"train": 177, "validation": 0, "test": 1}
    assert result.held_out == {"train": 3}
    assert rows[30].image not in {record.image for record in read_records(tmp_path / "out", "train")}


def test_a_limit_takes_the_first_rows_of_each_split(rows: list[Record], tmp_path: Path) -> None:
    result = converted(tmp_path, ALL_TRAIN, splits={"train": rows[30:], "test": rows[:30]}, part=Part(limit=7))
    assert result.splits == {"train": 7, "validation": 0, "test": 7}
    assert list(read_records(tmp_path / "out", "test")) == rows[:7]


# --- what is refused --------------------------------------------------------------------------------------------


def test_nothing_left_to_train_on_is_an_error(rows: list[Record], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of somewhere is left for training"):
        converted(tmp_path, SplitRule(0, 0.5, 0.5), splits={"train": rows})
    with pytest.raises(DataError, match="no row of somewhere is left for training"):
        converted(tmp_path, splits={"train": [], "test": rows})


CHANGES: dict[str, Callable[[list[Record]], list[Record]]] = {
    "a picture": lambda rows: [*rows[:50], replace(rows[50], image=b"other"), *rows[51:]],
    "an answer": lambda rows: [*rows[:50], replace(rows[50], answer="blue"), *rows[51:]],
    "a step": lambda rows: [*rows[:50], replace(rows[50], reference_steps=("Two.",)), *rows[51:]],
    "the order": lambda rows: rows[:50] + rows[51:] + rows[50:51],
    "a row too many": lambda rows: [*rows, rows[0]],
    "a row too few": lambda rows: rows[:-1],
    "no rows": lambda rows: [],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changed_since_is_refused_in_one_line(rows: list[Record], tmp_path: Path, change: str) -> None:
    index = index_of(tmp_path / "index.parquet", train=rows)
    with pytest.raises(DataError, match=r"row \d+ of train in somewhere is not what was validated") as caught:
        convert(source_of(train=CHANGES[change](rows)), index, RULE, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert read_conversion(tmp_path / "out") is None
    with pytest.raises(DataError, match="its conversion never ended"):
        list(read_records(tmp_path / "out", "train"))


def test_a_folder_with_other_things_in_it_is_not_touched(rows: list[Record], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match="name a new folder"):
        converted(tmp_path, splits={"train": rows})
    assert files(tmp_path / "out") == {"thesis.txt": b"years of work"}


def test_another_finished_conversion_is_not_touched(rows: list[Record], tmp_path: Path) -> None:
    converted(tmp_path, splits={"train": rows})
    before = files(tmp_path / "out")
    with pytest.raises(ConfigurationError, match="holds a conversion of other data or settings"):
        converted(tmp_path, ALL_TRAIN, splits={"train": rows})
    assert files(tmp_path / "out") == before


# --- going on ---------------------------------------------------------------------------------------------------


def breaks_after(count: int, splits: dict[str, list[Record]]) -> Source:
    """A source whose disk fails after some rows."""
    sound = source_of(**splits)

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        for number, row in sound.read(split, part):
            if number >= count:
                raise OSError("the disk went away")
            yield number, row

    return Source(sound.name, "", sound.rows, read)


def broken_off(folder: Path, rows: list[Record], rule: SplitRule = RULE, shard_bytes: int = 8_000) -> None:
    index = index_of(folder / "index.parquet", train=rows)
    with pytest.raises(OSError, match="went away"):
        convert(breaks_after(150, {"train": rows}), index, rule, folder / "out", shard_bytes=shard_bytes)


def test_a_broken_conversion_goes_on_with_what_is_missing(rows: list[Record], tmp_path: Path) -> None:
    broken_off(tmp_path, rows)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")}
    assert len(finished) >= 3
    result = converted(tmp_path, splits={"train": rows}, shard_bytes=8_000)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert result == converted(tmp_path / "whole", splits={"train": rows}, shard_bytes=8_000)
    assert files(tmp_path / "out") == files(tmp_path / "whole" / "out")


@pytest.mark.parametrize("change", ["rule", "shard_bytes"])
def test_what_another_plan_left_is_not_gone_on_with(rows: list[Record], tmp_path: Path, change: str) -> None:
    other: dict[str, Any] = {"rule": {"rule": SplitRule(1, 0.2, 0.2)}, "shard_bytes": {"shard_bytes": 9_000}}[change]
    broken_off(tmp_path, rows, **other)
    converted(tmp_path, splits={"train": rows}, shard_bytes=8_000)
    converted(tmp_path / "whole", splits={"train": rows}, shard_bytes=8_000)
    assert files(tmp_path / "out") == files(tmp_path / "whole" / "out")


def test_a_finished_conversion_is_returned_and_the_source_not_read(rows: list[Record], tmp_path: Path) -> None:
    first = converted(tmp_path, splits={"train": rows})
    index = tmp_path / "index.parquet"
    assert convert(breaks_after(0, {"train": rows}), index, RULE, tmp_path / "out") == first


# --- the digest -------------------------------------------------------------------------------------------------


def test_the_same_data_gives_the_same_files(rows: list[Record], tmp_path: Path) -> None:
    for name in ("1", "2"):
        converted(tmp_path / name, splits={"train": rows}, shard_bytes=30_000)
    assert files(tmp_path / "1" / "out") == files(tmp_path / "2" / "out")


def test_the_digest_does_not_depend_on_shards_nor_on_the_order_of_the_sources_splits(
    rows: list[Record], tmp_path: Path
) -> None:
    one = converted(tmp_path / "1", splits={"train": rows, "test": rows[:30]})
    two = converted(tmp_path / "2", splits={"test": rows[:30], "train": rows}, shard_bytes=9_000)
    assert (one.digest, one.splits, one.held_out) == (two.digest, two.splits, two.held_out)
    assert len(one.shards) < len(two.shards)


def test_the_digest_depends_on_every_text_and_on_every_pixel(encoded: Encoded, tmp_path: Path) -> None:
    full = Record(encoded("red"), "Which?", "A", ("One.",), options=("x", "y"), id="1")
    changes: list[dict[str, Any]] = [
        {},
        {"image": encoded("blue")},
        {"question": "Which one?"},
        {"answer": "B"},
        {"reference_steps": ("Two.",)},
        {"reference_steps": ("One.", "Two.")},
        {"options": ("x", "z")},
        {"options": (), "choices": ("x", "y")},
        {"options": (), "choices": ("x", "z")},
        {"source": "elsewhere"},
        {"answer": "\ud800"},
    ]
    rows = [replace(full, **change) for change in changes]
    digests = [
        converted(tmp_path / str(number), ALL_TRAIN, splits={"train": [row]}).digest
        for number, row in enumerate(rows[:-1])
    ]
    assert len(set(digests)) == len(changes) - 1
    again = converted(tmp_path / "id", ALL_TRAIN, splits={"train": [replace(full, id="2")]})
    assert again.digest == digests[0]  # an id names a place


def test_the_digest_depends_on_the_split(rows: list[Record], tmp_path: Path) -> None:
    one = converted(tmp_path / "1", splits={"train": rows})
    assert one.digest != converted(tmp_path / "2", ALL_TRAIN, splits={"train": rows}).digest


# --- parts ------------------------------------------------------------------------------------------------------


def parts_of(folder: Path, splits: dict[str, list[Record]], count: int = 3) -> list[Path]:
    index = index_of(folder / "index.parquet", **splits)
    found = [folder / f"part{number}" for number in range(count)]
    for number, out in enumerate(found):
        convert(source_of(**splits), index, RULE, out, part=Part(number, count), shard_bytes=50_000)
    return found


def test_merged_parts_are_the_unsharded_conversion(many: list[Record], tmp_path: Path) -> None:
    splits = {"train": many, "test": many[:7]}
    parts = parts_of(tmp_path, splits)
    result = merge([parts[2], parts[0], parts[1]], tmp_path / "merged")
    whole = converted(tmp_path / "whole", splits=splits)
    for name in ("digest", "splits", "left_out", "held_out", "orientations", "rule", "plan"):
        assert getattr(result, name) == getattr(whole, name), name
    merged = everything(tmp_path / "merged")
    assert len(merged) == len(set(merged))
    assert set(merged) == set(everything(tmp_path / "whole" / "out"))
    loaded = datasets.load_from_disk(str(tmp_path / "merged"))
    assert {split: len(part) for split, part in loaded.items()} == whole.splits
    ids = pq.read_table(tmp_path / "merged" / "rows.parquet")["id"].to_pylist()
    assert ids == [record.id for record in merged]


def test_merging_writes_no_row_again(many: list[Record], tmp_path: Path) -> None:
    parts = parts_of(tmp_path, {"train": many})
    result = merge(parts, tmp_path / "merged")
    written = {path.stat().st_ino for part in parts for path in part.rglob("*.arrow")}
    assert {(tmp_path / "merged" / shard["name"]).stat().st_ino for shard in result.shards} <= written
    assert merge(parts, tmp_path / "merged") == result


def test_a_split_that_is_empty_in_some_or_all_parts_merges(many: list[Record], tmp_path: Path) -> None:
    result = merge(parts_of(tmp_path, {"train": many[:1500], "validation": many[2000:2003]}), tmp_path / "merged")
    assert result.splits["validation"] == 3
    assert [shard["rows"] for shard in result.shards if shard["name"].startswith("validation")] == [3]
    assert len(datasets.load_from_disk(str(tmp_path / "merged"))["validation"]) == 3


def test_missing_doubled_unfinished_and_foreign_parts_are_refused(many: list[Record], tmp_path: Path) -> None:
    parts = parts_of(tmp_path, {"train": many})
    (tmp_path / "more").mkdir()
    foreign = parts_of(tmp_path / "more", {"train": many[:-1]})
    for given, words in (
        (parts[:2], r"of the 3 parts .* these are \[0, 1\]"),
        ([*parts, parts[1]], r"\[0, 1, 1, 2\]"),
        ([*parts[:2], foreign[2]], "of different conversions"),
        ([*parts[:2], tmp_path / "nowhere"], "is not a finished part"),
        ([], "no parts to merge"),
    ):
        with pytest.raises(DataError, match=words):
            merge(given, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# --- the pixel budget -------------------------------------------------------------------------------------------


@pytest.fixture
def large(encoded: Encoded) -> list[Record]:
    turned = Image.Exif()
    turned[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (400, 200), "red").save(buffer, "JPEG", exif=turned)
    return [
        Record(buffer.getvalue(), "turned?", "red", id="turned"),
        Record(encoded("blue", "PNG", (200, 400)), "png?", "blue", id="png"),
    ]


def test_pictures_beyond_the_budget_are_scaled_once_and_upright(
    large: list[Record], encoded: Encoded, tmp_path: Path
) -> None:
    facts = Facts(size=(200, 400), orientation=lambda record: 6 if record.id == "turned" else 1)
    result = converted(tmp_path, ALL_TRAIN, facts, splits={"train": large}, resize=Resize(20_000))
    assert (result.resized, result.orientations) == (2, {"1": 2})
    assert result.resize == {"max_pixels": 20_000, "min_pixels": 3136, "family": "qwen2_vl"}
    for before, after, kind in zip(large, read_records(tmp_path / "out", "train"), ("JPEG", "PNG"), strict=True):
        assert replace(after, image=before.image) == before
        with Image.open(io.BytesIO(after.image)) as picture:
            assert picture.format == kind
            assert picture.height > picture.width
            assert picture.width * picture.height <= 20_000
            assert picture.getexif().get(0x0112, 1) == 1
    table = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert [(row["width"], row["height"]) for row in table] == [
        Image.open(io.BytesIO(record.image)).size for record in read_records(tmp_path / "out", "train")
    ]
    plain = converted(tmp_path / "plain", ALL_TRAIN, facts, splits={"train": large})
    assert plain.digest != result.digest
    assert (plain.resized, plain.resize) == (0, None)


def test_pictures_within_the_budget_are_not_touched(rows: list[Record], tmp_path: Path) -> None:
    result = converted(tmp_path, ALL_TRAIN, splits={"train": rows}, resize=Resize(24 * 16))
    assert result.resized == 0
    assert list(read_records(tmp_path / "out", "train")) == rows


def test_resized_pictures_keep_their_order_and_digest_in_parts(encoded: Encoded, tmp_path: Path) -> None:
    rows = [Record(encoded(n, "PNG", (60, 60)), f"{n}?", "red", id=str(n)) for n in range(40)]
    facts, resize = Facts(size=(60, 60)), Resize(2_000)
    result = converted(tmp_path, ALL_TRAIN, facts, splits={"train": rows}, resize=resize, shard_bytes=3_000)
    assert result.resized == 40
    assert [record.id for record in read_records(tmp_path / "out", "train")] == [record.id for record in rows]
    index = tmp_path / "index.parquet"
    part = convert(source_of(train=rows), index, ALL_TRAIN, tmp_path / "part", part=Part(0, 1), resize=resize)
    assert merge([tmp_path / "part"], tmp_path / "merged").digest == part.digest == result.digest


def test_a_picture_that_cannot_be_scaled_is_named(tmp_path: Path) -> None:
    rows = [Record(b"no picture", "?", "red", id="x")]
    with pytest.raises(DataError, match="row 0 of train in somewhere: a picture cannot be resized"):
        converted(tmp_path, ALL_TRAIN, Facts(size=(99, 99)), splits={"train": rows}, resize=Resize(10))


def test_conversion_json_is_what_was_returned(rows: list[Record], tmp_path: Path) -> None:
    result = converted(tmp_path, splits={"train": rows})
    said = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert said["rule"] == {"seed": 0, "validation": 0.2, "test": 0.2}
    assert said["digest"] == result.digest
    assert [shard["rows"] for shard in said["shards"]] == list(result.splits.values())
    assert all((tmp_path / "out" / shard["name"]).stat().st_size == shard["bytes"] for shard in said["shards"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "conversion.json",
        "dataset_dict.json",
        "rows.parquet",
        "test",
        "train",
        "validation",
    ]
