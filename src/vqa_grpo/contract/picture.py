"""How an encoded picture is read: the kinds that are opened at all, and which way is up."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

# A row's bytes come from anywhere: nothing else is handed to Pillow, which would run Ghostscript on an EPS file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb: a quarter of a gigabyte in RGB


def open_picture(data: bytes) -> ImageFile:
    """Read the header alone; the pixels are decoded when they are asked for.

    Raises PIL.UnidentifiedImageError for what is none of FORMATS, PIL.Image.DecompressionBombError for more than
    MAX_PIXELS, and nearly anything for a hostile file.
    """
    from PIL import Image

    image = Image.open(BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width}x{height} pixels, more than the limit of {MAX_PIXELS:,}")
    return image


def open_upright(data: bytes, near: int = 0) -> Image:
    """The picture in RGB, turned as its EXIF orientation says; of an animation, the first frame.

    With `near`, a large JPEG is decoded at a fraction of its size, at least `near` pixels a side: cheap for a
    thumbnail. Raises as `open_picture` does, and OSError for pixels that do not decode.
    """
    from PIL import ImageOps

    with open_picture(data) as image:
        if near:
            image.draft("RGB", (near, near))
        return ImageOps.exif_transpose(image).convert("RGB")
