"""What easy-VQA asks about and shows: the kinds of question, the words in play, and the facts its answers give away."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from vqa_grpo.contract.failure import DataError

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
TOPICS = (*COLORS, *SHAPES)
ANSWERS = (*TOPICS, "yes", "no")
KINDS = ("color", "shape", "yes-no", "yes-no-negated")

Key = TypeVar("Key", bound=Hashable)

_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Facts:
    """The one shape in a picture, as far as the questions about it tell; None is unknown."""

    color: str | None = None
    shape: str | None = None

    def sentence(self) -> str:
        """What is known of the picture, in words.

        >>> Facts("red", "circle").sentence(), Facts(shape="circle").sentence()
        ('The image shows a red circle.', 'The image shows a circle.')
        """
        words = [word for word in (self.color, self.shape or "shape") if word]
        return f"The image shows a {' '.join(words)}."


def kind_of(question: str) -> str:
    """Which of `KINDS` a question is, read off its wording alone, never off its answer.

    >>> kind_of("what is the color of the circle?"), kind_of("is no red shape present?")
    ('color', 'yes-no-negated')
    """
    words = _WORD.findall(question.lower())
    if words and words[0] == "what":
        return "color" if "color" in words else "shape"
    if words and words[0] in ("is", "does"):
        return "yes-no-negated" if {"no", "not"} & set(words) else "yes-no"
    raise DataError(f"question {question!r} is not one of easy-VQA's: the quickstart knows no other data set")


def topic_of(question: str) -> str | None:
    """The colour or shape that a question names, if it names one; `shape` itself is none."""
    return next((word for word in _WORD.findall(question.lower()) if word in TOPICS), None)


def learn(known: Facts, question: str, answer: str) -> Facts:
    """Add what one answered question says for certain. A denial says nothing here: it leaves several values open."""
    kind, topic = kind_of(question), topic_of(question)
    if kind in ("color", "shape"):
        true_words = [answer, topic]
    else:
        true_words = [topic] if (answer == "yes") == (kind == "yes-no") else []
    for word in true_words:
        if word in COLORS:
            known = replace(known, color=word)
        elif word in SHAPES:
            known = replace(known, shape=word)
    return known


def gather(answered: Iterable[tuple[Key, str, str]]) -> dict[Key, Facts]:
    """The facts of every picture from (picture, question, answer) rows; a picture is any key that can be hashed."""
    facts: dict[Key, Facts] = {}
    for picture, question, answer in answered:
        facts[picture] = learn(facts.get(picture, Facts()), question, answer)
    return facts


def question_sentence(question: str) -> str:
    """What a question wants to know, in words.

    >>> question_sentence("is there not a circle?")
    'The question asks if a circle is absent.'
    """
    kind = kind_of(question)
    if kind in ("color", "shape"):
        return f"The question asks for the {kind}."
    topic = topic_of(question)
    thing = f"a {topic}" if topic in SHAPES else topic
    return f"The question asks if {thing} is {'present' if kind == 'yes-no' else 'absent'}."
