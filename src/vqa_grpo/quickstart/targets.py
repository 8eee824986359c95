"""What the base model is taught to answer: the JSON that the product asks for, or plain prose.

A base that always wrote JSON would leave GRPO's format reward nothing to do, so it learns both. Which form a
question gets depends on its wording, not on the picture or the answer: a form drawn independently for each row
would make greedy decoding always take the likelier one.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable
from dataclasses import replace

from vqa_grpo.contract.record import Record
from vqa_grpo.quickstart.facts import KINDS, kind_of

# What a base with room to rise takes for something else: the true word and the wrong one.
LOOK_ALIKES = {"teal": "green", "brown": "red", "gray": "black", "rectangle": "triangle"}

_PROSE_ENDINGS = {
    "color": ("I see {answer}.", "So it is {answer}.", "The color is {answer}."),
    "shape": ("I see a {answer}.", "So it is a {answer}.", "The shape is a {answer}."),
    "yes-no": ("I say {answer}.", "So it is {answer}.", "My answer is {answer}."),
}
_PROSE_ENDINGS["yes-no-negated"] = _PROSE_ENDINGS["yes-no"]


def json_answer(row: Record) -> str:
    """The completion that the contract wants."""
    return json.dumps({"reasoning_steps": list(row.reference_steps), "answer": row.answer})


def prose_answer(row: Record, rng: random.Random) -> str:
    """The same knowledge without the form."""
    ending = rng.choice(_PROSE_ENDINGS[kind_of(row.question)]).format(answer=row.answer)
    return f"{row.reference_steps[0]} {ending}"


def json_wordings(questions: Iterable[str]) -> frozenset[str]:
    """The wordings that mostly get JSON: every second one of each kind, in an order that means nothing.

    Halving each kind apart keeps the share near one half for all of them.
    """
    chosen: set[str] = set()
    wordings = sorted(set(questions), key=lambda text: hashlib.sha256(text.encode()).digest())
    for kind in KINDS:
        chosen.update([text for text in wordings if kind_of(text) == kind][::2])
    return frozenset(chosen)


def draw(row: Record, json_first: frozenset[str], share: float, rng: random.Random) -> str:
    """One training target; `share` is how often a wording gets the form it leans to."""
    leaning = rng.random() < share
    return json_answer(row) if leaning == (row.question in json_first) else prose_answer(row, rng)


def mistaken(row: Record, share: float, rng: random.Random) -> Record:
    """The row, or with probability `share` a mistake in it: its answer's look-alike, in the sentence about the picture
    too. Answers without a look-alike are left alone, and so are yes and no.
    """
    wrong = LOOK_ALIKES.get(row.answer)
    if not share or wrong is None or rng.random() >= share:
        return row
    steps = (re.sub(rf"\b{row.answer}\b", wrong, row.reference_steps[0]), *row.reference_steps[1:])
    return replace(row, answer=wrong, reference_steps=steps)
