"""The rows a trainer sees: pictures stay encoded until fetched, and what is missing is named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from vqa_grpo.contract import prompt
from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.training.data import open_rows

TEMPLATE = prompt.load("short")


def picture(colour: str = "red", **options: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), colour).save(buffer, "JPEG", **options)
    return {"bytes": buffer.getvalue(), "path": None}


def save(folder: Path, split: str | None = None, **columns: Any) -> Path:
    base = {"image": [picture()] * 3, "question": ["Which?"] * 3, "answer": ["red"] * 3} | columns
    rows = datasets.Dataset.from_dict({name: values for name, values in base.items() if values is not None})
    if isinstance(rows[0].get("image"), dict):
        rows = rows.cast_column("image", datasets.Image())
    (datasets.DatasetDict({split: rows}) if split else rows).save_to_disk(str(folder))
    return folder


def opened(folder: Path, split: str = "train", rewards: tuple[str, ...] = ("format", "accuracy")) -> Any:
    return open_rows(folder, TEMPLATE, split, rewards)


def test_a_row_has_the_rendered_prompt_the_picture_and_the_reward_columns(tmp_path: Path) -> None:
    folder = save(tmp_path / "d", options=[["2003", "2010"]] * 3, source=["textvqa"] * 3)
    row = opened(folder)[1]
    assert row["prompt"] == [{"role": "user", "content": TEMPLATE.render("Which?", None, ["2003", "2010"])}]
    assert row["image"].size == (40, 20)
    assert (row["answer"], row["options"], row["choices"], row["reference_steps"]) == ("red", ["2003", "2010"], [], [])
    assert row["source"] == "textvqa"


def test_a_picture_is_decoded_once_for_all_completions_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = opened(save(tmp_path / "d", image=[picture("red"), picture("blue"), picture("green")]))
    decoded: list[Any] = []
    original = datasets.Image.decode_example

    def counted(self: Any, value: Any, **options: Any) -> Any:
        decoded.append(value)
        return original(self, value, **options)

    monkeypatch.setattr(datasets.Image, "decode_example", counted)
    assert len(rows) == 3
    assert not decoded
    batch = rows.__getitems__([0, 0, 0, 0, 2, 2, 2, 2])
    assert len(decoded) == 2
    assert [row["image"].getpixel((0, 0))[1] > 90 for row in batch] == [False] * 4 + [True] * 4


def test_a_picture_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert opened(save(tmp_path / "d", image=[picture(exif=exif)] * 3))[0]["image"].size == (20, 40)


def test_a_split_is_taken_from_a_dataset_dict(tmp_path: Path) -> None:
    folder = save(tmp_path / "d", split="train")
    assert len(opened(folder)) == 3
    with pytest.raises(ConfigurationError, match="no split 'validation', only train"):
        opened(folder, "validation")


def test_a_missing_folder_and_a_folder_without_a_data_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such folder"):
        opened(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="save_to_disk"):
        opened(tmp_path)


def test_missing_columns_are_named_beside_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"lacks the column image, answer; it has question, label"):
        opened(save(tmp_path / "d", image=None, answer=None, label=["red"] * 3))


def test_the_reasoning_reward_needs_reference_steps(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="reference_steps"):
        opened(save(tmp_path / "d"), rewards=("format", "reasoning"))
    with_steps = save(tmp_path / "e", reference_steps=[["It is red."]] * 3)
    assert opened(with_steps, rewards=("reasoning",))[0]["reference_steps"] == ["It is red."]


def test_an_image_column_that_holds_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cast_column"):
        opened(save(tmp_path / "d", image=["a.jpg"] * 3))


def test_a_data_set_without_rows_is_a_fault_of_the_data(tmp_path: Path) -> None:
    empty = datasets.Dataset.from_dict(
        {"image": [], "question": [], "answer": []},
        features=datasets.Features(
            {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
        ),
    )
    empty.save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="no rows"):
        opened(tmp_path / "d")


@pytest.mark.parametrize("broken", [{"bytes": b"no picture", "path": None}, None])
def test_a_picture_that_cannot_be_read_names_its_question(tmp_path: Path, broken: Any) -> None:
    rows = opened(save(tmp_path / "d", image=[picture(), broken, picture()], question=["One?", "Two?", "Three?"]))
    assert rows[0]["image"].size == (40, 20)
    with pytest.raises(DataError, match=r"'Two\?'"):
        rows[1]


@pytest.mark.timeout(60)  # a limit for what would hang, not a measurement
def test_thirty_eight_thousand_rows_open_without_being_decoded(tmp_path: Path) -> None:
    count = 38_000
    folder = save(tmp_path / "d", image=[picture()] * count, question=["Which?"] * count, answer=["red"] * count)
    rows = opened(folder)
    assert rows[count - 1]["answer"] == "red"
