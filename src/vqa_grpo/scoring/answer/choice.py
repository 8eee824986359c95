"""Multiple choice: an answer names an option by its letter, by its text, or by both if they agree.

Nothing is searched for inside longer text: a reward for containing the right option would be paid for naming them all.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from vqa_grpo.scoring.answer.listing import items
from vqa_grpo.scoring.answer.normal import Match, plain, tidy

LETTERS = string.ascii_uppercase
_LABELLED = re.compile(r"[(\[]?([A-Za-z]|\d{1,2})(?:[)\]]\s*[.:]?|[.:](?=\s))\s*(\S.*)", re.DOTALL)
_LETTER = re.compile(
    r"(?:(?:option|choice|answer|letter)\s*:?\s*)?[(\[]?([A-Za-z]|\d{1,2})[)\].:,;!]{0,2}", re.IGNORECASE
)
_LETTER_AND_TEXT = re.compile(
    r"(?:(?:option|choice|answer|letter)\s*:?\s*)?[(\[]?([A-Za-z]|\d{1,2})(?:[)\]][.:]?\s*|[.:]\s+|\s+-\s+|\s*=\s*)(\S.*)",
    re.DOTALL | re.IGNORECASE,
)
# Only where the text can be compared with the option: "B, C, D" names three letters.
_LETTER_BESIDE_TEXT = re.compile(r"([A-Za-z])(?:,\s*|\s+(?=\(.*\)\Z))(\S.*)", re.DOTALL)
_TEXT_AND_LETTER = re.compile(r"(\S.*?)\s*[(\[]([A-Za-z])[)\]]\.?", re.DOTALL)
_ANOTHER = re.compile(  # a second letter, or doubt, beside the first
    r"(?<![A-Za-z])[(\[]?[A-Ja-j][)\]]|(?<![A-Za-z])[A-J]\s*[.:=](?=\s|$)|^\W*[A-J]\W*$"
    r"|\b(?i:or|both|maybe|perhaps|not sure|unsure)\b"
)
_ALONE = re.compile(r"[(\[]?([A-J])[)\].:]{0,2}")

Same = Callable[[str, str], bool]


def is_alone(gold: str) -> bool:
    """A gold answer that is an option letter although no options are known: "B", "(B)", "B.", "B) 2010"."""
    text = tidy(gold)
    return _ALONE.fullmatch(text) is not None or (
        (found := _LABELLED.fullmatch(text)) is not None and found[1] in "ABCDEFGHIJ" and len(text) <= 200
    )


def unlabelled(option: str) -> str:
    """An option without the label that it may carry.

    >>> unlabelled("C) unknown"), unlabelled("unknown")
    ('unknown', 'unknown')
    """
    found = _LABELLED.fullmatch(option.strip()[:1000])
    return found[2] if found else option


def match_alone(prediction: str, gold: str, same: Same) -> Match:
    """Without options only letters can be compared, and the texts beside them where both have one."""
    wanted = _alone(tidy(gold))
    seen = _alone(tidy(prediction)) or ("", tidy(prediction))
    assert wanted is not None
    letter, text = wanted
    if seen[0]:
        correct = seen[0] == letter and (not text or not seen[1] or same(seen[1], text))
        correct = correct and (text != "" or not _ANOTHER.search(seen[1]))
    else:
        correct = bool(text) and same(seen[1], text)
    return Match(correct, "choice_letter", " ".join(filter(None, seen)), " ".join(filter(None, wanted)))


def _alone(text: str) -> tuple[str, str] | None:
    if (found := _LETTER.fullmatch(text)) and found[1].isalpha():
        return found[1].upper(), ""
    if (found := _LETTER_AND_TEXT.fullmatch(text)) and found[1].isalpha():
        return found[1].upper(), tidy(found[2])
    return None


def match(prediction: str, gold: str, options: Sequence[str], same: Same) -> Match:
    menu = Menu(options, same)
    wanted = menu.resolve_all(gold)
    if not wanted:
        return Match(False, "choice_gold_unresolved", plain(prediction), plain(gold))
    seen = menu.resolve_all(prediction) if len(wanted) > 1 else menu.resolve(prediction)
    rule = "choice" if seen else "choice_unresolved"
    return Match(bool(seen) and seen == wanted, rule, menu.show(seen) or plain(prediction), menu.show(wanted))


class Menu:
    """The options with the prompt's letters, which go by position, and the numbers that options may carry themselves.

    Options carry labels where these run in order from the first: A, B, C or 1, 2, 3. "G. Washington" and "A. Lincoln"
    are names, and B before A would give each letter two meanings.
    """

    def __init__(self, options: Sequence[str], same: Same) -> None:
        self.same = same
        self.texts = [tidy(str(option)[:1000]) for option in options[: len(LETTERS)]]
        self.bare = self.texts
        self.labels = list(LETTERS[: len(self.texts)])
        own = [found for text in self.texts if (found := _LABELLED.fullmatch(text))]
        carried = [found[1] for found in own]
        numbers = [str(index + 1) for index in range(len(self.texts))]
        if carried in (self.labels, [letter.lower() for letter in self.labels], numbers):
            self.bare = [tidy(found[2]) for found in own]
        self.numbers = numbers if carried == numbers else []
        self.plain = [plain(text) for text in self.texts]
        self.plain_bare = [plain(text) for text in self.bare]

    def resolve_all(self, text: str) -> frozenset[int]:
        """The options that a list of letters or texts names; one that names none makes the whole empty."""
        one = self.resolve(text)
        if one:
            return one
        parts = items(text)
        found = [self.resolve(part) for part in parts[: len(LETTERS)]]
        if len(parts) < 2 or not all(found):
            return frozenset()
        return frozenset().union(*found)

    def resolve(self, text: str) -> frozenset[int]:
        """The one option that a text names; empty where it names none, or two readings of it name different ones.

        >>> menu = Menu(["2003", "2010"], lambda one, other: one == other)
        >>> [sorted(menu.resolve(text)) for text in ("B", "(b)", "2010", "B) 2010", "A) 2010", "2003 or 2010")]
        [[1], [1], [1], [1], [], []]
        """
        text = tidy(text)
        letter = _LETTER.fullmatch(text)
        both = None
        if not letter and not self._spelled(text):
            both = _LETTER_AND_TEXT.fullmatch(text) or _LETTER_BESIDE_TEXT.fullmatch(text)
        if both and self._by_label(both[1]):
            # Before anything else: without its bracket, the "A" of "A) bird" would be an article and "bird" the answer.
            agreed = self._by_label(both[1]) & self._by_text(tidy(both[2]))
            return frozenset(agreed) if len(agreed) == 1 else frozenset()
        readings = self._by_text(text)
        if letter:
            readings |= self._by_label(letter[1])
        if not readings and (found := _TEXT_AND_LETTER.fullmatch(text)):
            readings |= self._by_label(found[2]) & self._by_text(tidy(found[1]))
        if not readings and len(text) <= 200:
            readings = {index for index, option in enumerate(self.bare) if self.same(text, option)}
        return frozenset(readings) if len(readings) == 1 else frozenset()

    def _by_text(self, text: str) -> set[int]:
        exact = {i for i, option in enumerate(self.texts) if text in (option, self.bare[i])}
        form = plain(text)
        return exact or {i for i in range(len(self.texts)) if form in (self.plain[i], self.plain_bare[i])}

    def _spelled(self, text: str) -> bool:
        """Whether an option reads just so, as "A. Lincoln" does."""
        return any(text.casefold() == option.casefold() for option in (*self.texts, *self.bare))

    def _by_label(self, label: str) -> set[int]:
        return {index for own in (self.labels, self.numbers) for index, it in enumerate(own) if it == label.upper()}

    def show(self, indices: frozenset[int]) -> str:
        return ", ".join(f"{self.labels[index]}) {self.bare[index]}" for index in sorted(indices))
