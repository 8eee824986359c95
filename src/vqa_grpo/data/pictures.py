"""One look at a picture: whether it decodes whole, how it stands, and what it costs the model.

A JPEG's every bit is read by libjpeg-turbo through simplejpeg, at an eighth of the size: that is the entropy
decode and little else, some 2 ms for 1024 x 730 pixels in 260 KB, with the GIL released. Pillow's own decoder drops
libjpeg's warnings, and with them the signs of damage in the middle; simplejpeg gives the first of them. What each
means here:

- the data ends early, runs out inside a scan, holds an impossible code or leaves some over: damage;
- anything else (odd JFIF version, an unknown Adobe marker, stray bytes between segments or before the end, a kind
  of JPEG that simplejpeg does not read): Pillow decides, as it will in training. Bytes after the picture are no
  fault; phones put films there.

2,000 zeroed bytes in a scan can read as valid codes to the last bit: of such files simplejpeg alone lets 2 in 100
pass, of progressive ones 18. So a zeroed disk sector is looked for as well, and is damage where nothing that a
picture shows would be written as zeros. Fewer changed bytes can pass unseen: a JPEG has no checksum.

A PNG's checksums are compared, since Pillow skips those of the pixels. Other kinds decode in Pillow. A GIF, BMP,
TIFF or lossy WebP with changed pixel data decodes to another picture, and nobody can tell.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vqa_grpo.contract.picture import FORMATS, MAX_PIXELS, open_picture
from vqa_grpo.data.checks import Problem
from vqa_grpo.data.index import picture_digest
from vqa_grpo.data.rules import Rules
from vqa_grpo.models.families import FAMILIES, Family

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MAX_SCANS = 100  # a progressive JPEG has about ten, and each takes time for all of its pixels
SECTOR = bytes(512)
MAX_ASPECT = 200  # where the family is not known
ORIENTATION = 0x0112

_NOT_READ = {
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript file",
    b"<svg": "an SVG drawing",
    b"<?xml": "XML, perhaps an SVG drawing",
    b"<!DOC": "an HTML page",
    b"<html": "an HTML page",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\0\0\1\0": "an icon",
    b"\0\0\0\x0cjP": "a JPEG 2000 picture",
}
_BEGINNINGS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WebP", b"GIF8": "GIF", b"BM": "BMP"}
_BEGINNINGS |= {b"II*\0": "TIFF", b"MM\0*": "TIFF"}


@dataclass(frozen=True)
class Look:
    """What was seen. `digest` is the SHA-256 of the encoded bytes, `size` their number; `width` and `height` are
    in pixels as shown, after orientation, and 0 where nothing was decoded."""

    digest: bytes
    size: int
    width: int = 0
    height: int = 0
    orientation: int = 1  # EXIF, 1 to 8
    format: str = ""
    mode: str = ""  # Pillow's name of how pixels are stored
    visual_tokens: int = 0  # 0 where the family is not known
    problems: tuple[Problem, ...] = ()


def look(data: bytes, rules: Rules, digest: bytes = b"") -> Look:
    """Judge a picture. Never raises; decodes at most MAX_PIXELS, a JPEG at an eighth of its size.

    `digest` is its SHA-256, where the caller has it already.
    """
    seen = Look(digest or picture_digest(data), len(data))
    if not data:
        return replace(seen, problems=(Problem("image_missing", "the row has no picture"),))
    try:
        image = open_picture(data)
    except Exception as error:  # a hostile file can make Pillow raise nearly anything
        return replace(seen, problems=(_unopened(data, error),))
    try:
        with image:
            return _examine(seen, data, image, rules)
    except Exception as error:
        return replace(seen, problems=(_undecodable(f"its {image.format} data cannot be read: {_words(error)}"),))


def _examine(seen: Look, data: bytes, image: ImageFile, rules: Rules) -> Look:
    family = FAMILIES.get(rules.family)
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # a phone's JPEG with a second picture behind it
    seen = replace(seen, format=kind, mode=image.mode)
    if problem := _shape_problem(image.size, rules, family):
        return replace(seen, width=image.width, height=image.height, problems=(problem,))
    notes = _notes(image, kind)
    found = _jpeg_problem(data, image) if kind == "JPEG" else _pixel_problem(data, image)
    if found and found.fatal:
        return replace(seen, problems=(found,))
    notes += [found] if found else []

    # Read after decoding: Pillow turns a TIFF by itself, and finds a PNG's tag behind its pixels.
    orientation, (width, height) = _orientation(image), image.size
    if orientation != 1:
        notes.append(_note("image_rotated", f"EXIF orientation {orientation}: shown turned or mirrored"))
    if orientation >= 5:
        width, height = height, width
    if width * height > rules.max_pixels:
        notes.append(_note("image_downscaled", f"{width}x{height} pixels; the model is given {rules.max_pixels:,}"))
    tokens = family.visual_tokens(width, height, rules.min_pixels, rules.max_pixels) if family else 0
    if tokens > rules.max_visual_tokens:
        most = rules.max_visual_tokens
        notes.insert(0, Problem("image_tokens", f"{width}x{height} makes {tokens:,} visual tokens, over {most:,}"))
    return replace(
        seen, width=width, height=height, orientation=orientation, visual_tokens=tokens, problems=tuple(notes)
    )


def _shape_problem(size: tuple[int, int], rules: Rules, family: Family | None) -> Problem | None:
    """What the header alone rules out."""
    short, long = sorted(size)
    name, most = f"{size[0]}x{size[1]} pixels", family.max_aspect if family else MAX_ASPECT
    if long >= most * short:
        return Problem("image_aspect", f"{name}: one side is {most} times the other or more")
    if short < rules.min_side:
        return Problem("image_small", f"{name}: a side needs at least {rules.min_side}")
    return None


def _notes(image: ImageFile, kind: str) -> list[Problem]:
    notes = []
    if image.mode == "CMYK":
        notes.append(_note("image_cmyk", "CMYK colours, converted to RGB without their profile"))
    if image.mode[0] in "IF" or ";16" in str(image.tile):
        notes.append(_note("image_16bit", f"more than 8 bits a channel (mode {image.mode}): convert it to 8 yourself"))
    if kind != "JPEG" and getattr(image, "is_animated", False):
        notes.append(_note("image_animated", f"an animated {kind}: its first frame is used"))
    return notes


def _orientation(image: ImageFile) -> int:
    """1 to 8, by EXIF or XMP, as `datasets` reads it. Raises where turning the picture would raise in training."""
    from PIL import Image, ImageOps

    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation not in range(2, 9):
        return 1
    # Turning writes the other tags anew, and a broken one stops it: one pixel is enough to find out.
    pixel = Image.new("1", (1, 1))
    pixel.info = dict(image.info)
    ImageOps.exif_transpose(pixel)
    return int(orientation)


# JPEG


def _jpeg_problem(data: bytes, image: ImageFile) -> Problem | None:
    if problem := _scan_problem(data):
        return problem
    complaint = _complaint(data)
    if complaint == "":
        return None
    if complaint and (damage := _damage(data, complaint)):
        return damage
    problem = _load_problem(image)
    if problem is None and complaint:
        return _note("image_odd", f"libjpeg says: {complaint}"[:200])
    return problem


def _scan_problem(data: bytes) -> Problem | None:
    """What shows without decoding. Most files are not even walked through, only searched for two strings of bytes."""
    if SECTOR not in data and data.count(b"\xff\xda") <= MAX_SCANS:
        return None
    for number, (scan, writes_zeros) in enumerate(_scans(data), 1):
        if number > MAX_SCANS:
            return Problem("image_bomb", f"a JPEG of more than {MAX_SCANS} scans: refused before decoding")
        where = data.find(SECTOR, scan.start, scan.stop)
        # Where most of a scan is zeros, they are the picture: one texture all over, the same in every block.
        if where >= 0 and not writes_zeros and 2 * data.count(0, scan.start, scan.stop) < scan.stop - scan.start:
            return Problem("image_corrupt", f"{len(SECTOR)} bytes or more are zeroed, from byte {where:,} on")
    return None


def _complaint(data: bytes) -> str | None:
    """What libjpeg says of the whole file, or first says where it says much; None where only Pillow can tell."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    try:
        decode_jpeg(data, "GRAY", fastdct=True, fastupsample=True, min_height=1, min_width=1, min_factor=8)
    except Exception as error:
        return _words(error)
    return ""


def _damage(data: bytes, complaint: str) -> Problem | None:
    """The complaints that mean lost pixels, whatever Pillow makes of the file."""
    if "Premature end of JPEG file" in complaint:
        return Problem("image_truncated", "the JPEG ends before its picture does")
    if re.search("premature end of data segment|bad Huffman code|bad arithmetic code|found marker", complaint):
        return Problem("image_corrupt", f"the JPEG is damaged inside: {complaint}")
    left_over = re.search(r"(\d+) extraneous bytes before marker", complaint)
    # A few bytes more than needed, or zeros before the end, are some cameras' habit. Stray bytes between the
    # segments of the header cost no pixel: then no scan is found from segment to segment.
    spare = int(left_over[1]) if left_over else 0
    if spare > 4 and bytes(spare) + b"\xff\xd9" not in data and any(_scans(data)):
        return Problem("image_corrupt", f"the JPEG is damaged inside: {complaint}")
    return None


_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # no marker inside a scan but restarts


def _scans(data: bytes) -> Iterator[tuple[slice, bool]]:
    """Where each scan's coded data lies in a JPEG, and whether a picture may well be written as zeros there.

    Huffman codes are canonical, so a code of zeros is the first symbol of its table. Zeros are plain where that
    symbol says "as before" or "no more in this block": in flat areas, where tables are made for the picture.
    """
    first = {}  # first symbol by table: 0 to 3 for DC, 16 to 19 for AC
    frame, at = 0, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:
            at += 1
            continue
        body, at = data[at + 4 : at + 2 + length], at + 2 + length
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker
        elif marker == 0xC4:
            while len(body) > 17:
                first[body[0]], body = body[17], body[17 + sum(body[1:17]) :]
        elif marker == 0xDA:
            found = _SCAN_END.search(data, at)
            end = found.start() if found else len(data)
            yield slice(at, end), frame not in (0xC0, 0xC1, 0xC2) or _writes_zeros(body, frame == 0xC2, first)
            at = end
        elif marker == 0xD9:
            return


def _writes_zeros(header: bytes, progressive: bool, first: dict[int, int]) -> bool:
    count = header[0]
    tables = header[2 : 1 + 2 * count : 2]
    start, refines = header[1 + 2 * count], header[3 + 2 * count] >> 4
    ends = range(0, 0xF0, 0x10) if progressive else (0,)  # symbols for the end of one or more blocks
    of_dc = [first.get(table >> 4, 0) == 0 for table in tables]
    of_ac = [first.get(0x10 | table & 15, 1) in ends for table in tables]
    if not progressive:
        return all(of_dc) and all(of_ac)
    if start:
        return all(of_ac)
    return bool(refines) or all(of_dc)


# Other kinds


def _pixel_problem(data: bytes, image: ImageFile) -> Problem | None:
    return (_png_problem(data) if image.format == "PNG" else None) or _load_problem(image)


def _png_problem(data: bytes) -> Problem | None:
    """Compare the checksums of the chunks that a picture cannot do without, up to its end mark."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        kind = bytes(view[at + 4 : at + 8])
        if not kind.isalpha():
            return Problem("image_corrupt", f"the PNG is damaged: no chunk begins at byte {at:,}")
        if end > len(data):
            break
        if kind[:1].isupper() and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return Problem("image_corrupt", f"the PNG is damaged: the checksum of {kind.decode()} is wrong")
        if kind == b"IEND":
            return None
        at = end
    return Problem("image_truncated", "the PNG ends before its end mark")


def _load_problem(image: ImageFile) -> Problem | None:
    """Decode in Pillow, whole."""
    try:
        image.load()
    except MemoryError:
        return Problem("image_bomb", f"{image.width}x{image.height} pixels take more memory than there is")
    except Exception as error:
        text = _words(error)
        if "truncated" in text.lower() or isinstance(error, EOFError):
            return Problem("image_truncated", f"the {image.format} ends before its picture does")
        if "MAX_TEXT" in text:
            return Problem("image_bomb", f"a text of the PNG unpacks to too much: {text}")
        return Problem("image_corrupt", f"the {image.format} is damaged inside: {text}")
    return None


def _unopened(data: bytes, error: Exception) -> Problem:
    """Why Pillow would not even take the header."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        return Problem("image_bomb", f"refused before decoding: {_words(error)}; the limit is {MAX_PIXELS:,} pixels")
    if "MAX_TEXT" in str(error):
        return Problem("image_bomb", f"a text of the PNG unpacks to too much: {_words(error)}")
    kind = next((name for sign, name in _BEGINNINGS.items() if data.startswith(sign)), "")
    if kind == "WebP" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return Problem("image_truncated", "the WebP ends before its picture does")
    if not isinstance(error, UnidentifiedImageError):
        return _undecodable(f"its header cannot be read: {_words(error)}")
    if kind:
        return _undecodable(f"it begins like a {kind} file, but its header is broken or cut off")
    return _undecodable(f"{_what_instead(data)}; {', '.join(FORMATS)} are read")


def _what_instead(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return "this is an AVIF or HEIC picture, or a film"
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    known = next((name for sign, name in _NOT_READ.items() if start.lower().startswith(sign.lower())), "")
    return f"this is {known}" if known else "this is no picture"


def _undecodable(sentence: str) -> Problem:
    return Problem("image_undecodable", sentence)


def _note(code: str, sentence: str) -> Problem:
    return Problem(code, sentence, fatal=False)


def _words(error: Exception) -> str:
    """An error in one short line, without the addresses that Pillow prints of its buffers."""
    text = re.sub(r"<[^>]* at 0x\w+>", "the data", " ".join(str(error).split()))
    return (text or type(error).__name__)[:160]
