"""Whoever reads a row's bytes sees the same pixels, the right way up."""

from __future__ import annotations

import io
import struct
import zlib

import datasets
import pytest
from PIL import Image, UnidentifiedImageError

from vqa_grpo.contract.picture import open_picture, open_upright


def picture(kind: str = "PNG", orientation: int = 1, size: tuple[int, int] = (12, 8)) -> bytes:
    drawn = Image.effect_noise(size, 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    drawn.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_datasets_shows_it(kind: str, orientation: int) -> None:
    data = picture(kind, orientation)
    opened = open_upright(data)
    shown = datasets.Image().decode_example({"bytes": data, "path": None})
    assert opened.size == ((8, 12) if orientation >= 5 else (12, 8))
    assert (opened.mode, opened.size, opened.tobytes()) == ("RGB", shown.size, shown.convert("RGB").tobytes())


def test_near_decodes_a_large_jpeg_small_but_never_below() -> None:
    data = picture("JPEG", 6, (1600, 800))
    assert open_upright(data, near=200).size == (200, 400)
    assert open_upright(data).size == (800, 1600)
    assert open_upright(picture("PNG", 1, (160, 80)), near=20).size == (160, 80)


def test_too_many_pixels_are_refused_by_the_header() -> None:
    header = struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    idat = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(Image.DecompressionBombError, match="10000x9000"):
        open_picture(b"\x89PNG\r\n\x1a\n" + chunk + idat)


def test_only_kinds_that_run_no_other_program_are_opened() -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "EPS")
    with pytest.raises(UnidentifiedImageError):
        open_upright(file.getvalue())
