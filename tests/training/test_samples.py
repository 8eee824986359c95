"""Completion samples: when they are written, what of them, and how hostile text looks on the page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo.training.samples import MAX_ROWS, Samples

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\x00\ud800'


def note(samples: Samples, step: int, rows: int = 2, completion: str = "{}", **more: Any) -> None:
    from PIL import Image

    row = {"question": "what?", "answer": "red", "image": Image.new("RGBA", (400, 40), "red"), **more}
    said = [[{"role": "assistant", "content": completion}]] * rows
    samples.note(step, [row] * rows, said, ["format", "reasoning"], [[0.5, math.nan]] * rows)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "completions").glob("*.html"))


@pytest.mark.parametrize(
    ("every", "apart", "sampled"), [(2, 1, [0, 2, 4, 6, 8]), (5, 2, [0, 6]), (3, 4, [0, 2, 4, 6, 8])]
)
def test_the_first_generation_of_each_stretch_is_sampled(
    tmp_path: Path, every: int, apart: int, sampled: list[int]
) -> None:
    samples = Samples(tmp_path, every, apart)
    for step in range(0, 9, max(apart, 1) if apart < 3 else 2):
        note(samples, step)
    assert written(tmp_path) == [f"step-{step:06d}.html" for step in sampled]


def test_text_is_escaped_and_rows_are_few(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    note(Samples(tmp_path, 1, 1), 7, rows=40, completion=HOSTILE, question=HOSTILE, answer=HOSTILE)
    text = (tmp_path / "completions" / "step-000007.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "src=x" not in text.replace("&lt;img src=x", "")
    assert "default-src 'none'" in text
    assert text.count("<article") == MAX_ROWS
    table = pq.read_table(tmp_path / "completions" / "step-000007.parquet")
    assert table.num_rows == MAX_ROWS
    assert table.column("reward/format").to_pylist() == [0.5] * MAX_ROWS
    assert table.column("reward/reasoning").to_pylist() == [None] * MAX_ROWS
    assert "alert(1)" in table.column("completion")[0].as_py()


def test_samples_that_cannot_be_written_are_said_once_and_stop_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "completions").write_text("a file where the folder should be")
    samples = Samples(tmp_path, 1, 1)
    note(samples, 0)
    note(samples, 1)
    assert capsys.readouterr().err.count("completion samples cannot be written") == 1


def test_a_row_without_a_picture_is_shown_without_one(tmp_path: Path) -> None:
    note(Samples(tmp_path, 1, 1), 0, image=None)
    assert "no picture" in (tmp_path / "completions" / "step-000000.html").read_text()
