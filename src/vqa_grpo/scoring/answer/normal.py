"""How answers are brought into one form before they are compared."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import NamedTuple

MAX_CHARACTERS = 1024  # no answer to a visual question is longer; past it nothing is normalised at all


class Match(NamedTuple):
    """What one kind of comparison found: the rule that decided, and the two forms that it compared."""

    correct: bool
    rule: str
    seen: str
    expected: str


def _span(*bounds: int) -> list[int]:
    return [code for first, last in zip(bounds[::2], bounds[1::2], strict=True) for code in range(first, last + 1)]


# What shows nothing is nothing and what shows a blank is a space, so that an answer of these alone is an empty one.
_UNSEEN = [0xAD, 0x34F, 0x61C, 0x17B4, 0x17B5, 0xFEFF, *_span(0x180B, 0x180F, 0x200B, 0x200F, 0x202A, 0x202E)]
_UNSEEN += _span(0x2060, 0x206F, 0xFE00, 0xFE0F, 0xFFF0, 0xFFFB, 0xE0000, 0xE007F, 0xE0100, 0xE01EF)
_BLANK = [*_span(0, 8, 0xE, 0x1B, 0x7F, 0x84, 0x86, 0x9F, 0x115F, 0x1160), 0x2800, 0x3164, 0xFFA0]
_SAME: dict[int, str | None] = dict.fromkeys(_UNSEEN) | dict.fromkeys(_BLANK, " ")
for _written, _one in (("−‐‑‒–—﹣－", "-"), ("‘’ʼ′`´", "'"), ("“”„″", '"'), ("º˚", "°")):
    _SAME |= dict.fromkeys(map(ord, _written), _one)
_SUPERSCRIPT = re.compile("[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUPERSCRIPT_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_AFTER_DIGIT = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞↉])")
_LEAD_IN = re.compile(
    r"(?:(?:so|thus|therefore|hence),?\s+)?(?:(?:the|my)?\s*(?:final|correct|right|best)?\s*answer"
    r"|the (?:correct|right|best) (?:option|choice))"
    r"\s*(?:is|:|=|would be)\s*:?\s*(?=\S)",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"(\*{1,3}|_{1,3}|[\"'`])(.+)\1", re.DOTALL)


def tidy(text: str) -> str:
    """One way to write each character: NFKC, plain quotes and dashes, single spaces, nothing wrapped around.

    NFKC turns m² into m2 and 1½ into 11/2, so powers and mixed fractions are kept apart first.
    """
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPT_DIGITS), text)
        text = unicodedata.normalize("NFKC", _AFTER_DIGIT.sub(" ", text.translate(_SAME)))
        text = text.translate(_SAME).replace("\u2044", "/").replace("\u2215", "/")
        text = text[: 2 * MAX_CHARACTERS]  # NFKC makes 18 characters of one; `grade` refuses what is over the limit
    elif not text.isprintable():
        text = text.translate(_SAME)
    text = " ".join(text.replace("`", "'").split())
    while (inner := _WRAPPED.fullmatch(text)) and inner[1] not in inner[2]:
        text = inner[2].strip()
    return text


def without_lead_in(text: str) -> str:
    """Drop "The answer is" from a prediction: what follows is the answer, whatever its type."""
    return tidy(_LEAD_IN.sub("", text, count=1)) if _LEAD_IN.match(text) else text


# Signs that change the meaning stay: 5%, C++, C#, $5, -5, 3.5, 10:30, 3-4, 1/2, <5, R&B, @home.
_DROPPED = re.compile(
    r"""(?<!\d)[.,:](?!\d)|(?<=\d)[.,:](?!\d)|(?<!\d)[,:](?=\d)|(?<=[^\W\d])\.(?=\d)|[!?;"'()\[\]{}|\\]"""
)
# A hyphen between words is a space; at the end of a letter it is a grade or a charge (A-, O-), before one a sign (-x).
_SPACED = re.compile(r"(?<=\w)-(?!\d|\Z)|(?<=[^\W\d])-(?!\Z)|(?<=\w\w)-\Z|(?<!\w)-(?!\d|\w\Z)|[_~…·•]")
_RANGE = re.compile(r"(?<=[\d%]) (?:-|to) (?=[$€£]?\d)|(?<=\d) -(?=\d)|(?<=\d)- (?=\d)")
_RATIO = re.compile(r"(?<=\d) : (?=\d)")
_ARTICLES = re.compile(r"(?<!\S)(?:[Tt]he|THE|[Aa]n|AN|a)(?=\s+\S)|^A(?=\s+[a-z])")


def plain(text: str) -> str:
    """The form in which texts are equal: case, articles, punctuation and white space do not count.

    Articles go as in the VQA and SQuAD evaluations, but never the last word or a capital inside the text: vitamin A
    is not vitamin. A text of nothing but punctuation stays as it is, so that it equals only itself.

    >>> plain("The  T-shirt!"), plain("U.S.A."), plain("$1,000.50"), plain("-5"), plain("vitamin A")
    ('t shirt', 'usa', '$1,000.50', '-5', 'vitamin a')
    """
    return _plain_cached(text) if len(text) <= 128 else _plain(text)


def _plain(text: str) -> str:
    tidied = tidy(text)
    kept = _RATIO.sub(":", _RANGE.sub("-", tidied))
    kept = _SPACED.sub(" ", _DROPPED.sub("", kept))
    kept = _ARTICLES.sub(" ", " ".join(kept.split()))
    return " ".join(kept.casefold().split()) or tidied.casefold()


# Gold answers, options and most predictions come again and again; long texts would make the cache heavy.
_plain_cached = functools.lru_cache(maxsize=8192)(_plain)


def shown(text: str) -> str:
    """A text as it may stand in an explanation: short, quoted, lone surrogates escaped."""
    return repr(text if len(text) <= 80 else text[:79] + "…")
