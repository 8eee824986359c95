"""The words of a step: what is compared when two wordings are called the same."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from functools import lru_cache

# Two steps whose wordings agree this far, and that do not conflict, say the same thing twice.
SAME_WORDING = 0.85
# A yes/no question and its answer share all their words; only their order tells an echo from a claim.
SAME_SEQUENCE = 0.9

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[%°$€£¥]")
# "1.", "2)", "Step 3:", "First," count the steps; they are no part of what a step says.
_ENUMERATION = re.compile(
    r"^\s*(?:(?:step\s*\d+|\d{1,2})\s*[.):-]\s+|[-*•]\s+|(?:first|second|third|fourth|fifth|then|next|finally|lastly)ly?\s*[,:]\s*)+",
    re.IGNORECASE,
)


def vocabulary(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


FUNCTION_WORDS = vocabulary(
    "a an the this that these those it its they their them he she his her i we you our your is are was were be "
    "been being am do does did has have had of in on at to for from by with as and or but so if then than there "
    "here which who whom whose what where when why how can could will would may might shall should must also very "
    "just thus hence any some each therefore clearly indeed simply actually really obviously s"
)
# Words of looking and asking: they are in every step and tell no step from another.
LIGHT_WORDS = vocabulary(
    "image picture photo photograph figure scene show shown display displayed depict depicted contain include see "
    "seen visible appear present observe observed look question ask asking asked need want determine identify "
    "find know answer given provided task request step"
)
_WH = re.compile(r"\b(?:what|which|who|whom|whose|where|when|why|how(?: many| much| long| far| old)?)\b")
_META = re.compile(
    r"^(?:(?:so|first|now|okay|ok|here)\s+)?(?:(?:the|this) (?:question|task|problem) (?:is asking|asks|wants|is)|"
    r"(?:we|i|you) (?:need|want|have|must|should)(?: to)?"
    r"(?: (?:find|determine|identify|answer|know|figure)(?: out)?)?|"
    r"question|let'?s (?:find|determine|identify)(?: out)?)(?: (?:us|me|for|about|whether|if))?\s+"
)


def clean(step: str, limit: int) -> str:
    """The step without its number, cut to `limit` characters, fit for any tokenizer."""
    # A lone surrogate, which JSON may carry, is no text: tokenizers refuse it.
    text = step[: 2 * limit].encode(errors="replace").decode()
    return " ".join(_ENUMERATION.sub("", text).split())[:limit].rstrip()


@lru_cache(maxsize=16_384)
def words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def stem(word: str) -> str:
    """Singular and plural, show and shows, become one; nothing cleverer, so that nothing surprising becomes one."""
    if len(word) > 4 and word.endswith(("xes", "ses", "ches", "shes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


@lru_cache(maxsize=16_384)
def wording(text: str) -> frozenset[str]:
    """A step's words without articles and the like; all of its words, where nothing else would be left."""
    found = frozenset(map(stem, words(text)))
    return found - FUNCTION_WORDS or found


def content(text: str) -> frozenset[str]:
    """The words that carry a step's meaning; its wording, where nothing else would be left."""
    return wording(text) - LIGHT_WORDS or wording(text)


def is_bare(step: str) -> bool:
    """One word or none. An embedding tells such steps from each other by chance: "a" and "b", "cat" and "dog", "!" and
    "?" are closer than many a paraphrase. A single "word" of another script may be a whole sentence, as in Chinese."""
    spoken = words(step)
    return not spoken or (len(spoken) == 1 and spoken[0].isascii())


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard: shared words out of all words."""
    return len(a & b) / len(a | b) if a or b else 0.0


def is_echo(step: str, question: str) -> bool:
    """Whether a step says no more than the question did.

    >>> is_echo("The question asks for the brand of the phone.", "What is the brand of the phone?")
    True
    >>> is_echo("The phone is a Nokia.", "Is the phone a Nokia?")
    False
    """
    asked = " ".join(words(question))
    if not asked:
        return False
    said = " ".join(words(step))
    if said == asked:
        return True
    said = _META.sub("", said)
    if _WH.search(asked) and " or " not in asked:
        # The answer to "what is …" is not among the question's words, so a step of those words brings none.
        kept, wanted = content(_WH.sub("", said)), content(_WH.sub("", asked))
        # One word in common ("the question asks for the shape", "what shape is in the image?") is no wording.
        return len(kept & wanted) > 1 and overlap(kept, wanted) >= SAME_WORDING
    a, b = said.split(), asked.split()
    return a[:1] == b[:1] and SequenceMatcher(None, a, b, autojunk=False).ratio() >= SAME_SEQUENCE
