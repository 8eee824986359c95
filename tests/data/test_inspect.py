"""Rows of any saved data set can be looked at: the same ones each time, their pictures, and what is wrong with them."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import datasets
import pytest
from PIL import Image

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.data.inspect import inspect
from vqa_grpo.report.data_html import MAX_BYTES


def look(folder: str, out: Path, **options) -> str:
    inspect(Path(folder), out / "page.html", **options)
    return (out / "page.html").read_text()


def ids(page: str) -> list[str]:
    return re.findall(r'class="soft id">([^ <]+)', page)


def photograph(side: int = 256) -> bytes:
    """A picture that hardly compresses."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_page_shows_the_rows_of_a_saved_data_set(table, encoded, save, tmp_path):
    rows = table([encoded(1), encoded(2)], options=[["red", "blue"], []], source=["mine", "yours"], id=["a/1", "a/2"])
    page = look(save(rows), tmp_path)
    assert ids(page) == ["a/1", "a/2"]
    for expected in ("question 0?", "question 1?", "One step.", "blue", "mine", "24 × 16", "2 rows."):
        assert expected in page
    assert page.count("data:image/png;base64,") == 2


def test_bad_rows_are_shown_with_their_problems_and_do_not_stop_it(table, encoded, save, tmp_path):
    pictures = [encoded(1), b"not a picture", None, encoded(2, "JPEG", (640, 480))[:900]]
    page = look(save(table(pictures, answer=["red", "red", "red", ""])), tmp_path)
    for code in ("image_undecodable", "image_missing", "answer_empty"):
        assert f'<li class="fatal" dir="auto">{code}: ' in page
    assert page.count("row unusable") == 3
    assert page.count("<img") == 1
    assert "<code>train/00000001</code>" in page  # the example beside the code


def test_the_same_rows_are_chosen_each_time_from_all_splits(table, encoded, save, tmp_path):
    picture = encoded(1)
    folder = save(train=table([picture] * 300), validation=table([picture] * 4), test=table([picture] * 50))
    page = look(folder, tmp_path, rows=40)
    assert page == look(folder, tmp_path, rows=40)
    counts = {split: sum(name.startswith(split) for name in ids(page)) for split in ("train", "validation", "test")}
    assert counts == {"train": 18, "validation": 4, "test": 18}
    assert ids(page) != [*(f"train/{number:08d}" for number in range(18)), *ids(page)[18:]]  # not just the first ones
    assert "354 rows; 40 of them were looked at" in page


def test_a_split_can_be_chosen(table, encoded, save, tmp_path):
    folder = save(train=table([encoded(1)] * 9), test=table([encoded(2)] * 2))
    assert ids(look(folder, tmp_path, split="test")) == ["test/00000000", "test/00000001"]
    with pytest.raises(ConfigurationError, match="has no split 'dev', only train, test"):
        look(folder, tmp_path, split="dev")


def test_a_page_of_many_photographs_stays_small_and_shows_all_of_them(table, save, tmp_path):
    folder = save(table([photograph() for _ in range(220)]))
    page = look(folder, tmp_path, rows=200)
    assert len(page.encode()) <= MAX_BYTES
    assert page.count("<img") == 200


def test_columns_that_may_be_missing_or_of_another_kind_are_no_obstacle(table, encoded, save, tmp_path):
    rows = table([encoded(1)] * 2, reference_steps=None, answer=[7, 8], choices=["<b>one</b>", None])
    page = look(save(rows), tmp_path)
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    assert "<b>one" not in page
    assert len(ids(page)) == 2


def test_pictures_in_files_beside_the_rows_are_read(table, encoded, save, tmp_path):
    (tmp_path / "red.png").write_bytes(encoded(1))
    rows = {
        "question": ["q"] * 2,
        "answer": ["a"] * 2,
        "image": [str(tmp_path / "red.png"), str(tmp_path / "gone.png")],
    }
    page = look(save(datasets.Dataset.from_dict(rows)), tmp_path)
    assert page.count("<img") == 1
    assert "image_missing" in page


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda save, rows: "/nowhere/at/all", ConfigurationError, "is no folder"),
        (lambda save, rows: str(Path(save(rows)).parent), ConfigurationError, "was not made by"),
        (lambda save, rows: save(rows.remove_columns("answer")), DataError, "lacks the column answer; it has"),
        (lambda save, rows: save(rows.select([])), DataError, "holds no rows"),
        (lambda save, rows: save(rows.remove_columns("image").add_column("image", [1])), DataError, "no pictures"),
        (lambda save, rows: damaged(save(rows)), DataError, "cannot be read"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line_and_no_page_is_left(
    table, encoded, save, tmp_path, make, error, says
):
    folder = make(save, table([encoded(1)]))
    with pytest.raises(error, match=says) as raised:
        look(folder, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_less_than_one_row_is_refused(table, encoded, save, tmp_path):
    with pytest.raises(ConfigurationError, match="--rows 0"):
        look(save(table([encoded(1)])), tmp_path, rows=0)


def damaged(folder: str) -> str:
    file = next(Path(folder).glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:100])
    return folder
