"""Completion samples: every N steps, what the first rank's model said, as Parquet and as a page, in completions/."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqa_grpo.report.completions import Said, completions_table, render_completions
from vqa_grpo.report.pictures import thumbnail_of
from vqa_grpo.rewards.guard import text_of
from vqa_grpo.training.checkpoints import say_aloud

FOLDER = "completions"
MAX_ROWS = 16
MAX_PICTURE = 12_000  # bytes


class Samples:
    """Writes `step-<number>.parquet` and `.html`, with this process's own rows only: nothing is gathered for it.

    `every` counts optimizer steps, `apart` those between two generations: the first generation in each stretch of
    `every` steps is sampled. What cannot be written is said once and stops nothing.
    """

    def __init__(self, output_dir: Path, every: int, apart: int) -> None:
        self._folder = output_dir / FOLDER
        self._every, self._apart = every, max(apart, 1)
        self._last = -1
        self._failed = False

    def forget_earlier_run(self) -> None:
        """For a fresh start in a folder that was used before."""
        for path in self._folder.glob("step-*"):
            if path.suffix in (".parquet", ".html"):
                path.unlink()

    def note(
        self,
        step: int,
        rows: Sequence[Mapping[str, Any]],
        completions: Sequence[Any],
        names: Sequence[str],
        rewards: Sequence[Sequence[float]],
    ) -> None:
        """`rewards` holds for each row a number for each of `names`, NaN where a reward did not apply."""
        if step == self._last or step % self._every >= self._apart:
            return
        self._last = step
        try:
            self._write(step, _said(rows, completions, names, rewards))
        except Exception as error:  # alone on one rank: raising here would leave the others waiting
            if not self._failed:
                say_aloud(f"completion samples cannot be written (said once): {type(error).__name__}: {error}")
            self._failed = True

    def _write(self, step: int, said: Sequence[Said]) -> None:
        import pyarrow.parquet as pq

        self._folder.mkdir(parents=True, exist_ok=True)
        stem = self._folder / f"step-{step:06d}"
        pq.write_table(completions_table(step, said), stem.with_suffix(".parquet"))
        stem.with_suffix(".html").write_text(render_completions(step, said), encoding="utf-8")


def _said(
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[Any],
    names: Sequence[str],
    rewards: Sequence[Sequence[float]],
) -> list[Said]:
    thumbnails: dict[int, bytes] = {}
    said = []
    for row, completion, paid in list(zip(rows, completions, rewards, strict=True))[:MAX_ROWS]:
        picture = row.get("image")
        if picture is not None and id(picture) not in thumbnails:
            thumbnails[id(picture)] = thumbnail_of(picture, MAX_PICTURE)
        by_name = {name: None if math.isnan(value) else value for name, value in zip(names, paid, strict=True)}
        texts = (str(row.get("question", "")), str(row.get("answer", "")), text_of(completion))
        said.append(Said(*texts, by_name, thumbnails.get(id(picture), b"")))
    return said
