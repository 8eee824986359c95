"""Answers that decline to answer. The prompt asks for "insufficient information" where the image settles nothing."""

from __future__ import annotations

import re

from vqa_grpo.scoring.answer.normal import Match, plain

_TO = r"(?: (?:to|for) [a-z ]{1,60}| from [a-z ]{1,40}| in [a-z ]{1,40}| given| available| provided)?"
_DECIDE = (
    r"(?:determined?|tell|told|say|said|answer(?:ed)?|know|known|see|seen|read|identify|identified|decided?|inferred)"
)
_ABSTENTION = re.compile(
    rf"(?:there is |there s |theres |it is |its )?(?:"
    rf"(?:insufficient|inadequate|missing) (?:information|info|evidence|data|context|detail)"
    rf"|(?:not|no) enough (?:information|info|evidence|data|context|detail)s?"
    rf"|(?:i )?(?:can ?not|cant|could not|couldnt) (?:be )?{_DECIDE}"
    rf"|(?:i am )?(?:unable|impossible|not possible) to {_DECIDE}"
    rf"|(?:i )?(?:do not|dont) know|(?:i am |im )?(?:not sure|unsure|uncertain)"
    rf"|unknown|unanswerable|not answerable|indeterminate|undetermined|undeterminable|indeterminable|no answer"
    rf"){_TO}"
)


def is_abstention(text: str) -> bool:
    """Whether the whole text declines; an answer beside it ("not sure, perhaps red") is a guess and no abstention.

    >>> is_abstention("Insufficient information."), is_abstention("cannot be determined from the image")
    (True, True)
    >>> is_abstention("not sure, perhaps red")
    False
    """
    form = plain(text) if len(text) <= 160 else ""
    return _ABSTENTION.fullmatch(form) is not None


def match(prediction: str, gold: str) -> Match:
    declines = is_abstention(prediction)
    seen = "insufficient information" if declines else plain(prediction)
    return Match(declines, "abstention", seen, "insufficient information")
