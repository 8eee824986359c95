"""MMMU's grading of multiple choice and of open answers.

Rules: `eval/eval_utils.py` of MMMU-Benchmark/MMMU, as lmms-eval carries it (`tasks/_task_utils/mmmu_mcq_utils.py` and
`tasks/mmmu/utils.py`), except that an answer that names no option is wrong, where the reference draws one at random.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vqa_grpo.scoring.metrics.shape import Scored, metric, shown

_TRIMMED = ",.!?;:'"
# An answer this short is taken for a letter that was not recognised, not for a sentence that names an option.
_FEWEST_WORDS = 6

# Where a sentence turns to its answer. The last line may also be an equation.
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")

# The reference's three patterns, kept from starting again inside a run of digits: that can add no match, and is what
# makes them quadratic on a long run.
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"(?:-|(?<!\d))\d+(?:\.\d+)?[eE][+-]?\d+")
_SIMPLE = re.compile(r"(?:(?:-|(?<!\d))(?:\d+\.\d+|\d+\b)|-?\.\d+)(?![eE][+-]?\d+)(?![,\d])")


def letters(options: Sequence[str]) -> list[str]:
    return [chr(ord("A") + at) for at in range(len(options))]


def chosen(response: str, options: Sequence[str]) -> str | None:
    """The letter that a response settles on, or None. Later mentions win; the reference's order of forms is kept.

    >>> chosen("The answer is (B).", ["red", "blue"]), chosen("none", ["red", "blue"])
    ('B', None)
    """
    for mark in _TRIMMED:
        response = response.strip(mark)
    response = f" {response} "
    # A letter before a space may be the end of a word; among several, only the last that stands alone counts.
    for form, position in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        named = [letter for letter in letters(options) if form.format(letter) in response]
        if named:
            return max(named, key=lambda letter: response.rfind(position.format(letter)))
    if len(response.split()) < _FEWEST_WORDS:
        return None
    lowered = response.lower()
    texts = {letter: option.lower() for letter, option in zip(letters(options), options, strict=True)}
    named = [letter for letter, text in texts.items() if text in lowered]
    return max(named, key=lambda letter: lowered.rfind(texts[letter])) if named else None


def _letter_of(gold: str, options: Sequence[str]) -> str | None:
    """MMMU's golds are letters; a gold that is the text of exactly one option stands for its letter."""
    if gold.strip() in letters(options):
        return gold.strip()
    same = [letter for letter, option in zip(letters(options), options, strict=True) if option.strip() == gold.strip()]
    return same[0] if len(same) == 1 else None


def _comparable(text: str) -> list[str | float]:
    """A number to two decimals, or the text in lower case; one letter only counts next to a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _key_parts(response: str) -> list[str]:
    response = response.strip().strip(".").lower()
    *lines, last = response.split("\n")
    parts = []
    for line, keys in [*((line, _KEYS) for line in lines), (last, (*_KEYS, "="))]:
        tails = [line.rsplit(key, 1)[-1].strip() for key in keys if key in line]
        # An empty tail is passed over, unless a later, longer one is compared with it: it is then the shortest.
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            parts.append(shortest)
    return parts or [response]


def open_answers(response: str) -> set[str | float]:
    """Everything in a response that may be its answer: the ends of its key sentences, and the numbers in them."""
    parts = _key_parts(response)
    found = [n for part in parts for pattern in (_WITH_COMMAS, _SCIENTIFIC, _SIMPLE) for n in pattern.findall(part)]
    return {value for text in (*parts, *found) for value in _comparable(text)}


def open_match(response: str, golds: Sequence[str]) -> bool:
    """A number must equal a gold's; a text must contain a gold."""
    wanted = [value for gold in golds for value in _comparable(gold)]
    texts = [value for value in wanted if isinstance(value, str)]
    numbers = {value for value in wanted if not isinstance(value, str)}
    return any(
        any(text in answer for text in texts) if isinstance(answer, str) else answer in numbers
        for answer in open_answers(response)
    )


@metric("mmmu", lambda golds, options: "choice" if options else "open")
def mmmu(prediction: str, golds: list[str], options: list[str]) -> Scored:
    """Multiple choice where there are options, and an open answer otherwise. 1 or 0."""
    if not options:
        passed = open_match(prediction, golds)
        relation = "holds" if passed else "does not hold"
        return Scored(float(passed), "open", f"{shown(prediction)} {relation} {' or '.join(map(shown, golds[:3]))}")
    letter = chosen(prediction, options)
    wanted = [_letter_of(gold, options) for gold in golds]
    if not any(wanted):
        return Scored(0.0, "no_such_option", f"the gold {shown(golds[0])} is none of the options")
    if letter is None:
        return Scored(0.0, "no_option_named", f"{shown(prediction)} names none of the options")
    return Scored(float(letter in wanted), "choice", f"{shown(prediction)} settles on {letter}, the gold is {wanted}")
