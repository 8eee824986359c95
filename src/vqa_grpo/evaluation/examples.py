"""A few questions worth looking at: repaired, broken, right both times, wrong both times."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.evaluation.score import read_predictions
from vqa_grpo.report.pictures import thumbnail

if TYPE_CHECKING:
    import datasets

PER_KIND = 3
_KINDS = {(False, True): "repaired", (True, False): "broken", (True, True): "right", (False, False): "wrong"}


def choose(base: Path, tuned: Path, rows: datasets.Dataset, per_kind: int = PER_KIND) -> list[dict[str, Any]]:
    """The first few of each kind, in the order of the sample, which is already random. JSON-ready."""
    import datasets

    before = {row["id"]: row for row in read_predictions(base)}
    pictures = rows.cast_column("image", datasets.Image(decode=False))
    place = {identity: number for number, identity in enumerate(pictures["id"])}
    chosen: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS.values()}
    for after in read_predictions(tuned):
        first = before[after["id"]]
        kind = chosen[_KINDS[(first["correct"], after["correct"])]]
        if len(kind) < per_kind:
            kind.append(_example(first, after, pictures[place[after["id"]]]["image"]))
    return [example for examples in chosen.values() for example in examples]


def _example(before: dict[str, Any], after: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    small = thumbnail(image["bytes"]) if image and image.get("bytes") else None
    return {
        "kind": _KINDS[(before["correct"], after["correct"])],
        "question": after["question"],
        "gold": after["gold"],
        "base_completion": before["completion"],
        "tuned_completion": after["completion"],
        "base_note": f"{before['outcome']}: {before['explanation']}",
        "tuned_note": f"{after['outcome']}: {after['explanation']}",
        "image": base64.b64encode(small).decode() if small else None,
    }
