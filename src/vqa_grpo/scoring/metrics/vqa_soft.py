"""VQAv2's soft accuracy, and TextVQA's variant of it.

Rules: `PythonEvaluationTools/vqaEvaluation/vqaEval.py` of GT-Vision-Lab/VQA for VQAv2, quirks included, and the
`EvalAIAnswerProcessor` that Pythia and lmms-eval (`tasks/_task_utils/vqa_eval_metric.py`) use for TextVQA.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vqa_grpo.scoring.metrics.shape import Scored, metric, shown

# Below this, leaving one answer out can never leave three that agree: no prediction could earn full marks.
FEWEST_ANNOTATORS = 4

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The official pattern means to say "not after a digit" but misspells the look-behind, so only what follows counts.
_PERIOD = re.compile(r"\.(?!\d)")
# re.UNICODE lands in the place of `count` there, and its value is 32.
_PERIODS_REMOVED = 32
_OFFICIAL_THOUSANDS = re.compile(r"\d,\d")
_EVALAI_THOUSANDS = re.compile(r"(?<=\d),+(?=\d)")

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_NUMBERS)} | {"none": "0"}
_WITH_APOSTROPHES = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
)


def _contractions() -> dict[str, str]:
    """Each contraction under every spelling that lacks one of its apostrophes: what the official table comes to.

    Its keys with a capital letter are left out: they are looked up in lowered text and never found.
    """
    whole = _WITH_APOSTROPHES.split()
    table = {
        word[:at] + word[at + 1 :]: word for word in whole for at, character in enumerate(word) if character == "'"
    }
    # The one entry of the official table that takes an apostrophe away.
    return table | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _contractions()


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _plain_words(text: str, thousands: re.Pattern[str]) -> str:
    """Punctuation, number words, articles and contractions, as the official evaluation treats them."""
    joined = thousands.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if joined or touches_space else " ")
    out = _PERIOD.sub("", out, count=_PERIODS_REMOVED)
    words = [_NUMBER_WORDS.get(word, word) for word in out.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def official(text: str) -> str:
    """A text as VQAv2's evaluation compares it.

    >>> official("None of the above"), official("U.S.A."), official("1,000 dogs!")
    ('0 of above', 'usa', '1000 dogs')
    """
    return _plain_words(_one_line(text), _OFFICIAL_THOUSANDS)


def evalai(text: str) -> str:
    """A text as TextVQA's evaluation compares it: commas and question marks go first, and 's becomes a word.

    >>> evalai("Joe's Diner, NY?"), official("Joe's Diner, NY?")
    ("joe 's diner ny", "joe's diner ny")
    """
    separated = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _plain_words(_one_line(separated), _EVALAI_THOUSANDS)


def agreement(prediction: str, golds: Sequence[str]) -> float:
    """Leave each answer out in turn; three agreeing answers among the others are worth one point; then average.

    >>> agreement("red", ["red", "red"] + ["blue"] * 8)
    0.6
    """
    matches = sum(gold == prediction for gold in golds)
    others = len(golds) - matches
    # Over sixths of a point, the sum stays whole until the one division at the end.
    thirds = matches * min(3, matches - 1) + others * min(3, matches)
    return thirds / (3 * len(golds)) if matches else 0.0


def soft_accuracy(prediction: str, golds: Sequence[str]) -> float:
    """The official accuracy of one answer. Answers that all agree are compared as they stand, unprocessed."""
    answer, answers = _one_line(prediction), [_one_line(gold) for gold in golds]
    if len(set(answers)) > 1:
        answer, answers = official(answer), [official(gold) for gold in answers]
    return agreement(answer, answers)


def _kind(golds: list[str], options: list[str]) -> str:
    return "annotators" if len(golds) >= FEWEST_ANNOTATORS else "text"


def _named(text: str, process: Callable[[str], str]) -> str:
    """A processed text, or the text itself when nothing is left of it: "a" and "the" are not the same answer."""
    return process(text) or _one_line(text).lower()


def _any_of(answer: str, answers: list[str]) -> Scored:
    hit = answer in answers
    relation = "equals" if hit else "differs from"
    why = f"{shown(answer)} {relation} {' or '.join(map(shown, answers[:3]))}"
    return Scored(float(hit), "one_of", why)


def _soft(value: float, answer: str, golds: list[str]) -> Scored:
    return Scored(value, "leave_one_out", f"{shown(answer)} earns {value:.3g} from {len(golds)} annotators")


@metric("vqa_soft", _kind)
def vqa_soft(prediction: str, golds: list[str], options: list[str]) -> Scored:
    """VQAv2's soft accuracy; with fewer than four golds they are alternatives, and any match earns the point."""
    if len(golds) < FEWEST_ANNOTATORS:
        return _any_of(_named(prediction, official), [_named(gold, official) for gold in golds])
    return _soft(soft_accuracy(prediction, golds), _one_line(prediction), golds)


@metric("textvqa", _kind)
def textvqa(prediction: str, golds: list[str], options: list[str]) -> Scored:
    """TextVQA's soft accuracy: the same agreement, always after the EvalAI processor."""
    if len(golds) < FEWEST_ANNOTATORS:
        return _any_of(_named(prediction, evalai), [_named(gold, evalai) for gold in golds])
    answer, answers = evalai(prediction), [evalai(gold) for gold in golds]
    return _soft(agreement(answer, answers), answer, golds)
