"""Data sets of the Hub: their names, their streamed rows, and what is said where there is no network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import Part
from vqa_grpo.data.sources import hub, open_place
from vqa_grpo.data.sources.records import Columns

Encoded = Callable[..., bytes]


def streamed(folder: Path, table: Any, encoded: Encoded, **splits: int) -> Any:
    """Splits as load_dataset streams them, out of Parquet files as the Hub holds them."""
    for name, count in splits.items():
        table([encoded(number) for number in range(count)]).to_parquet(str(folder / f"{name}.parquet"))
    files = {name: str(folder / f"{name}.parquet") for name in splits}
    return datasets.load_dataset("parquet", data_files=files, streaming=True, cache_dir=str(folder / "cache"))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("hub:org/name", ("org/name", None, None)),
        ("hub:org/na.me-1@refs/pr/3", ("org/na.me-1", "refs/pr/3", None)),
        ("hub:org/name#all", ("org/name", None, "all")),
        ("hub:org/name@v1#all", ("org/name", "v1", "all")),
    ],
)
def test_a_name_may_have_a_revision_and_a_configuration(text: str, spec: tuple[str, ...]) -> None:
    assert hub.spec_of(text) == spec


@pytest.mark.parametrize(
    "text", ["hub:", "hub:a/b/c", "hub:squad", "hub:../x", "hub:a/b#", "hub:https://x/y", "hub:/etc/passwd"]
)
def test_what_is_no_name_of_the_hub_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="a data set of the Hub is hub:org/name") as caught:
        open_place(text)
    assert "\n" not in str(caught.value)


def test_streamed_rows_keep_their_pictures_as_they_are(tmp_path: Path, table: Any, encoded: Encoded) -> None:
    found = streamed(tmp_path, table, encoded, train=5, val=2)
    source = hub.source_of(found, "hub:org/name", "commit", Columns())
    assert (set(source.rows), source.exact, source.fingerprint) == ({"train", "validation"}, False, "commit")
    rows = list(source.read("train", Part()))
    assert [number for number, _ in rows] == list(range(5))
    assert all(isinstance(row, Record) and row.image == encoded(number) for number, row in rows)
    assert [row.id for row in source.records("validation")] == ["validation/00000000", "validation/00000001"]
    assert len(list(source.read("train", Part(limit=3)))) == 3


def test_a_folder_of_the_same_name_is_not_taken_for_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="a folder org/name is here, too"):
        open_place("hub:org/name")


def test_a_split_that_may_be_held_out_is_refused(tmp_path: Path, table: Any, encoded: Encoded) -> None:
    with pytest.raises(DataError, match="has the splits train, holdout: name them"):
        hub.source_of(streamed(tmp_path, table, encoded, train=1, holdout=1), "hub:org/name", "", Columns())


def test_a_missing_column_is_named(tmp_path: Path, table: Any, encoded: Encoded) -> None:
    found = streamed(tmp_path, table, encoded, train=2)
    with pytest.raises(DataError, match=r"hub:org/name \(train\) lacks the column problem; it has image, question"):
        hub.source_of(found, "hub:org/name", "", Columns({"question": "problem"}))


def test_a_column_of_another_kind_is_a_sentence_of_its_row(tmp_path: Path, table: Any, encoded: Encoded) -> None:
    found = streamed(tmp_path, table, encoded, train=1)
    (row,) = hub.source_of(found, "x", "", Columns({"answer": "reference_steps"})).read("train", Part())
    assert row[1].sentence == "the column reference_steps holds a list, not text"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "hub:org/name cannot be opened (OfflineModeIsEnabled"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "where this machine does not reach the Hub, download the data set"),
    ],
)
def test_where_there_is_no_network_one_line_says_what_to_do(
    settings: dict[str, str], words: str, tmp_path: Path
) -> None:
    code = """
from vqa_grpo.contract.failure import StepError
from vqa_grpo.data.sources import open_place
try:
    open_place("hub:org/name")
except StepError as error:
    print(error)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path)} | settings
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert words in run.stdout
    assert run.stdout.count("\n") == 1
