"""What a row must be to be trained on, and how much of a data set may fall short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rules:
    """`max_fractions` gives for a code the largest share of rows that may have it, warnings included."""

    wants_steps: bool = False  # the reasoning reward is asked for
    family: str = "qwen2_vl"  # a key of models.families.FAMILIES
    min_pixels: int = 3136
    max_pixels: int = 1280 * 28 * 28
    max_visual_tokens: int = 4096  # more than this for one picture, after the processor's own resize: fatal
    min_side: int = 10  # pixels
    max_invalid_fraction: float = 0.02
    max_fractions: Mapping[str, float] = field(default_factory=dict)
