"""Two steps that cannot both describe the picture, or that state different facts about it, never match.

Sentence encoders do not see these differences: on ten minimal contradictions (green/red, left/right, 2010/2003, a
negation) all-MiniLM-L6-v2 gives a mean cosine of 0.762, above the 0.727 of ten paraphrases. So the words that carry
the difference are compared as words. One rule serves most kinds: each step says something of that kind that the other
does not. A step that says less (no colour, one number of two) is not in conflict.

Words with one use (open/closed) speak wherever they stand. Words with many (hard, back, on) speak only where the two
steps are otherwise of like wording.

The rules are for English and on purpose strict: a paraphrase lost costs a model a little reward, a contradiction
taken for a match teaches it to contradict.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from vqa_grpo.scoring.steps.text import FUNCTION_WORDS, LIGHT_WORDS, stem, vocabulary, words

# --- what a step says -----------------------------------------------------------------------------------------------


Pole: TypeAlias = tuple[int, int, bool]  # axis, which of its two ends, whether the word compares two things


@dataclass(frozen=True)
class Number:
    value: float
    unit: str  # "" where none is given
    noun: str  # the word after it, which it may be counting


@dataclass(frozen=True)
class Clock:
    hours: frozenset[int]  # of 24; two, where neither am nor pm is said
    rest: str  # ":45"


@dataclass(frozen=True)
class Facts:
    tokens: tuple[str, ...]  # without articles
    words: frozenset[str]
    numbers: tuple[Number, ...]
    clocks: frozenset[Clock]
    ordinals: frozenset[str]
    labels: frozenset[str]
    texts: frozenset[tuple[str, ...]]
    openers: frozenset[str]  # capitalised words that open a sentence: names, or not
    groups: Mapping[str, frozenset[str]]
    bound: Mapping[str, frozenset[str]]  # noun → colours directly before it
    directions: frozenset[str]
    poles: frozenset[Pole]
    close_poles: frozenset[Pole]  # those that count only in steps of like wording
    unprefixed: frozenset[str]  # locked, where it says unlocked
    before: frozenset[str]  # content words before "left of", "above", "than", …
    after: frozenset[str]
    negated: bool
    denied: frozenset[str]  # content words in a negation's reach
    heads: frozenset[str]  # of them, those that a "no" or "not" reaches first
    asserted: frozenset[str]


# --- vocabularies ---------------------------------------------------------------------------------------------------

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_NUMBER_WORDS = {word: value for value, word in enumerate(_SMALL.split())} | {"dozen": 12}
for _ten, _tens in enumerate(_TENS.split(), 2):
    _NUMBER_WORDS[_tens] = 10 * _ten
    _NUMBER_WORDS |= {f"{_tens}-{_one}": 10 * _ten + _units for _units, _one in enumerate(_SMALL.split()[1:10], 1)}
# Beyond it a number is noise from a model, and scaling it by a unit would overflow.
_LARGEST = 1e200
_SCALES = {"hundred": 1e2, "thousand": 1e3, "k": 1e3, "million": 1e6, "m": 1e6, "billion": 1e9, "bn": 1e9}
_ORDINAL_WORDS = {word: str(value) for value, word in enumerate(_ORDINALS.split(), 1)} | {
    "last": "last",
    "final": "last",
}
# dimension and size, so that 50 cm is 0.5 m and 5 cm is not 5 m
_UNITS: dict[str, tuple[str, float]] = {
    alias: (dimension, size)
    for dimension, table in {
        "length": {
            "mm millimeter millimetre": 1e-3, "cm centimeter centimetre": 1e-2, "m meter metre": 1.0,
            "km kilometer kilometre": 1e3, "inch inches": 0.0254, "ft foot feet": 0.3048, "yd yard": 0.9144,
            "mi mile": 1609.344,
        },
        "mass": {"mg milligram": 1e-6, "g gram": 1e-3, "kg kilogram": 1.0, "lb pound": 0.45359237, "ton tonne": 1e3},
        "time": {"ms millisecond": 1e-3, "sec": 1.0, "min minute": 60.0, "h hr hour": 3600.0, "day": 86400.0,
                 "week": 604800.0},
        "volume": {"ml milliliter millilitre": 1e-3, "l liter litre": 1.0},
        "share": {"% percent percentage": 0.01},
        "angle": {"° deg degree": 1.0},
        "celsius": {"°c celsius": 1.0},
        "fahrenheit": {"°f fahrenheit": 1.0},
        "dollar": {"$ usd dollar": 1.0, "cent": 0.01},
        "euro": {"€ eur euro": 1.0},
        "pound sterling": {"£ gbp": 1.0},
        "yen": {"¥ jpy yen": 1.0},
    }.items()
    for names, size in table.items()
    for alias in names.split()
}  # fmt: skip

# Where capitals decide: mW is not MW. An alias in small letters stands for what nobody can mistake.
_PREFIXES = {"n": 1e-9, "µ": 1e-6, "μ": 1e-6, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_PREFIX_NAMES = {"nano": 1e-9, "micro": 1e-6, "milli": 1e-3, "": 1.0, "kilo": 1e3, "mega": 1e6, "giga": 1e9}
_CASED_UNITS: dict[str, tuple[str, float]] = {}
for _dimension, _symbols, _names in (
    ("power", "W Wh", "watt"),  # watt-hours written out begin with the same word
    ("voltage", "V", "volt"),
    ("current", "A", "ampere amp"),
    ("frequency", "Hz", "hertz"),
    ("pressure", "Pa", "pascal"),
    ("force", "N", "newton"),
    ("energy", "J", "joule"),
    ("resistance", "Ω Ω", "ohm"),
):
    for _symbol in _symbols.split():
        _CASED_UNITS |= {prefix + _symbol: (_dimension, size) for prefix, size in _PREFIXES.items()}
        _UNITS |= {(prefix + _symbol).casefold(): (_dimension, _PREFIXES[prefix]) for prefix in "kG"}
    for _name in _names.split():
        _UNITS |= {prefix + _name: (_dimension, size) for prefix, size in _PREFIX_NAMES.items()}

# Of each group a thing has one; a synonym stands before the colon of its meaning.
_GROUPS = {
    "colour": "red crimson:red scarlet:red blue navy:blue green lime:green yellow orange purple violet:purple pink "
    "magenta:pink brown black white gray grey:gray cyan turquoise:cyan teal:cyan beige gold golden:gold silver "
    "maroon",
    "shape": "circle circular:circle round:circle square triangle triangular:triangle rectangle rectangular:rectangle "
    "pentagon hexagon octagon oval ellipse:oval star cube sphere cylinder cone pyramid diamond rhombus:diamond",
    "weekday": "monday tuesday wednesday thursday friday saturday sunday",
    "month": "january february april june july august september october november december",
    "season": "spring summer autumn winter",
    "period": "hourly daily weekly monthly yearly annual:yearly annually:yearly",
    "relative day": "yesterday today tomorrow",
    "compass": "north northern:north south southern:south east eastern:east west western:west",
}
_MEANING: dict[str, tuple[str, str]] = {}
for _group, _members in _GROUPS.items():
    for _entry in _members.split():
        _alias, _, _meaning = _entry.partition(":")
        _MEANING[_alias] = (_group, _meaning or _alias)
# With a capital inside a sentence two more words are months.
_CAPITAL_MONTH = re.compile(r"(?<=[a-z0-9,] )(March|May)\b")
_COLOURS = frozenset(alias for alias, (group, _) in _MEANING.items() if group == "colour")

_DIRECTIONS = {
    "left": "left", "leftmost": "left", "lefthand": "left", "right": "right", "rightmost": "right",
    "righthand": "right", "top": "top", "upper": "top", "topmost": "top", "uppermost": "top", "above": "top",
    "bottom": "bottom", "lower": "bottom", "below": "bottom", "beneath": "bottom", "underneath": "bottom",
    "under": "bottom", "bottommost": "bottom", "center": "center", "centre": "center", "middle": "center",
    "inside": "inside", "within": "inside", "outside": "outside", "behind": "behind", "front": "front",
    "foreground": "front", "background": "behind", "upward": "up", "upwards": "up", "downward": "down",
    "downwards": "down",
}  # fmt: skip
_OPPOSITE = {"left": "right", "top": "bottom", "inside": "outside", "front": "behind", "up": "down"}
_OPPOSITE |= {b: a for a, b in _OPPOSITE.items()}
# "the right answer", "a right angle", "right now": not where something is.
_NOT_A_PLACE = re.compile(
    r"\bright[- ](?:answer|choice|option|angled?|triangles?|now|away)\b|\b(?:is|are|that's) right\b(?! (?:of|to|next))|"
    r"\blower (?:than|bound|limit|value|price|case)\b|\bunder (?:the )?(?:assumption|condition|title|heading)\b"
)

# Axes with two poles each.
_POLES = [
    ({"more", "greater", "increase", "increased", "increases", "increasing", "rise", "rises", "rising", "rose", "grow",
      "grows", "grew", "growing", "gain", "gained"},
     {"less", "fewer", "lesser", "decrease", "decreased", "decreases", "decreasing", "fall", "falls", "falling", "fell",
      "drop", "drops", "dropped", "decline", "declines", "declined", "declining", "shrink", "shrinks"}),
    ({"most", "maximum", "max"}, {"least", "minimum", "min", "fewest"}),
    ({"open", "opened"}, {"closed", "shut"}),
    ({"large", "larger", "largest", "big", "bigger", "biggest", "greater", "greatest"},
     {"small", "smaller", "smallest", "tiny"}),
    ({"tall", "taller", "tallest", "long", "longer", "longest"}, {"short", "shorter", "shortest"}),
    ({"high", "higher", "highest"}, {"low", "lower", "lowest"}),
    ({"hot", "hotter", "hottest", "warm", "warmer"}, {"cold", "colder", "coldest", "cool", "cooler"}),
    ({"old", "older", "oldest"}, {"new", "newer", "newest", "young", "younger", "youngest"}),
    ({"fast", "faster", "fastest", "quick"}, {"slow", "slower", "slowest"}),
    ({"heavy", "heavier", "heaviest"}, {"light", "lighter", "lightest"}),
    ({"dark", "darker", "darkest"}, {"light", "lighter", "lightest", "bright", "brighter", "brightest"}),
    ({"near", "nearer", "nearest", "close", "closer", "closest"}, {"far", "farther", "further", "farthest"}),
    ({"before", "earlier", "earliest", "start", "starts", "beginning"},
     {"after", "later", "latest", "end", "ends", "ending"}),
    ({"wide", "wider", "widest", "thick", "thicker"}, {"narrow", "narrower", "narrowest", "thin", "thinner"}),
    ({"full"}, {"empty"}), ({"even"}, {"odd"}), ({"true"}, {"false"}), ({"yes"}, {"no"}),
    ({"correct", "accurate"}, {"incorrect", "wrong", "inaccurate"}), ({"same", "equal", "identical"},
     {"different", "unequal", "differ", "differs"}), ({"positive"}, {"negative"}), ({"horizontal"}, {"vertical"}),
    ({"parallel"}, {"perpendicular"}), ({"clockwise"}, {"counterclockwise", "anticlockwise"}),
    ({"day", "daytime"}, {"night", "nighttime"}), ({"indoor", "indoors"}, {"outdoor", "outdoors"}),
    ({"man", "men", "male", "boy", "boys"}, {"woman", "women", "female", "girl", "girls"}),
    ({"sit", "sits", "sitting", "seated"}, {"stand", "stands", "standing"}), ({"wet"}, {"dry"}),
    ({"alive"}, {"dead"}), ({"enter", "entering", "arrive", "arriving"}, {"exit", "exiting", "leave", "leaving"}),
    ({"add", "adding", "addition", "plus", "sum"}, {"subtract", "subtracting", "subtraction", "minus", "difference"}),
    ({"multiply", "multiplying", "product"}, {"divide", "dividing", "division", "quotient"}),
    ({"all", "every"}, {"none"}), ({"happy", "smiling"}, {"sad", "frowning", "crying"}),
    ({"clean"}, {"dirty"}), ({"present"}, {"absent", "missing"}),
]  # fmt: skip
# Axes whose words have other uses too.
_CLOSE_POLES = [
    ({"switched on"}, {"switched off"}),
    ({"many", "numerous"}, {"few"}), ({"twice", "double", "doubled", "doubles", "doubling"},
                                      {"half", "halve", "halved", "halves", "halving"}),
    ({"front"}, {"back", "rear"}), ({"morning"}, {"afternoon", "evening", "night"}), ({"noon"}, {"midnight"}),
    ({"father", "son", "brother", "husband", "uncle", "king", "gentleman", "man", "men", "male", "boy", "boys"},
     {"mother", "daughter", "sister", "wife", "aunt", "queen", "lady", "woman", "women", "female", "girl", "girls"}),
    ({"child", "children", "kid", "kids"}, {"adult", "adults"}),
    ({"win", "wins", "won", "winning", "winner"}, {"lose", "loses", "lost", "losing", "loser"}),
    ({"buy", "buys", "bought", "buying"}, {"sell", "sells", "sold", "selling"}),
    ({"push", "pushes", "pushed", "pushing"}, {"pull", "pulls", "pulled", "pulling"}),
    ({"opens", "opening"}, {"closes", "closing"}), ({"raise", "raises", "raised"}, {"lowers", "lowered"}),
    ({"import", "imports", "imported"}, {"export", "exports", "exported"}), ({"profit", "profits"}, {"loss", "losses"}),
    ({"input", "inputs"}, {"output", "outputs"}), ({"row", "rows"}, {"column", "columns"}),
    ({"numerator"}, {"denominator"}), ({"majority"}, {"minority"}), ({"major"}, {"minor"}),
    ({"accepted", "accepts"}, {"rejected", "rejects"}),
    ({"allowed", "permitted"}, {"forbidden", "prohibited", "banned"}),
    ({"success", "succeeded", "passed"}, {"failure", "failed"}), ({"together"}, {"apart"}),
    ({"toward", "towards"}, {"away"}), ({"ascending", "ascends"}, {"descending", "descends"}),
    ({"awake"}, {"asleep", "sleeping", "sleeps"}), ({"vacant"}, {"occupied"}), ({"raw"}, {"cooked"}),
    ({"broken", "damaged"}, {"intact"}), ({"solid"}, {"dashed", "dotted", "liquid"}),
    ({"straight"}, {"curved", "bent"}), ({"convex"}, {"concave"}), ({"acute"}, {"obtuse"}),
    ({"strong", "stronger", "strongest"}, {"weak", "weaker", "weakest"}), ({"rich", "richer"}, {"poor", "poorer"}),
    ({"deep", "deeper", "deepest"}, {"shallow", "shallower"}), ({"soft", "softer"}, {"hard", "harder"}),
    ({"easy", "easier", "easiest"}, {"difficult", "hard", "harder"}), ({"rough"}, {"smooth"}),
    ({"sharp"}, {"blunt", "dull"}), ({"loud", "louder", "noisy"}, {"quiet", "quieter", "silent"}),
    ({"expensive"}, {"cheap", "cheaper", "cheapest", "inexpensive"}), ({"sunrise"}, {"sunset"}),
    ({"always", "often", "usually", "frequently"}, {"rarely", "seldom", "hardly"}),
    ({"best", "better"}, {"worst", "worse"}),
]  # fmt: skip
# A word and its opposite by a prefix. "un" and "non" speak for themselves; "in", "im" and "dis" do not (form, inform).
_PREFIXED = {
    prefix + word: word
    for prefix, listed in {
        "in": "visible complete correct accurate active adequate capable consistent dependent direct efficient "
        "frequent secure sufficient valid stable finite",
        "im": "possible mature mobile moral patient perfect polite proper pure balanced",
        "ir": "regular relevant responsible reversible rational",
        "il": "legal legible logical literate",
        "dis": "connected connect appear appeared appearing assembled similar honest agree agreed approve approved "
        "advantage satisfied continued",
        "un": "lit",
    }.items()
    for word in listed.split()
}
_NO_PREFIX = frozenset({"less", "ions"})  # unless, unions

# Two steps with the same words in the same order but for one of these do not say the same.
_SWAPS = {
    (one, other)
    for pair in (
        "on off",
        "up down",
        "in out",
        "over under",
        "to from",
        "into from",
        "he she",
        "his her",
        "him her",
        "x y",
        "y z",
        "x z",
    )
    for one, other in (pair.split(), pair.split()[::-1])
}
_ARTICLES = frozenset({"a", "an", "the"})

# "A is larger than B" is "B is smaller than A"; nothing of the kind holds of open and closed.
_COMPARING = frozenset({"more", "less", "before", "after", "earlier", "later", "further", "farther"})


def _by_word(axes: list[tuple[set[str], set[str]]]) -> dict[str, list[Pole]]:
    found: dict[str, list[Pole]] = {}
    for axis, ends in enumerate(axes):
        for sign, members in zip((1, -1), ends, strict=True):
            for word in members:
                found.setdefault(word, []).append((axis, sign, word in _COMPARING or word.endswith("er")))
    return found


_POLE_OF, _CLOSE_POLE_OF = _by_word(_POLES), _by_word(_CLOSE_POLES)

_NEGATIONS = vocabulary("not no never none nothing nobody neither nor without cannot lacks lack lacking isnt arent")
# "a dog, not a cat" denies a cat, and is no denial of "a dog".
_CONTRAST = re.compile(
    r"(?:,\s*(?:(?:and|but)\s+)?not\b|\b(?:and|but)\s+not\b|\brather than\b|\binstead of\b|\bas opposed to\b)([^,.;]*)"
)
_NOT_ONLY = re.compile(r"\bnot (?:only|just)\b|\bno doubt\b|\bno longer than\b|\bno more than\b|\bno less than\b")
_CLAUSE = re.compile(r"[,.;:!?]|\b(?:but|and|because|so|while|although|however)\b")
_RELATION = re.compile(
    r"\b(?:(?:left|right|top|bottom|front|north|south|east|west|inside|outside) (?:side )?(?:of|to)|above|below|under|"
    r"beneath|underneath|behind|inside|outside|than|before|after)\b"
)
_TOKEN = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_QUOTED = re.compile(r"\"([^\"]{1,120})\"|“([^”]{1,120})”|«([^»]{1,120})»|‘([^’]{1,120})’|(?<!\w)'([^']{1,120})'(?!\w)")
_CLOCK = re.compile(
    r"(?<![\w.:])(?P<hour>\d{1,2})(?P<rest>:\d{2}(?::\d{2})?)?(?:\s?(?P<half>[ap])\.?\s?m\b)?(?![\w:])", re.IGNORECASE
)
_ORDINAL = re.compile(r"(?<![\w.])(\d{1,4})(?:st|nd|rd|th)\b", re.IGNORECASE)
_NON = re.compile(r"\bnon-(?=\w)", re.IGNORECASE)
# "the lamp is on", "turned off", and not "the cup is on the table"
_SWITCHED = re.compile(
    r"\b(?:turn(?:s|ed|ing)?|switch(?:es|ed|ing)?|power(?:s|ed)?)[ -](on|off)\b"
    r"|\b(?:is|are|was|were|been|stays?|remains?|left|kept)(?: (?:still|now|currently|all|both))? (on|off)"
    r"(?=\s*(?:$|[.,;:!?)]|(?:and|but|because|so|while|when|although|as|with)\b))|\b(on|off) position\b"
)
_LABEL = re.compile(
    r"\b(?i:option|choice|answer|figure|panel|point|letter|label|gate|platform|terminal|room|row|column|angle|side|line|set|group|object|curve)"
    r"(?:\s+is)?\s*:?\s*\(?([A-Z])\)?(?![\w'’])|\(([A-Z])\)"
)
_NUMBER = re.compile(
    r"(?P<currency>[$€£¥])?\s?(?P<sign>(?<![\w)\]%.])[-−])?(?<![\w.])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s?/\s?(?P<under>\d+)(?!\s?/))?(?:e(?P<exponent>[+-]?\d{1,3}))?(?:\s?(?P<unit>%|°\s?[cf]?\b|°|[a-zµμΩΩ]+))?",
    re.IGNORECASE,
)
_WORD_NUMBER = re.compile(r"\b(" + "|".join(sorted(_NUMBER_WORDS, key=len, reverse=True)) + r")\b(?:\s+([a-z]+))?")
# "the one on the left", "one of them", "which one": a pronoun, not a count.
_PRONOUN_ONE = re.compile(
    r"\b(?:the|this|that|which|each|every|any|no|another|other|left|right|first|second|last|"
    + "|".join(sorted(_COLOURS))
    + r")\s+one\b|\bone\s+(?:of|another|by|can|could|must|should)\b|\bone-\w+|\bno one\b"
)  # fmt: skip


# What stands beside a relation without being one of the two things it relates.
_COMPARATIVES = frozenset(
    word for word, poles in [*_POLE_OF.items(), *_CLOSE_POLE_OF.items()] if any(comparing for *_, comparing in poles)
)
_NO_THING = frozenset(_DIRECTIONS) | _COMPARATIVES | {"one", "side"}


@lru_cache(maxsize=16_384)
def facts(step: str) -> Facts:
    """Everything in a step that another step can contradict."""
    lower = step.casefold().replace("’", "'")
    tokens = words(_NON.sub("non", step))
    stems = frozenset(stem(token) for token in tokens)
    groups: dict[str, set[str]] = {}
    bound: dict[str, set[str]] = {}
    for token, following in zip(tokens, (*tokens[1:], ""), strict=False):
        for form in (token, stem(token)):
            if form in _MEANING:
                group, meaning = _MEANING[form]
                groups.setdefault(group, set()).add(meaning)
                if group == "colour" and following and following not in FUNCTION_WORDS:
                    bound.setdefault(stem(following), set()).add(meaning)
                break
    for month in _CAPITAL_MONTH.findall(step):
        groups.setdefault("month", set()).add(month.casefold())
    places = words(_NOT_A_PLACE.sub(" ", lower))
    before, after = _around_relation(lower)
    negated, denied, heads, asserted = _polarity(lower)
    texts, openers = _texts(step)
    switched = {"switched " + next(filter(None, found)) for found in _SWITCHED.findall(lower)}
    # In a step all in capitals they tell no unit from another.
    cased = lower if step.isupper() else step.replace("’", "'")
    return Facts(
        tokens=tuple(token for token in tokens if token not in _ARTICLES),
        words=stems,
        numbers=tuple(_numbers(cased)),
        clocks=frozenset(_clocks(lower)),
        ordinals=frozenset(_ORDINAL.findall(lower)) | {_ORDINAL_WORDS[t] for t in tokens if t in _ORDINAL_WORDS},
        labels=frozenset(a or b for a, b in _LABEL.findall(step)),
        texts=texts,
        openers=openers,
        groups={group: frozenset(found) for group, found in groups.items()},
        bound={noun: frozenset(found) for noun, found in bound.items()},
        directions=frozenset(_DIRECTIONS[token] for token in places if token in _DIRECTIONS),
        poles=frozenset(pole for token in tokens for pole in _POLE_OF.get(token, ())),
        close_poles=frozenset(pole for token in (*tokens, *switched) for pole in _CLOSE_POLE_OF.get(token, ())),
        unprefixed=frozenset(base for word in stems for base in _unprefixed(word)),
        before=before,
        after=after,
        negated=negated,
        denied=denied,
        heads=heads,
        asserted=asserted,
    )


def _content(text: str) -> frozenset[str]:
    return frozenset(
        stemmed
        for stemmed in map(stem, words(text))
        if stemmed not in FUNCTION_WORDS and stemmed not in LIGHT_WORDS and stemmed not in _NEGATIONS
    )


def _around_relation(lower: str) -> tuple[frozenset[str], frozenset[str]]:
    relation = _RELATION.search(lower)
    if relation is None:
        return frozenset(), frozenset()
    ahead, behind = _content(lower[: relation.start()]), _content(lower[relation.end() :])
    return ahead - _NO_THING, behind - _NO_THING


def _polarity(lower: str) -> tuple[bool, frozenset[str], frozenset[str], frozenset[str]]:
    """Whether the step denies something, the words it denies, those it denies first, and the words it asserts."""
    text = _NOT_ONLY.sub(" ", lower)
    denied = set(_content(" ".join(_CONTRAST.findall(text))))
    text = _CONTRAST.sub(" ", text)
    heads: set[str] = set()
    asserted: set[str] = set()
    negated = False
    for clause in _CLAUSE.split(text):
        tokens = words(clause)
        at = next((i for i, t in enumerate(tokens) if t in _NEGATIONS or t.endswith("n't")), None)
        if at is None:
            asserted |= _content(clause)
            continue
        negated = True
        reach = _content(" ".join(tokens[at + 1 :]))
        # "the text is not visible": the negation reaches no word of substance, so it denies the whole clause.
        denied |= reach or _content(clause)
        heads |= set(next(filter(None, map(_content, tokens[at + 1 :])), _content(clause)))
        if reach:
            asserted |= _content(" ".join(tokens[:at]))
    return negated, frozenset(denied), frozenset(heads), frozenset(asserted - denied)


def _clocks(lower: str) -> Iterable[Clock]:
    for match in _CLOCK.finditer(lower):
        if not match["rest"] and not match["half"]:
            continue
        hour = int(match["hour"])
        if match["half"] and hour <= 12:
            hours = {hour % 12 + (12 if match["half"] == "p" else 0)}
        else:
            hours = {hour % 12, hour % 12 + 12} if 1 <= hour <= 12 and not match["half"] else {hour}
        yield Clock(frozenset(hours), match["rest"] or ":00")


def _numbers(cased: str) -> Iterable[Number]:
    # An hour without minutes stays: "3 pm" is still 3 where the other step says "3 o'clock".
    text = _ORDINAL.sub(" ", _CLOCK.sub(lambda clock: " " if clock["rest"] else clock.group(), cased))
    for match in _NUMBER.finditer(text):
        value = float(f"{match['digits'].replace(',', '')}e{match['exponent'] or 0}")
        if value > _LARGEST:
            continue
        if match["under"] and float(match["under"]):
            value /= float(match["under"])
        if match["sign"]:
            value = -value
        yield _number(value, match["currency"] or "", (match["unit"] or "").replace(" ", ""), text[match.end() :])
    # Years written as decades, 1990s, leave the "s" as a unit that is none.
    for match in _WORD_NUMBER.finditer(_PRONOUN_ONE.sub(" ", text.casefold())):
        yield _number(float(_NUMBER_WORDS[match[1]]), "", match[2] or "", text[match.end() :])


def _number(value: float, currency: str, following: str, rest: str) -> Number:
    if following in _CASED_UNITS and not currency:
        dimension, size = _CASED_UNITS[following]
        return Number(value * size, dimension, "")
    following = following.casefold()
    if following in _SCALES and not (following == "m" and not currency):
        value *= _SCALES[following]
        following = next(iter(words(rest[:40])), "")
    unit = currency or following
    singular = stem(unit)
    dimension, size = _UNITS.get(unit) or _UNITS.get(singular) or ("", 1.0)
    return Number(value * size, dimension, "" if dimension else singular)


def _texts(step: str) -> tuple[frozenset[tuple[str, ...]], frozenset[str]]:
    """Quoted strings, capitals and names, each as its words in lower case; and the words that open sentences."""
    quoted = {words(next(filter(None, groups))) for groups in _QUOTED.findall(step) if any(groups)}
    bare = _QUOTED.sub(" , ", step)
    lettered = [token for token in _TOKEN.findall(bare) if token[0].isalpha()]
    # In a sentence all in capitals, or Mostly In Title Case, a capital says nothing.
    if sum(token.isupper() for token in lettered) > len(lettered) / 2:
        return frozenset(quoted), frozenset()
    titled = len(lettered) > 5 and sum(token[0].isupper() for token in lettered) > 0.7 * len(lettered)
    names: set[tuple[str, ...]] = set()
    openers: set[str] = set()
    current: list[str] = []
    opened = False  # whether `current` is, so far, only the word that opens a sentence
    opening, end = True, 0
    for match in _TOKEN.finditer(bare):
        token, gap = match.group(), bare[end : match.start()].strip()
        end = match.end()
        opening = opening or any(mark in gap for mark in ".!?")
        measures = token in _CASED_UNITS and bare[max(0, match.start() - 2) : match.start()].strip()[-1:].isdigit()
        large = len(token) > 1 and token[0].isupper() and token.casefold() not in FUNCTION_WORDS and not measures
        sure = large and ((token.isupper() and token.isalpha()) or not (opening or titled))
        if gap or not sure:
            _close(current, opened, names, openers)
            current, opened = [], False
        if sure or (large and opening and not token.endswith("ing")):
            current += words(token)  # names of several words stay together: Steve Jobs
            opened = not sure
        opening = False
    _close(current, opened, names, openers)
    return frozenset(quoted | names), frozenset(openers)


def _close(name: list[str], opened: bool, names: set[tuple[str, ...]], openers: set[str]) -> None:
    if opened:
        openers.update(map(stem, name))
    elif name:
        names.add(tuple(name))


# --- the comparison -------------------------------------------------------------------------------------------------


def conflict(a: str, b: str) -> str | None:
    """The kind of conflict between two steps, or None.

    >>> conflict("The car is green.", "The car is red.")
    'colour'
    >>> conflict("The lamp is left of the bed.", "The bed is right of the lamp.") is None
    True
    """
    return _conflict(a, b) if a <= b else _conflict(b, a)


@lru_cache(maxsize=65_536)
def _conflict(a: str, b: str) -> str | None:
    first, second = facts(a), facts(b)
    if _numbers_differ(first, second):
        return "number"
    if _clocks_differ(first.clocks, second.clocks):
        return "time"
    for kind in first.groups.keys() & second.groups.keys():
        if _each_alone(first.groups[kind], second.groups[kind]):
            return kind
    swapped = _swapped(first, second)
    # "a red cube and a blue ball" against "a blue cube and a red ball"; one noun alone may be another thing of its kind
    if (
        not swapped
        and sum(not first.bound[noun] & second.bound[noun] for noun in first.bound.keys() & second.bound.keys()) > 1
    ):
        return "colour"
    if _each_alone(first.ordinals, second.ordinals):
        return "ordinal"
    if _each_alone(first.labels, second.labels):
        return "label"
    if _texts_differ(first, second):
        return "text"
    turned = frozenset(_OPPOSITE.get(d, d) for d in second.directions) if swapped else second.directions
    if _each_alone(first.directions, turned):
        return "direction"
    if _poles_differ(first.poles, second.poles, swapped) or _close_opposites(first, second, swapped):
        return "antonym"
    if _polarity_differs(first, second):
        return "negation"
    return None


def _each_alone(a: frozenset[str], b: frozenset[str]) -> bool:
    """Each side says something that the other does not."""
    return bool(a - b) and bool(b - a)


def _clocks_differ(a: frozenset[Clock], b: frozenset[Clock]) -> bool:
    def alone(these: frozenset[Clock], those: frozenset[Clock]) -> bool:
        return any(not any(x.rest == y.rest and x.hours & y.hours for y in those) for x in these)

    return alone(a, b) and alone(b, a)


def _same_number(a: Number, b: Number) -> bool:
    if a.unit and b.unit and a.unit != b.unit:
        return False
    pairs = [(a.value, b.value)]
    if a.unit != b.unit:  # 50 % is 0.5, and where one side leaves the unit out, 50 % is 50 and 5 cm is 5
        pairs += [(a.value / size, b.value) for size in _sizes(a.unit)]
        pairs += [(a.value, b.value / size) for size in _sizes(b.unit)]
    return any(abs(x - y) <= 1e-9 * max(abs(x), abs(y), 1.0) for x, y in pairs)


@lru_cache(maxsize=32)
def _sizes(dimension: str) -> frozenset[float]:
    return frozenset(
        size for name, size in itertools.chain(_UNITS.values(), _CASED_UNITS.values()) if name == dimension
    )


def _numbers_differ(a: Facts, b: Facts) -> bool:
    if not a.numbers or not b.numbers:
        return False
    alone_a = any(not any(_same_number(x, y) for y in b.numbers) for x in a.numbers)
    alone_b = any(not any(_same_number(x, y) for x in a.numbers) for y in b.numbers)
    if alone_a and alone_b:
        return True
    # "two cats and three dogs" against "three cats and two dogs": the same numbers, counting other things
    counted_a, counted_b = _counts(a), _counts(b)
    return any(not counted_a[noun] & counted_b[noun] for noun in counted_a.keys() & counted_b.keys())


def _counts(side: Facts) -> dict[str, set[float]]:
    counts: dict[str, set[float]] = {}
    for number in side.numbers:
        if number.noun and number.noun not in FUNCTION_WORDS:
            counts.setdefault(number.noun, set()).add(number.value)
    return counts


def _texts_differ(a: Facts, b: Facts) -> bool:
    """Each side has a text unknown to the other; for one of the sides, a word that opens a sentence may be it.

    A text is known where its words are, or where one of two texts contains the other.
    """
    unknown_a, unknown_b = _has_unknown_text(a, b), _has_unknown_text(b, a)
    return (
        (unknown_a and unknown_b)
        or (unknown_a and bool(b.openers - a.words))
        or (unknown_b and bool(a.openers - b.words))
    )


def _has_unknown_text(a: Facts, b: Facts) -> bool:
    for text in a.texts:
        own = set(text)
        if {stem(word) for word in own} <= b.words:
            continue
        if not any(own <= set(other) or set(other) <= own for other in b.texts):
            return True
    return False


def _swapped(a: Facts, b: Facts) -> bool:
    """Whether what stood before the relation in one step stands after it in the other."""
    crossed = len(a.before & b.after), len(a.after & b.before)
    return min(crossed) > 0 and sum(crossed) > len(a.before & b.before) + len(a.after & b.after)


def _poles_differ(a: frozenset[Pole], b: frozenset[Pole], swapped: bool) -> bool:
    """Whether the two sides stand at opposite ends of an axis, each at one end only."""
    if not a or not b:
        return False
    ends_a = {(axis, pole) for axis, pole, _ in a}
    ends_b = {(axis, -pole if swapped and comparing else pole) for axis, pole, comparing in b}
    return any(
        (axis, -pole) in ends_b and (axis, pole) not in ends_b and (axis, -pole) not in ends_a for axis, pole in ends_a
    )


def _close_opposites(a: Facts, b: Facts, swapped: bool) -> bool:
    """Opposites that count only where the steps are otherwise alike: by a word, by a prefix, by a preposition."""
    if len(a.tokens) == len(b.tokens):
        differing = [pair for pair in zip(a.tokens, b.tokens, strict=True) if pair[0] != pair[1]]
        if len(differing) == 1 and differing[0] in _SWAPS:
            return True
    opposite = (
        (a.unprefixed - a.words) & (b.words - b.unprefixed)
        or (b.unprefixed - b.words) & (a.words - a.unprefixed)
        or _poles_differ(a.close_poles, b.close_poles, swapped)
    )
    if not opposite:
        return False
    only_a, only_b = a.words - b.words, b.words - a.words
    shared = (a.words & b.words) - FUNCTION_WORDS - LIGHT_WORDS
    # Beside the opposites themselves, neither step has more words of its own than the two share.
    return len(shared) >= max(len(only - FUNCTION_WORDS - LIGHT_WORDS) for only in (only_a, only_b)) - 1


def _unprefixed(word: str) -> frozenset[str]:
    """What a word denies by its prefix: locked for unlocked."""
    bases = {word.removeprefix(prefix) for prefix in ("un", "non") if word.startswith(prefix)}
    plain = {base for base in bases if len(base) > 3 and base not in _NO_PREFIX}
    return frozenset(plain | ({_PREFIXED[word]} if word in _PREFIXED else set()))


def _polarity_differs(a: Facts, b: Facts) -> bool:
    if a.negated and b.negated:  # "the roof has no snow", "there is no snow on the roof": the snow is meant
        return bool(a.heads & b.asserted or b.heads & a.asserted)
    return a.negated != b.negated or bool(a.denied & b.asserted or b.denied & a.asserted)
