"""Answers that decline to answer. The prompt asks for "insufficient information" where the image settles nothing.

All wordings are one class. The whole answer must be one of them, at most in a short frame of known words ("this …",
"… from the image", "… to tell whether …"): beside anything else it is a guess, or part of a name.
"""

from __future__ import annotations

import re

from vqa_grpo.scoring.answer.normal import Match, plain, tidy

_KNOWLEDGE = r"(?:information|info|evidence|data|context|details?)"
_DECIDED = (
    r"(?:determined|told|said|answered|known|seen|read|identified|decided|inferred|deduced|concluded|discerned|judged"
    r"|confirmed|verified|established|ascertained|calculated|computed|estimated)"
)
_DECIDE = (
    r"(?:determine|tell|say|answer|know|see|read|identify|decide|infer|deduce|conclude|discern|judge|confirm|verify"
    r"|establish|ascertain|calculate|compute|estimate|be (?:sure|certain|determined|known))"
)
_ASKED = r"(?:it|this|that|(?:this |that )?(?:question|answer)|answer to (?:this |that )?question)"
_SHOWN = r"(?:image|picture|photo|photograph|figure|chart|graph|plot|diagram|map|table|document|text|passage|context)"
_NO_ANSWER_IN = re.compile(r"\b(?:but|however|though|maybe|perhaps|probably|possibly|likely|guess|think|yet|except)\b")
# The articles are gone by then: `plain` drops them.
_WHAT = (
    rf"(?: (?:{_ASKED}|(?:exact |correct )?(?:color|colour|number|name|age|brand|type|value|size|time|year|date|place)"
    rf"(?: of [a-z ]{{1,40}})?|(?:whether|if|what|which|who|whose|when|where|why|how) [a-z ]{{1,60}}))?"
)
_FROM = (
    rf"(?: (?:(?:from|in|by|with|given|using|based on|on basis of) (?:this |given |provided |available )?"
    rf"(?:{_SHOWN}|information|info|data|view|angle|scene|question)s?"
    rf"(?: (?:alone|only|given|provided|shown|available))?"
    rf"|given|available|provided|here))?"
)
_TO = rf"(?: to {_DECIDE}{_WHAT})?"
_UNSAID = (
    r"(?:answerable|determinable|known|clear|certain|visible|stated|given|specified|provided|mentioned|shown|available"
    r"|applicable|indicated|discernible|disclosed|listed|reported)"
)
_UNKNOWN = (
    r"(?:unknown|unanswerable|unclear|uncertain|indeterminate|undetermined|undeterminable|indeterminable"
    rf"|not {_UNSAID})"
)
_CANNOT = r"(?:can ?not|cant|could not|couldnt)"
_ENOUGH = rf"(?:enough|sufficient) {_KNOWLEDGE}(?: for (?:{_ASKED}|an answer))?"
_WORDINGS = [
    rf"(?:there is |there are |theres |it is |its |this is |i have )?(?:insufficient|inadequate|missing) {_KNOWLEDGE}"
    rf"{_FROM}{_TO}{_FROM}",
    rf"(?:(?:there is |there are |theres |i have )?(?:not|no)|i do not have|i dont have|there isnt|there arent)"
    rf" {_ENOUGH}{_FROM}{_TO}{_FROM}",
    rf"(?:there is |theres )no way{_TO}{_FROM}",
    # "No data" alone is what a map's legend says.
    rf"(?:(?:no|lack of) (?:information|info)|no data (?:is )?(?:available|given|provided)){_FROM}",
    r"no (?:information|info) is (?:available|given|provided)",
    rf"(?:(?:given|provided|available) )?{_KNOWLEDGE} (?:is|are) (?:insufficient|inadequate|missing"
    rf"|not (?:sufficient|enough|{_UNSAID})){_FROM}{_TO}{_FROM}",
    rf"(?:{_ASKED} )?{_CANNOT} be {_DECIDED}{_FROM}",
    rf"(?:i |we |you )?{_CANNOT} {_DECIDE}{_WHAT}{_FROM}",
    rf"(?:i |we )?(?:do not|dont) know{_WHAT}{_FROM}",
    r"(?:i have )?no idea|(?:i am |im )?(?:not sure|unsure|uncertain)|(?:there is )?no answer|n/a",
    rf"(?:i am |im |it is |its |this is )?(?:unable|impossible|not possible|hard|difficult) to {_DECIDE}{_WHAT}{_FROM}",
    rf"(?:(?:{_ASKED} is |its )?{_UNKNOWN}|(?:{_ASKED} )?isnt {_UNSAID}){_FROM}",
    rf"(?:{_SHOWN}|it) (?:does not|doesnt)"
    r" (?:show|say|state|mention|specify|provide|contain|indicate|give|tell|include)"
    rf"(?: (?:{_ASKED}|so|(?:enough |sufficient |this |that )?{_KNOWLEDGE}{_TO}))?",
]
_ABSTENTION = re.compile(rf"(?:sorry |i am sorry |im sorry )?(?:{'|'.join(_WORDINGS)})")


def is_abstention(text: str) -> bool:
    """Whether the whole text declines; an answer beside it ("not sure, perhaps red") is a guess and no abstention.

    >>> is_abstention("Insufficient information."), is_abstention("This cannot be determined from the image")
    (True, True)
    >>> is_abstention("not sure, perhaps red"), is_abstention("unknown soldier")
    (False, False)
    """
    if len(text) > 160:
        return False
    if tidy(text).casefold() in ("n.a.", "n.a"):  # "NA" is sodium, and more besides
        return True
    form = plain(text)
    return _ABSTENTION.fullmatch(form) is not None and not _NO_ANSWER_IN.search(form)


def match(prediction: str, gold: str) -> Match:
    declines = is_abstention(prediction)
    seen = "insufficient information" if declines else plain(prediction)
    return Match(declines, "abstention", seen, "insufficient information")
