"""Numbers in English words: "twenty-one thousand", "a dozen", "one and a half", "two thirds", "twenty-first"."""

from __future__ import annotations

from fractions import Fraction

_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SMALL = {word: value for value, word in enumerate(_UNITS)} | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}
SCALES = {"thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9, "trillion": 10**12}
_ORDINALS = {
    **dict(
        zip(["first", "second", "third", "fifth", "eighth", "ninth", "twelfth"], (1, 2, 3, 5, 8, 9, 12), strict=True)
    ),
    **{f"{word}th": value for word, value in SMALL.items() if value in (4, 6, 7, *range(10, 20)) and value != 12},
    **{f"{word[:-1]}ieth": value for word, value in SMALL.items() if value >= 20},
    "hundredth": 100,
    "thousandth": 10**3,
    "millionth": 10**6,
}
PARTS = {
    **dict.fromkeys(("half", "halves"), 2),
    **dict.fromkeys(("quarter", "quarters", "fourth", "fourths"), 4),
    **{
        word + plural: value
        for word, value in _ORDINALS.items()
        if 3 <= value <= 10 or value in (12, 20) or value >= 100
        for plural in ("", "s")
    },
}


def read(words: list[str]) -> tuple[Fraction, bool, int] | None:
    """The number at the start of a list of lower-case words: value, whether it is an ordinal, and words used.

    >>> read("twenty one thousand and five people".split())
    (Fraction(21005, 1), False, 5)
    >>> read(["two", "thirds"]), read(["twenty", "first"])
    ((Fraction(2, 3), False, 2), (Fraction(21, 1), True, 2))
    """
    if words[:1] == ["half"]:
        skip = 2 if words[1:2] == ["a"] and words[2:3] in (["dozen"], ["million"], ["billion"]) else 1
        if skip == 2:
            return Fraction(6 if words[2] == "dozen" else SCALES[words[2]] // 2), False, 3
        return Fraction(1, 2), False, 1
    whole = _cardinal(words)
    if whole is None:
        return (Fraction(_ORDINALS[words[0]]), True, 1) if words and words[0] in _ORDINALS else None
    value, used = whole
    rest = words[used:]
    if value != 1 and rest[:1] and rest[0] in _ORDINALS and PARTS.get(rest[0], 0) >= 100:  # the two hundredth
        return Fraction(value * _ORDINALS[rest[0]]), True, used + 1
    if value < 20 and rest[:1] and rest[0] in PARTS and (value != 1 or not rest[0].endswith("s")):
        return Fraction(value, PARTS[rest[0]]), False, used + 1
    if rest[:2] == ["and", "half"] or rest[:3] in (["and", "a", "half"], ["and", "one", "half"]):
        return value + Fraction(1, 2), False, used + rest.index("half") + 1
    if rest[:3] in (["and", "a", "quarter"], ["and", "one", "quarter"]):
        return value + Fraction(1, 4), False, used + 3
    if rest[:1] and rest[0] in _ORDINALS and value >= 20 and value % 10 == 0 and _ORDINALS[rest[0]] < 10:
        return Fraction(value + _ORDINALS[rest[0]]), True, used + 1
    last = rest[1:2] if rest[:1] == ["and"] else rest[:1]
    if last and value >= 100 and value % 100 == 0 and last[0] in _ORDINALS and _ORDINALS[last[0]] < 100:
        return Fraction(value + _ORDINALS[last[0]]), True, used + rest.index(last[0]) + 1
    if rest[:1] == ["point"]:
        digits = "".join(str(SMALL[word]) for word in _digits(rest[1:]))
        if digits:
            return value + Fraction(int(digits), 10 ** len(digits)), False, used + 1 + len(digits)
    return Fraction(value), False, used


def _digits(words: list[str]) -> list[str]:
    taken: list[str] = []
    for word in words[:12]:
        if SMALL.get(word, 10) > 9:
            break
        taken.append(word)
    return taken


def _cardinal(words: list[str]) -> tuple[int, int] | None:
    total = group = used = 0
    scale = max(SCALES.values()) + 1  # the scale before, so that they only go down
    last = 0  # the last small number, so that "twenty one" adds up and "one two" does not
    index = 0
    while index < len(words):
        word = words[index]
        if word in ("a", "an") and index == 0 and words[1:2] and words[1] in (*SCALES, "hundred", "dozen", *PARTS):
            group, last = 1, 1
            if words[1] in PARTS:
                return 1, 1
        elif word == "and" and used and words[index + 1 : index + 2] and words[index + 1] in SMALL and not last:
            index += 1
            continue
        elif word in SMALL and (not last or (last >= 20 and last % 10 == 0 and 0 < SMALL[word] < 10)):
            group, last = group + SMALL[word], SMALL[word] or -1
        elif word == "hundred" and 0 < group < 100:
            group, last = group * 100, 0
        elif word == "dozen" and 0 < group < 100:
            group, last = group * 12, -1
        elif word in SCALES and group and SCALES[word] < scale:
            scale = SCALES[word]
            total, group, last = total + group * scale, 0, 0
        else:
            break
        index += 1
        used = index
    return (total + group, used) if used else None
