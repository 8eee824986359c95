"""Pictures beyond the pixel budget, scaled down once, so that the trainer and any inference engine see the same."""

from __future__ import annotations

import io
from dataclasses import dataclass

from vqa_grpo.contract.failure import DataError

JPEG_QUALITY = 95


@dataclass(frozen=True)
class Resize:
    """The budget of a model family: pictures of more than `max_pixels` get the size its own processor would
    give them; the others are not touched."""

    max_pixels: int
    min_pixels: int = 3136
    family: str = "qwen2_vl"

    def concerns(self, width: int, height: int) -> bool:
        return width * height > self.max_pixels

    def size(self, width: int, height: int) -> tuple[int, int]:
        """What the family's processor would make of it, (width, height)."""
        from vqa_grpo.models.families import FAMILIES

        return FAMILIES[self.family].resized(width, height, self.min_pixels, self.max_pixels)


def resize_picture(data: bytes, size: tuple[int, int]) -> bytes:
    """The picture, upright and scaled to `size` (width, height): a JPEG stays one, anything else becomes a PNG.

    Raises DataError when Pillow cannot.
    """
    from PIL import Image

    from vqa_grpo.contract.picture import open_picture, open_upright

    try:
        with open_picture(data) as header:
            kind = "JPEG" if header.format == "JPEG" else "PNG"
        # A JPEG is decoded at no more than needed: twice the size is as good as all of it, and bounds the memory.
        scaled = open_upright(data, near=2 * max(size)).resize(size, Image.Resampling.BICUBIC)
        scaled.info.clear()  # its colour profile and its orientation were those of the source's pixels
        buffer = io.BytesIO()
        scaled.save(buffer, kind, **({"quality": JPEG_QUALITY} if kind == "JPEG" else {}))
    except Exception as error:  # a hostile file can make PIL raise nearly anything
        raise DataError(f"a picture cannot be resized: {type(error).__name__} {error}"[:200]) from error
    return buffer.getvalue()
