"""Model families as data: what a picture costs in each. Needs neither torch nor transformers.

The resize rule is the one that Qwen2-VL's report describes (arXiv 2409.12191, section 2.1, "naive dynamic
resolution"); tests hold it to the image processor of transformers, size by size.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Family:
    """`patch` is the side of what the vision tower sees as one patch, in pixels; `merge` x `merge` patches become
    one token of the language model. Beyond `max_aspect`, long side to short side, the image processor raises."""

    name: str
    model_type: str  # as in config.json
    patch: int = 14
    merge: int = 2
    min_pixels: int = 56 * 56  # the image processor's own bounds, where nobody gives others
    max_pixels: int = 1280 * 28 * 28
    max_aspect: int = 200
    vision_modules: tuple[str, ...] = ("visual",)  # the vision tower's names, its merger into the language included

    @property
    def cell(self) -> int:
        """The side of what becomes one token, in pixels."""
        return self.patch * self.merge

    def resized(self, width: int, height: int, min_pixels: int = 0, max_pixels: int = 0) -> tuple[int, int]:
        """Width and height that the image processor gives a picture; 0 means the family's own bound.

        Whole cells in both directions: the nearest where that keeps to the bounds on the number of pixels, else
        the picture shrunk or grown to the bound in its own proportions, then cut down or filled up to whole cells.
        A long, thin picture can come out above `max_pixels`, because a side has at least one cell.

        Raises ValueError for a picture beyond `max_aspect` and for one without pixels.
        """
        if min(width, height) < 1 or max(width, height) > self.max_aspect * min(width, height):
            raise ValueError(f"{width}x{height}: {self.name} takes sides of 1 : {self.max_aspect} at most")
        low, high, cell = min_pixels or self.min_pixels, max_pixels or self.max_pixels, self.cell
        # Divisions in this order, and Python's rounding to even: the last bit decides between two numbers of cells.
        across, down = round(width / cell), round(height / cell)
        pixels = across * down * cell * cell
        if pixels > high:
            shrink = math.sqrt(width * height / high)
            across = max(1, math.floor(width / shrink / cell))
            down = max(1, math.floor(height / shrink / cell))
        elif pixels < low:
            grow = math.sqrt(low / (width * height))
            across, down = math.ceil(width * grow / cell), math.ceil(height * grow / cell)
        return across * cell, down * cell

    def visual_tokens(self, width: int, height: int, min_pixels: int = 0, max_pixels: int = 0) -> int:
        """How many tokens of the context the picture takes, its start and end marks left out."""
        wide, high = self.resized(width, height, min_pixels, max_pixels)
        return (wide // self.cell) * (high // self.cell)


# Where no family is declared: the tower's name in Qwen-VL and GLM-V, in LLaVA and InternVL, in Idefics and SmolVLM.
USUAL_VISION_MODULES = ("visual", "vision_tower", "vision_model")
TINY = "builtin:tiny"
FAMILIES = {
    family.name: family
    for family in (
        Family("qwen2_vl", "qwen2_vl"),
        Family("qwen2_5_vl", "qwen2_5_vl"),
        Family("tiny", "qwen2_5_vl", patch=16, min_pixels=32 * 32, max_pixels=64 * 64),
    )
}


def family_of(base: str) -> Family | None:
    """The family of a base model: `builtin:tiny`, a folder with config.json, or a name such as Qwen/Qwen2.5-VL-3B.

    None where it is not known: then nobody can say what a picture costs. A folder is judged by its configuration,
    patch sizes included, and never by its name; a copy in S3 or on the hub by its name alone.
    """
    if base == TINY:
        return FAMILIES["tiny"]
    try:
        return _family_of_config(json.loads((Path(base) / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        pass
    letters = re.sub(r"[^a-z0-9]", "", base.lower())
    named = {"qwen25vl": "qwen2_5_vl", "qwen2vl": "qwen2_vl"}
    return next((FAMILIES[name] for sign, name in named.items() if sign in letters), None)


def vision_modules_of(base: str) -> tuple[str, ...]:
    """What the vision tower is called in a base model; every usual name where its family is not known."""
    family = family_of(base)
    return family.vision_modules if family else USUAL_VISION_MODULES


def _family_of_config(config: object) -> Family | None:
    if not isinstance(config, dict):
        return None
    vision = config.get("vision_config") or {}
    shape = (config.get("model_type"), vision.get("patch_size", 14), vision.get("spatial_merge_size", 2))
    return next((f for f in FAMILIES.values() if (f.model_type, f.patch, f.merge) == shape), None)
