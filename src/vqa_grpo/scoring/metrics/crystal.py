"""The published reference's answer grading, bit for bit, so that results can be laid beside its own.

Rules: `AccuracyCalculator` of PyPI `crystal-metrics` 0.2.0 (github.com/waybarrios/crystal) without its LLM judge. It
is here to be compared with, not to be trained on: it pays 0.9 for 2003 against 2010 and 0.7 for an empty answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vqa_grpo.scoring.metrics.shape import Scored, metric, shown

ABSOLUTE_TOLERANCE = 0.05
RELATIVE_TOLERANCE = 0.1
COARSE_TOLERANCE = 0.15

_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "`": "'"})
_LONE_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
_DROPPED = str.maketrans("", "", ",()\"[]{}'")
_SPACES = re.compile(r"\s+")

# Removed one after the other, wherever they stand.
_LEADS = [
    re.compile(lead + r":?\s*")
    for lead in ("the answer is", "the result is", "answer", "result", "approximately", "about")
]
_NUMBER = re.compile(r"-?\d+\.?\d*")

_YES = ("yes", "true", "correct", "affirmative")
_NO = ("no", "false", "incorrect", "negative")

# The reference also looks for "a)" and "(a)", in text from which it has just removed the brackets.
_LETTERS = [
    re.compile(p) for p in (r"^([a-z])$", r"^([a-z])\.", "option ([a-z])", "choice ([a-z])", "answer is ([a-z])")
]
_OPTION_LINE = re.compile(r"([A-Z])\)\s*([^\n]+)")
_NEARLY_ALL = 0.8


def normalise(text: str) -> str:
    text = _LONE_PERIOD.sub("", text.strip().lower().translate(_QUOTES))
    return _SPACES.sub(" ", text.translate(_DROPPED))


def first_number(text: str) -> float | None:
    """The first number of a text, whatever stands around it.

    >>> first_number("Answer: about 1,000 m")
    1.0
    """
    text = text.strip().lower()
    for lead in _LEADS:
        text = lead.sub("", text)
    found = _NUMBER.search(text)
    return float(found.group()) if found else None


def _numbers(seen: float, wanted: float) -> Scored:
    off = abs(seen - wanted)
    if seen == wanted:
        return Scored(1.0, "numeric_exact", f"{seen} equals {wanted}", True)
    if off <= ABSOLUTE_TOLERANCE:
        return Scored(0.95, "numeric_rounded", f"{seen} is within {ABSOLUTE_TOLERANCE} of {wanted}", True)
    share = off / max(abs(wanted), 1e-10)
    if share <= RELATIVE_TOLERANCE:
        return Scored(0.9, "numeric_rounded", f"{seen} is within 10 percent of {wanted}", True)
    # Decimals are counted in how Python prints the number, without an exponent's trailing zeros.
    _, _, fraction = str(seen).rstrip("0").rstrip(".").partition(".")
    if wanted != 0 and len(fraction) <= 2:
        if share < COARSE_TOLERANCE:
            return Scored(0.85, "numeric_rounded", f"{seen} is within 15 percent of {wanted}", True)
        if abs(seen - round(wanted, len(fraction))) < 1e-6:
            return Scored(0.95, "numeric_rounded", f"{seen} is {wanted} rounded", True)
    return Scored(0.0, "numeric_mismatch", f"{seen} is not {wanted}", False)


def _yes_or_no(text: str) -> str:
    text = normalise(text)
    if any(word in text for word in _YES):
        return "yes"
    return "no" if any(word in text for word in _NO) else text


def _letter(text: str) -> str | None:
    text = normalise(text)
    found = next(filter(None, (pattern.search(text) for pattern in _LETTERS)), None)
    return found.group(1).upper() if found else None


def _option(text: str, problem: str) -> str | None:
    """The option that a text equals, or makes up nearly all of, or that makes up nearly all of it."""
    text = normalise(text)
    for letter, line in _OPTION_LINE.findall(problem):
        option = normalise(line)
        short, long = sorted((text, option), key=len)
        if text == option or (short in long and len(short) / len(long) >= _NEARLY_ALL):
            return str(letter)
    return None


def grade(prediction: str, gold: str, problem: str = "") -> Scored:
    """One answer against one gold. `problem` is the question with its options as lines `A) …`.

    >>> grade("2003", "2010").reward, grade("1,000", "1000").reward, grade("", "nokia phone").reward
    (0.9, 0.0, 0.7)
    """
    seen, wanted = first_number(prediction), first_number(gold)
    if seen is not None and wanted is not None:
        return _numbers(seen, wanted)

    said, right = normalise(prediction), normalise(gold)
    if _is_yes_or_no(gold):
        passed = _yes_or_no(prediction) == _yes_or_no(gold)
        return Scored(float(passed), "yes_no", f"{shown(said)} is read as {shown(_yes_or_no(prediction))}", passed)

    picked = _letter(prediction) or _option(prediction, problem)
    key = _letter(gold) or _option(gold, problem)
    if picked and key:
        return Scored(float(picked == key), "choice", f"{picked} is chosen, {key} is right", picked == key)

    if said == right:
        return Scored(1.0, "exact", f"{shown(said)} equals {shown(right)}", True)
    if len(said.split()) == len(right.split()) == 1:
        return Scored(0.0, "exact", f"{shown(said)} and {shown(right)} are different words", False)
    if said in right or right in said:
        return Scored(0.7, "substring", f"one of {shown(said)} and {shown(right)} is part of the other", True)
    return Scored(0.0, "substring", f"neither of {shown(said)} and {shown(right)} is part of the other", False)


def _is_yes_or_no(gold: str) -> bool:
    # Twice, as the reference does: the space inside a removed quote only goes at the second time.
    return normalise(normalise(gold)) in ("yes", "no", "true", "false")


def _kind(golds: list[str], options: list[str]) -> str:
    if first_number(golds[0]) is not None:
        return "number"
    if _is_yes_or_no(golds[0]):
        return "yes_no"
    return "choice" if _letter(golds[0]) or _option(golds[0], as_problem(options)) else "text"


def as_problem(options: Sequence[str]) -> str:
    """Options as the reference's prompt shows them, which is where it reads them from."""
    return "\n".join(f"{chr(ord('A') + at)}) {option}" for at, option in enumerate(options))


@metric("crystal", _kind)
def crystal(prediction: str, golds: list[str], options: list[str]) -> Scored:
    """The reference's confidence where it says correct, and 0 elsewhere; the best over several golds."""
    problem = as_problem(options)
    return max((grade(prediction, gold, problem) for gold in golds), key=lambda scored: scored.reward)
