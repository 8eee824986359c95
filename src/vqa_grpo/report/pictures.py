"""Thumbnails small enough that a dozen fit into a report."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from vqa_grpo.contract.picture import open_upright

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 128
MAX_BYTES = 12_000


def thumbnail(encoded: bytes) -> bytes | None:
    """A PNG of at most 128 pixels a side; None for bytes that no picture can be read from."""
    picture = _small(encoded)
    if picture is None:
        return None
    data = _png(picture)
    side = MAX_SIDE
    while len(data) > MAX_BYTES and side > 16:
        # A photograph compresses badly as PNG: fewer colours first, then fewer pixels.
        data = _png(picture.quantize(64))
        side = side * 3 // 4
        picture.thumbnail((side, side))
    return data


def small_thumbnail(encoded: bytes, max_bytes: int) -> bytes | None:
    """Like `thumbnail`, for hundreds of pictures on one page: a PNG where that is small enough, otherwise a JPEG.

    It may be larger than `max_bytes`, a few hundred at most, where no thumbnail is that small.
    """
    picture = _small(encoded)
    return None if picture is None else _within(picture, max_bytes)


def thumbnail_of(picture: Image, max_bytes: int) -> bytes:
    """Like `small_thumbnail`, of a picture that is decoded already and stays as it is."""
    small = picture.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    return _within(small.convert("RGB"), max_bytes)


def _within(picture: Image, max_bytes: int) -> bytes:
    data, quality = _png(picture), 80
    while len(data) > max_bytes and max(picture.size) > 16:
        data = _saved(picture, "JPEG", quality=quality)
        if quality > 40:
            quality -= 20
        else:
            picture.thumbnail((picture.width * 3 // 4, picture.height * 3 // 4))
    return data


def kind_of_thumbnail(data: bytes) -> str | None:
    """The media type of a PNG or JPEG no larger than a thumbnail, by its header; None for any other bytes."""
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as picture:
            return f"image/{str(picture.format).lower()}" if max(picture.size) <= MAX_SIDE else None
    except Exception:  # Pillow raises many kinds for hostile bytes
        return None


def _small(encoded: bytes) -> Image | None:
    try:
        picture = open_upright(encoded, near=2 * MAX_SIDE)
    except Exception:  # Pillow raises many kinds for broken files, and a report goes on without the picture
        return None
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    picture.info.clear()  # Pillow would save the colour profile too, and stumble over a transparent colour
    return picture


def _png(picture: Image) -> bytes:
    return _saved(picture, "PNG", optimize=True)


def _saved(picture: Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
