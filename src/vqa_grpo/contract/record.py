"""One row of a visual question answering data set, as every step reads and writes it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

REQUIRED_COLUMNS = ("image", "question", "answer", "reference_steps")
OPTIONAL_COLUMNS = ("choices", "options", "source")
COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, "id")


@dataclass(frozen=True)
class Record:
    """One question about one picture.

    `image` holds the encoded bytes exactly as the source had them. `choices` and `options` are two
    names that data sets use for the same thing; `offered()` says which one counts. `id` is stable:
    the same source row gets the same id in every run.
    """

    image: bytes
    question: str
    answer: str
    reference_steps: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    source: str = ""
    id: str = ""

    def offered(self) -> tuple[str, ...]:
        return offered(self.choices, self.options)


def offered(choices: Sequence[str] | None, options: Sequence[str] | None) -> tuple[str, ...]:
    """The answer options of a row: `choices` wins where both columns are filled, as in the guide's reader."""
    return tuple(choices or options or ())


def question_text(question: str, choices: Sequence[str] | None = None, options: Sequence[str] | None = None) -> str:
    """The user's instruction: the question and, where there are options, one lettered line for each.

    >>> print(question_text("Which year?", ["2003", "2010"]))
    Which year?
    <BLANKLINE>
    A) 2003
    B) 2010
    """
    texts = offered(choices, options)
    if not texts:
        return question
    lines = [f"{letter}) {text}" for letter, text in zip(string.ascii_uppercase, texts, strict=False)]
    return "\n".join([question, "", *lines])
