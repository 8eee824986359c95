"""One look at a picture: decode it whole, and say what it is and what is wrong with it."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

from vqa_grpo.data.checks import Problem
from vqa_grpo.data.rules import Rules

MAX_IMAGE_PIXELS = 100_000_000  # more is refused before decoding: a small file can decode to gigabytes
MAX_ASPECT = 200  # the Qwen image processors raise beyond this


@dataclass(frozen=True)
class Look:
    """What is known of a picture. Width and height are as shown, after EXIF orientation; 0 if it does not decode."""

    digest: bytes
    size: int
    width: int
    height: int
    orientation: int
    format: str
    mode: str
    visual_tokens: int
    problems: tuple[Problem, ...]


def look(data: bytes, rules: Rules) -> Look:
    """Never raises; the bytes may be anything."""
    from PIL import Image, UnidentifiedImageError

    digest = hashlib.sha256(data).digest()

    def broken(code: str, sentence: str) -> Look:
        return Look(digest, len(data), 0, 0, 1, "", "", 0, (Problem(code, sentence),))

    if not data:
        return broken("image_missing", "the row has no picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if width * height > MAX_IMAGE_PIXELS:
                    return broken("image_bomb", f"{width}x{height} pixels: refused before decoding")
                if max(width, height) >= MAX_ASPECT * min(width, height):
                    sentence = f"{width}x{height}: one side is {MAX_ASPECT} times the other or more"
                    return broken("image_aspect", sentence)
                image.load()
                tokens = width * height // 28 // 28
                return Look(digest, len(data), width, height, 1, image.format or "", image.mode, tokens, ())
    except Image.DecompressionBombError as error:  # Pillow's own limit comes before ours where it is lower
        return broken("image_bomb", f"refused before decoding: {error}"[:200])
    except UnidentifiedImageError:
        return broken("image_undecodable", "this is no picture, or of a kind that Pillow does not know")
    except Exception as error:  # a hostile file can make PIL raise nearly anything
        return broken("image_undecodable", f"the picture does not decode: {type(error).__name__} {error}"[:200])
