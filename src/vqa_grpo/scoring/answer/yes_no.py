"""Yes and no, and the words that data sets use for them."""

from __future__ import annotations

import re

from vqa_grpo.scoring.answer.normal import Match, plain

GOLDS = {"yes": "yes", "no": "no", "true": "yes", "false": "no"}
_WORDS = {
    **GOLDS,
    **dict.fromkeys(("y", "yeah", "yep", "yup", "correct", "affirmative", "right"), "yes"),
    **dict.fromkeys(("n", "nope", "nah", "incorrect", "negative", "wrong"), "no"),
}
_CLAUSE = re.compile(r"(yes|no)\s*[,.;:!-]\s*(.{1,80})", re.IGNORECASE)
_AGAINST = {
    "yes": re.compile(
        r"\b(?:no|not|none|never|neither|false|maybe|or|hardly|barely|unlikely|cannot"
        r"|(?:is|are|was|were|do|does|did|ca|wo|has|have|had|could|would|should)nt"
        r"|but|however|except|unless|if|actually|wrong|incorrect|untrue|doubt|perhaps|possibly|unsure)\b"
    ),
    "no": re.compile(
        r"^\d|\b(?:yes|true|maybe|or|but|however|except|unless|actually|perhaps|possibly|unsure)\b"
        r"|^(?:it|there|he|she|they|this|that|i|we|you) (?:is|are|does|do|has|have|was|were|did|can)$"
        r"|^(?:thats|that is|this is|its|it is) (?:right|correct|so)$|^(?:right|correct|sure|indeed)$"
    ),
}
_SUBJECT = r"(?:it|there|he|she|they|this|that|these|those|you|i|we)"
_VERB = r"(?:is|are|was|were|do|does|did|can|has|have|had)"
_SHORT = {
    "yes": re.compile(rf"yes {_SUBJECT} {_VERB}"),
    "no": re.compile(rf"no {_SUBJECT} (?:{_VERB} ?not|{_VERB}nt|cant)|not true"),
}


def canonical(text: str) -> str | None:
    """ "yes", "no" or None. One word decides; "Yes, it is" counts, and "yes, no" says both and so nothing.

    >>> canonical("Yes, it is."), canonical("incorrect"), canonical("yes, or no"), canonical("yesterday")
    ('yes', 'no', None, None)
    """
    if word := _WORDS.get(plain(text)):
        return word
    for word, short in _SHORT.items():
        if short.fullmatch(plain(text)):
            return word
    if clause := _CLAUSE.fullmatch(text):
        word = clause[1].casefold()
        return None if _AGAINST[word].search(plain(clause[2])) else word
    return None


def match(prediction: str, gold: str) -> Match:
    seen, expected = canonical(prediction), GOLDS[plain(gold)]
    return Match(seen == expected, "yes_no", seen or plain(prediction), expected)
