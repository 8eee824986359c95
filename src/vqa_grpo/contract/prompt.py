"""The prompt template: a text file with one placeholder, rendered the same way in training and evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.record import question_text

PLACEHOLDER = "{USER_INSTRUCTION}"
KEYS = ('"reasoning_steps"', '"answer"')
SHIPPED = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class PromptTemplate:
    """A checked template. `digest` goes into lineage, so that scores name the prompt they were made with."""

    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def render(self, question: str, choices: Sequence[str] | None = None, options: Sequence[str] | None = None) -> str:
        """The text of the user's turn; the picture goes before it."""
        return self.text.replace(PLACEHOLDER, question_text(question, choices, options))


def check(text: str, name: str) -> PromptTemplate:
    """Refuse a template that would lose the question or never ask for the JSON answer.

    Raises ConfigurationError naming what is missing.
    """
    missing = [part for part in (PLACEHOLDER, *KEYS) if part not in text]
    if missing:
        raise ConfigurationError(
            f"prompt template {name} lacks {', '.join(missing)}: add it, or every completion scores 0"
        )
    return PromptTemplate(text.rstrip("\n"))


def load(name: str) -> PromptTemplate:
    """Read a shipped template by name ("vqa", "short") or any template file by path."""
    try:
        shipped = SHIPPED / f"{name}.txt"
        text = (shipped if shipped.is_file() else Path(name)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # not UTF-8, or a name that no file can have
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.txt")))
        raise ConfigurationError(
            f"prompt template {name!r} cannot be read ({error}): give a file, or one of {names}"
        ) from None
    return check(text, name)
