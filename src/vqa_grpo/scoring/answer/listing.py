"""Lists: the same items as often, in any order unless the question or the gold answer asks for one.

Numbers in round brackets are a point, (5, 3), and a point has an order; a list of points has none.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vqa_grpo.scoring.answer.normal import Match, plain, tidy

MAX_ITEMS = 32
MAX_ITEM_WORDS = 5
# A comma before exactly three digits belongs to a number.
_BETWEEN = re.compile(r" ?(?:;|,(?!(?<=\d,)\d{3}(?!\d))| & |(?<!\w)and(?!\w)) ?", re.IGNORECASE)
_BULLET = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+", re.MULTILINE)
_IN_ORDER = re.compile(r" ?(?:->|→|=>|\bthen\b) ?| > ", re.IGNORECASE)
_NUMBER = r"[+-]?\d*\.?\d+(?:/\d+)?"
_POINT = re.compile(rf"\( ?{_NUMBER}(?: ?[,;] ?{_NUMBER}){{1,3}} ?\)")
_WITHIN = str.maketrans({",": "\x1f", ";": "\x1f"})  # keeps a point whole while the list around it is split
_BRACKETS = re.compile(r"\[(.*)\]|\((.*)\)|\{(.*)\}", re.DOTALL)


def is_gold(gold: str) -> bool:
    """Two or more short items; longer parts are clauses of a sentence.

    >>> is_gold("red, blue"), is_gold("salt and pepper"), is_gold("['red']"), is_gold("1,000")
    (True, True, True, False)
    """
    found = items(gold)
    several = len(found) > 1 or (len(found) == 1 and _is_python_list(gold))
    return several and len(found) <= MAX_ITEMS and all(len(item.split()) <= MAX_ITEM_WORDS for item in found)


def is_in_order(gold: str) -> bool:
    return _IN_ORDER.search(tidy(gold)) is not None or is_point(gold)


def is_point(text: str) -> bool:
    """
    >>> is_point("(5, 3)"), is_point("5, 3"), is_point("(red, blue)")
    (True, False, False)
    """
    return _POINT.fullmatch(tidy(text).rstrip(".")) is not None


def items(text: str) -> list[str]:
    """
    >>> items("red, blue and green"), items("(5, 3)"), items("[(5, 3), (1, 2)]")
    (['red', 'blue', 'green'], ['5', '3'], ['(5, 3)', '(1, 2)'])
    """
    if "\n" in text:
        text = _BULLET.sub("", text)
    text = " ".join(text.replace("\n", ";").replace("\x1f", " ").split())  # single spaces keep the expressions linear
    if is_point(text):
        return [tidy(part) for part in re.split("[,;]", text.strip(" ().")) if part.strip()]
    text = _POINT.sub(lambda found: found[0].translate(_WITHIN), text)
    if (found := _BRACKETS.fullmatch(text)) and _is_one_pair(text):
        text = found[1] or found[2] or found[3] or ""
    in_order = [part for part in _IN_ORDER.split(text) if part.strip()]
    parts = in_order if len(in_order) > 1 else _BETWEEN.split(text)
    return [item for part in parts if (item := tidy(part.replace("\x1f", ",").strip(" ,;")))]


def _is_one_pair(text: str) -> bool:
    """Whether the first bracket closes with the last character, unlike those of "(1, 2) and (3, 4)"."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth <= 0:
            return index == len(text) - 1
    return True


def match(prediction: str, gold: str, ordered: bool, same: Callable[[str, str], bool]) -> Match:
    """`same` compares two items by the gold item's own type."""
    wanted, given = items(gold), items(prediction)[: 2 * MAX_ITEMS]
    in_order = ordered or is_in_order(gold)
    rule = "list_ordered" if in_order else "list"
    join = " → ".join if in_order else " + ".join
    forms = join(map(plain, given))[:400], join(map(plain, wanted))[:400]
    if len(wanted) != len(given):
        return Match(False, rule, *forms)
    if in_order:
        return Match(all(map(same, given, wanted)), rule, *forms)
    left = sorted(given, key=plain)
    for item in sorted(wanted, key=plain):
        hit = next((index for index, other in enumerate(left) if plain(other) == plain(item)), None)
        if hit is None:
            hit = next((index for index, other in enumerate(left) if same(other, item)), None)
        if hit is None:
            return Match(False, rule, *forms)
        del left[hit]
    return Match(True, rule, *forms)


def _is_python_list(text: str) -> bool:
    return text.strip().startswith("[") and text.strip().endswith("]")
