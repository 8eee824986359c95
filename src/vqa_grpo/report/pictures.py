"""Thumbnails small enough that a dozen fit into a report."""

from __future__ import annotations

from io import BytesIO

from vqa_grpo.contract.picture import open_upright

MAX_SIDE = 128
MAX_BYTES = 12_000


def thumbnail(encoded: bytes) -> bytes | None:
    """A PNG of at most 128 pixels a side; None for bytes that no picture can be read from."""
    try:
        picture = open_upright(encoded, near=2 * MAX_SIDE)
    except Exception:  # Pillow raises many kinds for broken files, and a report goes on without the picture
        return None
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    data = _png(picture)
    side = MAX_SIDE
    while len(data) > MAX_BYTES and side > 16:
        # A photograph compresses badly as PNG: fewer colours first, then fewer pixels.
        data = _png(picture.quantize(64))
        side = side * 3 // 4
        picture.thumbnail((side, side))
    return data


def _png(picture: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)  # type: ignore[attr-defined]
    return buffer.getvalue()
