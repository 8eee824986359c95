"""Pictures beyond the pixel budget, scaled down once, so that the trainer and any inference engine see the same."""

from __future__ import annotations

import io
from collections.abc import Callable
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
        from vqa_grpo.models.families import FAMILIES

        return FAMILIES[self.family].resized(width, height, self.min_pixels, self.max_pixels)


@dataclass(frozen=True)
class Resized:
    image: bytes
    width: int
    height: int


def resize_picture(data: bytes, size: Callable[[int, int], tuple[int, int]]) -> Resized:
    """The picture, upright and scaled to `size(width, height)`: a JPEG stays one, anything else becomes a PNG.

    Raises DataError when Pillow cannot.
    """
    from PIL import Image

    from vqa_grpo.contract.picture import open_upright

    try:
        with Image.open(io.BytesIO(data)) as opened:
            kind = "JPEG" if opened.format == "JPEG" else "PNG"
        upright = open_upright(data)
        scaled = upright.resize(size(*upright.size), Image.Resampling.BICUBIC)
        scaled.info.clear()  # its colour profile and its orientation were those of the source's pixels
        buffer = io.BytesIO()
        scaled.save(buffer, kind, **({"quality": JPEG_QUALITY} if kind == "JPEG" else {}))
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise DataError(f"a picture cannot be resized: {type(error).__name__} {error}"[:200]) from error
    return Resized(buffer.getvalue(), *scaled.size)
