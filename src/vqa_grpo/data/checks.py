"""What is wrong with a row's texts: pure checks, each problem with a code and a sentence.

The checks of pictures stand in pictures.py, those that need the whole data set in across.py.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vqa_grpo.contract.record import Record
from vqa_grpo.scoring.answer import choice, grade
from vqa_grpo.scoring.answer.normal import MAX_CHARACTERS, shown

MAX_STEP_WORDS = 14

CODES = {
    # fatal: the row goes to quarantine
    "row_unreadable": "the row cannot be read from the source",
    "image_missing": "there is no picture",
    "image_undecodable": "the picture is of no kind that can be decoded, or is broken from the start",
    "image_truncated": "the picture's file ends too early",
    "image_corrupt": "the picture's data is damaged inside",
    "image_bomb": "the picture claims so many pixels that it is refused before decoding",
    "image_aspect": "one side of the picture is far longer than the other",
    "image_small": "a side of the picture has too few pixels",
    "image_tokens": "the picture takes more visual tokens than the budget",
    "question_empty": "the question is empty",
    "answer_empty": "the answer is empty",
    "answer_not_offered": "the answer is neither an option nor the letter of one",
    "answer_letter_out_of_range": "the answer is a letter that no option has",
    "answer_ambiguous": "the answer is an option that is offered twice",
    "text_encoding": "a text holds half a character or a NUL",
    # warnings: the row is used, and worth a look
    "image_odd": "the picture's decoder complains, but the whole picture is there",
    "image_cmyk": "the picture is made for print (CMYK)",
    "image_16bit": "the picture has more than 8 bits for a colour",
    "image_animated": "the picture moves: only its first frame is seen",
    "image_rotated": "the picture is shown turned, by its EXIF orientation",
    "image_downscaled": "the picture has more pixels than the budget and is made smaller",
    "text_mojibake": "a text was read in a wrong encoding",
    "options_duplicate": "a wrong option is offered twice",
    "steps_missing": "the reasoning reward has no reference steps to compare with",
    "step_long": f"a reference step has more than {MAX_STEP_WORDS} words",
    "step_chained": "a reference step is a chain of reasons",
    "step_clauses": "a reference step is more than one clause",
    "row_duplicate": "an earlier row has the same picture and texts",
    "id_repeated": "another row has the same id: predictions cannot be told apart by it",
    "answers_conflict": "the same question about the same picture has another answer elsewhere",
    "image_leak": "the picture is held out by another split, which keeps it",
}


@dataclass(frozen=True)
class Problem:
    """`fatal` rows cannot be trained on and go to quarantine; the others are worth a look."""

    code: str
    sentence: str
    fatal: bool = True


def text_problems(record: Record, wants_steps: bool) -> Iterator[Problem]:
    """Everything wrong with a row's texts, at most one problem for each code. No text makes this raise.

    `wants_steps` is whether the row is trained on with the reasoning reward.
    """
    yield from _encoding(record)
    if not is_visible(record.question):
        yield Problem("question_empty", "the question is empty")
    if not is_visible(record.answer):
        yield Problem("answer_empty", "the answer is empty")
    elif offered := record.offered():
        yield from _options(record.answer, offered)
    yield from _steps(record.reference_steps, wants_steps)


# --- characters -------------------------------------------------------------------------------------------------

_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters and symbols to Unicode, nothing to the eye
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# UTF-8 that was read as Latin-1 or Windows-1252. The lead bytes that are common letters of their own need company:
# a ß or an ä before a closing quote is no mojibake.
_TAIL = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = re.compile(
    f"\ufffd|Ã{_TAIL}|Â[\u0080-\u00bf]|â€{_TAIL}|ðŸ|ï»¿|(?:[ÐÑØÙÎÏ]{_TAIL}){{2}}|(?:[ãäåæçèé]{_TAIL}{{2}}){{2}}"
)


def is_visible(text: str) -> bool:
    """Whether a text shows anything at all: spaces, controls, joiners and lone marks do not count."""
    return any(unicodedata.category(letter)[0] not in "ZCM" and letter not in _BLANK for letter in text)


def storable(text: str) -> str:
    """The text as UTF-8, and thus Arrow, can hold it: lone surrogates are written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def named(row_id: str) -> str:
    """A row's id as a sentence can hold it: short, on one line, and nothing that steers a terminal.

    >>> named("train/00000007"), named("\x1b[2J")
    ('train/00000007', '\\\\x1b[2J')
    """
    short = row_id if len(row_id) <= 80 else row_id[:79] + "…"
    return short if short.isprintable() else repr(short)[1:-1]


def _encoding(record: Record) -> Iterator[Problem]:
    texts = (record.question, record.answer, record.source, record.id)
    together = "\n".join((*texts, *record.reference_steps, *record.choices, *record.options))
    if together.isascii() and "\0" not in together:
        return
    if found := _UNSTORABLE.search(together):
        what = "a NUL character" if found[0] == "\0" else "half of a surrogate pair"
        yield Problem("text_encoding", f"a text holds {what}: {shown(_around(together, found))}")
    if found := _MOJIBAKE.search(together):
        sentence = f"a text was read in a wrong encoding: {shown(_around(together, found))}"
        yield Problem("text_mojibake", sentence, fatal=False)


def _around(text: str, found: re.Match[str]) -> str:
    return text[max(0, found.start() - 20) : found.end() + 20]


# --- options ----------------------------------------------------------------------------------------------------

_LETTER = re.compile(r"\s*[(\[]?([A-Za-z])[)\].:]{0,2}\s*")


def chosen(answer: str, offered: Sequence[str]) -> int | None:
    """Which option the answer names, by its text or else by its letter; None where it names none or several.

    >>> [chosen(answer, ["2003", "2010"]) for answer in ("2010", "b", "(A)", "B.", "C", "1999")]
    [1, 1, 0, 1, None, None]
    """
    text = _same(answer)
    for index, option in enumerate(offered):
        if _same(option) == text:
            return index
    if found := _LETTER.fullmatch(answer):
        index = ord(found[1].upper()) - ord("A")
        return index if index < len(offered) else None
    return None


def _same(text: str) -> str:
    return " ".join(text.split()).casefold()


def _options(answer: str, offered: tuple[str, ...]) -> Iterator[Problem]:
    texts = [_same(option) for option in offered]
    times = Counter(texts)
    index = chosen(answer, offered)
    if index is not None and times[texts[index]] > 1:
        yield Problem("answer_ambiguous", f"the answer {shown(answer)} is offered twice: {shown(', '.join(offered))}")
    elif len(times) < len(texts):
        double = next(option for option, text in zip(offered, texts, strict=True) if times[text] > 1)
        yield Problem("options_duplicate", f"the option {shown(double)} is offered twice", fatal=False)
    # The grader has the last word: it knows numbers, labels that options carry themselves, and several right ones.
    if index is not None or choice.Menu(offered, _graded_same).resolve_all(answer[:MAX_CHARACTERS]):
        return
    if _LETTER.fullmatch(answer):
        last = choice.LETTERS[min(len(offered), len(choice.LETTERS)) - 1]
        sentence = f"the answer {shown(answer)} is a letter beyond {last}, the last of {len(offered)} options"
        yield Problem("answer_letter_out_of_range", sentence)
    else:
        sentence = (
            f"the answer {shown(answer)} is neither an option nor an option's letter: {shown(', '.join(offered))}"
        )
        yield Problem("answer_not_offered", sentence)


def _graded_same(one: str, other: str) -> bool:
    return grade(one, [other]).correct


# --- reference steps --------------------------------------------------------------------------------------------

_CHAIN = re.compile(
    r"\b(?:because|therefore|thus|hence|consequently|so that|as a result|which means|it follows)\b|,\s+so\b",
    re.IGNORECASE,
)
# What is quoted is read off the picture: no clause of the step.
_QUOTED = re.compile(r"\"[^\"]*\"|“[^“”]*”|(?<!\w)'[^']*'(?!\w)|(?<!\w)‘[^‘’]*’(?!\w)")
_CLAUSES = re.compile(r";|\w{2}[.!?]\s+[A-Z]|,\s+(?:and|but|or|while|whereas|which|who|although|since|if|when)\b")


def _steps(steps: Sequence[str], wants_steps: bool) -> Iterator[Problem]:
    """The guide's rules: a step is one clause, of at most 14 words, and no chain of reasons."""
    if wants_steps and not any(map(is_visible, steps)):
        yield Problem("steps_missing", "no reference steps, which the reasoning reward compares with", fatal=False)
    rules: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
        ("step_long", f"has more than {MAX_STEP_WORDS} words", _is_long),
        ("step_chained", "is a chain of reasons", _is_chain),
        ("step_clauses", "is more than one clause", _is_several_clauses),
    )
    for code, what, breaks in rules:
        broken = [number for number, step in enumerate(steps) if breaks(step)]
        if broken:
            more = f", and {len(broken) - 1} more" if broken[1:] else ""
            yield Problem(code, f"step {broken[0] + 1} {what}{more}: {shown(steps[broken[0]])}", fatal=False)


def _is_long(step: str) -> bool:
    return len(step.split()) > MAX_STEP_WORDS


def _is_chain(step: str) -> bool:
    return _CHAIN.search(step) is not None


def _is_several_clauses(step: str) -> bool:
    return _CLAUSES.search(step) is not None and _CLAUSES.search(_QUOTED.sub("x", step)) is not None
