"""What is wrong with a record: pure checks, each problem with a code and a sentence."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from vqa_grpo.contract.record import Record

MAX_IMAGE_PIXELS = 100_000_000  # more is refused before decoding: a small file can decode to gigabytes
MAX_ASPECT = 200  # the Qwen image processors raise beyond this


@dataclass(frozen=True)
class Problem:
    """`fatal` rows cannot be trained on and go to quarantine; the others are worth a look."""

    code: str
    sentence: str
    fatal: bool = True


def problems(record: Record, image_problem: Problem | None, wants_steps: bool) -> Iterator[Problem]:
    """Everything wrong with a record; the picture was judged before, since many rows share one."""
    if image_problem:
        yield image_problem
    if not record.question.strip():
        yield Problem("question_empty", "the question is empty")
    if not record.answer.strip():
        yield Problem("answer_empty", "the answer is empty")
    offered = record.offered()
    if offered and record.answer.strip() and not _is_offered(record.answer, offered):
        yield Problem("answer_not_offered", f"the answer {record.answer!r} is neither an option nor an option's letter")
    if wants_steps and not record.reference_steps:
        yield Problem("steps_missing", "no reference steps, which the reasoning reward compares with", fatal=False)


def image_problem(data: bytes) -> Problem | None:
    """Decode the picture whole; None when it is fine."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        return Problem("image_missing", "the row has no picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if width * height > MAX_IMAGE_PIXELS:
                    return Problem("image_bomb", f"{width}x{height} pixels: refused before decoding")
                if max(width, height) >= MAX_ASPECT * min(width, height):
                    return Problem(
                        "image_aspect", f"{width}x{height}: one side is {MAX_ASPECT} times the other or more"
                    )
                image.load()
    except Image.DecompressionBombError as error:  # Pillow's own limit comes before ours where it is lower
        return Problem("image_bomb", f"refused before decoding: {error}"[:200])
    except UnidentifiedImageError:
        return Problem("image_undecodable", "this is no picture, or of a kind that Pillow does not know")
    except Exception as error:  # a hostile file can make PIL raise nearly anything
        return Problem("image_undecodable", f"the picture does not decode: {type(error).__name__} {error}"[:200])
    return None


def _is_offered(answer: str, offered: tuple[str, ...]) -> bool:
    text = answer.strip()
    letter = len(text) == 1 and 0 <= ord(text.upper()) - ord("A") < len(offered)
    return letter or text.casefold() in {option.strip().casefold() for option in offered}
