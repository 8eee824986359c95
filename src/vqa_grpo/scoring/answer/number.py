"""Numbers with what may stand around them: percent, currency, units, a counted noun.

The gold answer sets the precision. A whole number (a count, a year) and a fraction are exact; a decimal is met by every
number that rounds to it at its printed precision. Arithmetic is on fractions, so nothing is lost on the way.

What may be left out of a prediction: percent, currency, the counted noun, and units that the question counts in
(years, days, degrees). A physical unit may not: the prompt asks for it, and 5 could be metres or miles. A gold answer
without a unit accepts any one unit or noun, since there the question says what is counted.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from vqa_grpo.scoring.answer import number_words, units
from vqa_grpo.scoring.answer.normal import Match, plain, tidy

MAX_LENGTH = 120
_MAX_DIGITS = 40  # more are an identifier, and no arithmetic on them is worth its time
_MAX_EXPONENT = 300

_HEDGE = re.compile(
    r"(?:about|approximately|approx\.?|around|roughly|circa|ca\.|nearly|~|≈|exactly|a total of|the(?= )|#"
    r"|(?:no\.|number)(?= ?\d)|number (?=[a-z]+\Z))\s*",
    re.IGNORECASE,
)
# The 1990s and the 90s: ten years and no number of seconds, unless the gold answer is a time.
_DECADE = re.compile(r"(?:the )?'?(?:\d{3}|[1-9])0'?s", re.IGNORECASE)
_LONG_DECADE = re.compile(r"\d{3}0'?s", re.IGNORECASE)
_SIGN = re.compile(r"(?:([+-])|(minus|negative)\s)\s*", re.IGNORECASE)
_CURRENCY_SIGNS = {"$": "USD", "us$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR", "₩": "KRW"}
_CURRENCY_WORDS = {
    **dict.fromkeys(("usd", "dollar", "dollars", "us dollars", "bucks"), "USD"),
    **dict.fromkeys(("eur", "euro", "euros"), "EUR"),
    **dict.fromkeys(("gbp", "pound sterling", "pounds sterling"), "GBP"),
    **dict.fromkeys(("jpy", "yen"), "JPY"),
    **dict.fromkeys(("inr", "rupee", "rupees", "rs", "rs."), "INR"),
    **dict.fromkeys(("cny", "yuan", "rmb"), "CNY"),
    **dict.fromkeys(("krw", "won"), "KRW"),
    **_CURRENCY_SIGNS,
}
_CURRENCY = re.compile(r"(US\$|[$€£¥₹₩]|Rs\.?(?=\s|\d)|(?:USD|EUR|GBP|JPY|INR|CNY|RMB|KRW)(?![A-Z]))\s*", re.IGNORECASE)
_BODY = re.compile(
    r"(?:(?P<whole>\d{1,9})\s+(?=\d+\s*/))?"
    r"(?:(?P<top>\d{1,9})\s*/\s*(?P<bottom>\d{1,9})(?![\d.,/])"
    r"|(?P<number>\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+(?!\d)|(?=\.\d))(?P<point>\.\d+)?"
    r"(?:[eE](?P<e>[+-]?\d{1,4})(?!\d)|\s*[x×*·]\s*10(?:\^|\*\*)(?P<ten>[+-]?\d{1,4}|\([+-]?\d{1,4}\)))?)"
)
_SCALE = re.compile(
    r"\s*(?P<word>(?i:hundred|thousand|lakh|lac|million|crore|billion|trillion|dozen|mn|bn|tn))s?(?![A-Za-z])"
    r"|(?P<letter>[kKMB])(?![\w/])"  # 5k and 5M; 5 m and 5m are metres
)
_SCALES = {"hundred": 100, **number_words.SCALES, "lac": 10**5, "dozen": 12, "mn": 10**6, "bn": 10**9, "tn": 10**12}
_LETTER_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}
_MONEY_SCALES = {"k": 10**3, "m": 10**6, "cr": 10**7, "b": 10**9}
_MONEY_SCALE = re.compile(r"\s?(k|m|cr|b)\b", re.IGNORECASE)  # 5 m are metres only where no money is
_PART = re.compile(rf"\s+({'|'.join(number_words.PARTS)})(?![a-z])", re.IGNORECASE)
_AND_A_HALF = re.compile(r" and (?:a|one) half(?![a-z])", re.IGNORECASE)
_ORDINAL_TAIL = re.compile(r"(?:st|nd|rd|th)(?![a-z])", re.IGNORECASE)
_NOUN = re.compile(r"(?:[A-Za-z]+(?:['-][A-Za-z]+)*)(?: [A-Za-z]+(?:['-][A-Za-z]+)*){0,3}")
_CLAIMS = """
or and not nor maybe perhaps possibly if to than but either over under more less fewer least most plus minus times half
quarter thousand hundred million billion dozen score gross ones tens hundreds thousands versus vs through until out is
isn't was wasn't are aren't no yes never always i guess this its as us without except wrong squared cubed
"""
_NO_NOUN = frozenset(
    [*_CLAIMS.split(), *number_words.SMALL, *number_words.PARTS]
)  # each makes another claim of "3 dogs", or none at all
_PLURALS = "people men women children feet teeth mice geese fish sheep deer aircraft cattle police total"
_PEOPLE = frozenset([*_PLURALS.split(), "person", "man", "woman", "child"])
# A count of these is no count of things: three pairs of shoes are six shoes.
_GROUPS = frozenset(["pair", "pairs", "couple", "couples", "trio", "trios"])
_AFTER_NOUN = re.compile(r" (?:of|in|on|at|with|from|for|that|who|wearing|visible|shown) ?")
_HOW = re.compile(r" (?:old|tall|long|high|wide|deep|thick|away|in (?:length|height|width|total))\Z", re.IGNORECASE)
_HYPHENATED = re.compile(r"-([A-Za-z]{3,})(?:-(?:old|tall|long|high|wide|deep))?")
_TOKEN = re.compile(r"[a-z]+")
_PARTS = re.compile(r"\s*([A-Za-z]+\.?|'|\")(?:\s*,\s*|\s+and\s+|\s*)(?=\d)")


@dataclass(frozen=True)
class Quantity:
    """`step` is the printed precision, 0 where the number is exact; `digits` counts the significant digits."""

    value: Fraction
    step: Fraction = Fraction(0)
    digits: int = 1
    kind: str = ""  # "percent", "currency", "unit", "noun", "group", "ordinal", or nothing beside the number
    of: str = ""
    unit: units.Unit = ()

    def __str__(self) -> str:
        percent = self.kind == "percent"
        value = self.value * 100 if percent else self.value
        plain_decimal = value.denominator > 1 and not _is_endless(value)
        text = f"{float(value):.12g}" if plain_decimal else str(value)
        if len(text) > 40:
            text = text[:36] + "…"
        of = self.of or " ".join(name if power == 1 else f"{name}^{power}" for name, power in self.unit)
        return f"{text}{'%' if percent else ' ' + of}".strip()


def is_gold(gold: str) -> bool:
    """Whether a gold answer is a number: the number alone or with something that is known to go with numbers.

    A word after the number counts when it can be counted ("3 dogs"); "one way" and "7 eleven" are names. Digits with a
    leading zero are a code.

    >>> [is_gold(text) for text in ("1,000", "5 cm", "3 dogs", "one way", "007", "3-4", "1/2")]
    [True, True, True, False, False, False, True]
    >>> is_gold("1990s"), is_gold("2 lakh"), is_gold("first aid")
    (False, True, False)
    """
    text = tidy(gold)
    if re.match(r"0\d", text) or _DECADE.fullmatch(text):
        return False
    quantity = read(text)
    if quantity is None or (quantity.kind == "ordinal" and quantity.of):  # "first aid"
        return False
    return quantity.kind != "noun" or _is_plural(quantity.of)


def match(prediction: str, gold: str) -> Match:
    expected = read(tidy(gold))
    said = _without_hedge(tidy(prediction))
    seen = read(said)
    if seen is not None and expected is not None and expected.kind != "unit" and _DECADE.fullmatch(said):
        seen = None
    if expected is not None and expected.value == 0 and plain(prediction) in ("none", "nil", "no"):
        return Match(True, "number_none", plain(prediction), str(expected))  # as the VQA evaluation reads it
    if expected is None or seen is None:
        return Match(False, "number_unreadable", plain(prediction), str(expected or plain(gold)))
    correct, rule = _compare(seen, expected)
    return Match(correct, rule, str(seen), str(expected))


def _without_hedge(text: str) -> str:
    return text[found.end() :] if (found := _HEDGE.match(text)) else text


def _compare(seen: Quantity, gold: Quantity) -> tuple[bool, str]:
    if gold.kind == "percent":
        if seen.kind == "percent":
            return _close(seen.value, gold.value, gold, seen), "number_percent"
        printed = Quantity(gold.value * 100, gold.step * 100, gold.digits)
        either = _close(seen.value, printed.value, printed, seen) or _close(seen.value, gold.value, gold, seen)
        return seen.kind == "" and either, "number_percent"
    if gold.kind == "":
        one = abs(seen.value) == 1 and len(seen.of) > 2  # 1 dog, but not 1 x
        if seen.kind == "group" or (seen.kind == "noun" and not one and not _is_plural(seen.of)):
            return False, "number_noun"
        if seen.kind == "percent" and _close(seen.value * 100, gold.value, gold, seen):
            return True, "number_percent"
        return _close(seen.value, gold.value, gold, seen), "number_exact" if gold.step == 0 else "number_precision"
    if gold.kind == "unit":
        return _compare_units(seen, gold)
    bare = seen.kind == "" and gold.kind != "group"
    same = bare or (seen.kind == gold.kind and (gold.kind == "ordinal" or _same_noun(seen.of, gold.of)))
    return same and _close(seen.value, gold.value, gold, seen), f"number_{gold.kind}"


def _compare_units(seen: Quantity, gold: Quantity) -> tuple[bool, str]:
    if seen.kind == "":
        counted = len(gold.unit) == 1 and gold.unit[0][0] in units.COUNTED and gold.unit[0][1] == 1
        return counted and _close(seen.value, gold.value, gold, seen), "number_unit_missing"
    if seen.kind != "unit":
        return False, "number_unit"
    if seen.unit == gold.unit:
        return _close(seen.value, gold.value, gold, seen), "number_unit"
    there = units.conversion(seen.unit, gold.unit)
    back = units.conversion(gold.unit, seen.unit)
    if there is None or back is None:
        return False, "number_unit"
    try:
        value = Fraction(float(seen.value) * there[0] + there[1])
        own = Fraction(float(gold.value) * back[0] + back[1])
        # Zero degrees are 32 °F: what arithmetic loses goes by the largest number in it.
        lost = (abs(gold.value) + Fraction(abs(there[1]))) / 10**9
        if abs(value - gold.value) <= gold.step / 2 + lost:
            return True, "number_unit_converted"
        # 5 miles are 8.05 km: a prediction in another unit is as exact as it is printed, if that is exact enough: by
        # three digits or, on a scale with a zero of its own, if the way back rounds to the gold answer too.
        there_and_back = there[1] != 0 and abs(value - gold.value) <= (gold.step or 1) / 2
        fine = seen.digits >= 3 or there_and_back
        return fine and abs(own - seen.value) <= (seen.step or 1) / 2, "number_unit_converted"
    except (OverflowError, ValueError):  # past the range of floats
        return False, "number_unit_converted"


def _close(seen: Fraction, gold: Fraction, precision: Quantity, printed: Quantity) -> bool:
    distance = abs(seen - gold)
    if distance <= precision.step / 2:
        return True
    # One third is never printed in full; two decimals of it are taken for it.
    endless = precision.step == 0 and _is_endless(gold)
    return endless and 0 < printed.step <= Fraction(1, 100) and distance <= printed.step / 2


def _is_endless(value: Fraction) -> bool:
    """Whether no decimal writes the fraction in full: its denominator has a prime other than 2 and 5."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest > 1


def _same_noun(one: str, other: str) -> bool:
    """Dogs are brown dogs where one side says no more; brown dogs are not black ones."""
    (head, rest), (other_head, other_rest) = _head(one), _head(other)
    few, many = sorted((head, other_head), key=len)
    return many[len(many) - len(few) :] == few and (not rest or not other_rest or rest == other_rest)


def _is_plural(noun: str) -> bool:
    last = _AFTER_NOUN.split(noun, maxsplit=1)[0].rpartition(" ")[2]
    return last in _PEOPLE or last.endswith("s")


def _head(noun: str) -> tuple[list[str], str]:
    """ "red pairs of shoes" as (["red", "pair"], "shoes")."""
    first, *rest = _AFTER_NOUN.split(noun, maxsplit=1)
    words = first.split()
    if words and words[-1].endswith("s") and len(words[-1]) > 2:
        words[-1] = words[-1][:-1]
    return words, rest[0] if rest else ""


def read(text: str, depth: int = 0) -> Quantity | None:
    """A tidied text that is one quantity and nothing else; None for anything else, so for ranges and alternatives.

    >>> str(read("$1,234.50")), str(read("2 m 50 cm")), str(read("twenty-one thousand")), str(read("1 1/2 cups"))
    ('1234.5 USD', '2.5 meter', '21000', '1.5 cup')
    >>> read("3-4"), read("3 or 4"), read("9**9**9")
    (None, None, None)
    """
    text = text.strip()
    return _read(text, depth) if 0 < len(text) <= MAX_LENGTH else None


@functools.lru_cache(maxsize=4096)  # one prediction is compared with every option
def _read(text: str, depth: int) -> Quantity | None:
    if text.endswith((".", ",", ";", "!")):
        text = text[:-1].rstrip()
    if _LONG_DECADE.fullmatch(text):
        return None
    sign = 1
    currency = ""
    for _ in range(2):  # -$5 and $-5
        if found := _SIGN.match(text):
            if sign < 0:
                return None
            sign = -1 if found[1] == "-" or found[2] else sign
            text = text[found.end() :]
        if not currency and (found := _CURRENCY.match(text)):
            currency = _CURRENCY_WORDS[found[1].casefold()]
            text = text[found.end() :]
    body = _digits(text) if text[:1].isdigit() or text[:1] == "." else _in_words(text)
    if body is None:
        return None
    value, step, digits, rest, ordinal = body
    if not step and (found := _PART.match(rest)) and (value == 1 or found[1].endswith(("s", "S"))):
        value, rest = value / number_words.PARTS[found[1].casefold()], rest[found.end() :]
    elif not step and value.denominator == 1 and (found := _AND_A_HALF.match(rest)):
        value, rest = value + Fraction(1, 2), rest[found.end() :]
    factor = 1
    for _ in range(2):  # two hundred thousand, a lakh crore
        if found := _SCALE.match(rest):
            factor *= _SCALES[found["word"].casefold()] if found["word"] else _LETTER_SCALES[found["letter"]]
            rest = rest[found.end() :]
    if factor == 1 and currency and (found := _MONEY_SCALE.match(rest)):
        factor, rest = _MONEY_SCALES[found[1].casefold()], rest[found.end() :]
    value, step = value * factor, step * factor
    if not ordinal and (found := _ORDINAL_TAIL.match(rest)) and not step and value.denominator == 1:
        ordinal, rest = True, rest[found.end() :]
    quantity = Quantity(sign * value, step, digits)
    return _with(quantity, rest, currency, ordinal, depth)


def _with(number: Quantity, rest: str, currency: str, ordinal: bool, depth: int) -> Quantity | None:
    """The number together with what stands after it."""

    def of(kind: str, name: str = "", unit: units.Unit = (), scale: Fraction = Fraction(1)) -> Quantity:
        return Quantity(number.value * scale, number.step * scale, number.digits, kind, name, unit)

    apart = rest.startswith(" ")
    tail = rest.strip()
    folded = tail.casefold()
    if currency:
        return of("currency", currency) if not tail or _CURRENCY_WORDS.get(folded) == currency else None
    if ordinal and not tail:
        return of("ordinal")
    if not tail:
        return of("")
    if folded in ("%", "percent", "per cent", "pct", "percents"):
        return of("percent", scale=Fraction(1, 100))
    if name := _CURRENCY_WORDS.get(folded):
        return of("currency", name)
    if folded in ("cents", "cent", "¢"):
        return of("currency", "USD", scale=Fraction(1, 100))
    if found := _HYPHENATED.fullmatch(rest):  # 5-foot, 5-year-old
        unit = units.read(found[1])
        return of("unit", unit=unit) if unit and not ordinal else None
    if not ordinal:
        tail = _HOW.sub("", tail)
        if tail in ("'", '"') and not apart:
            return of("unit", unit=(("foot" if tail == "'" else "inch", 1),))
        if unit := units.read(tail):
            return of("unit", unit=unit)
        if found := _PARTS.match(rest):
            return _sum(number, found[1], rest[found.end() :], depth)
    words = folded.split()
    if apart and _NOUN.fullmatch(tail) and not _NO_NOUN & set(words):
        if ordinal:
            return of("ordinal", folded)
        return of("group" if words[0] in _GROUPS else "noun", folded)
    return None


def _sum(first: Quantity, unit: str, rest: str, depth: int) -> Quantity | None:
    """5 ft 10 in, 1 h 30 min: parts of one dimension, in the unit of the first."""
    name = {"'": "foot", '"': "inch"}.get(unit)
    found = ((name, 1),) if name else units.read(unit)
    second = read(rest, depth + 1) if depth < 3 and found and first.step == 0 else None
    if not found or second is None:
        return None
    if second.kind == "" and name == "foot" and re.fullmatch(r"\d{1,2}", rest):  # 1'000 is no foot
        second = Quantity(second.value, second.step, second.digits, "unit", "", (("inch", 1),))
    factor = units.conversion(second.unit, found) if second.kind == "unit" else None
    if factor is None or factor[1] or factor[0] >= 1:
        return None
    scale = Fraction(factor[0]).limit_denominator(10**6)
    if second.value * scale >= 1:
        return None
    return Quantity(
        first.value + second.value * scale, second.step * scale, first.digits + second.digits, "unit", "", found
    )


_Body = tuple[Fraction, Fraction, int, str, bool]


def _digits(text: str) -> _Body | None:
    found = _BODY.match(text)
    if found is None or sum(map(str.isdigit, found[0])) > _MAX_DIGITS:
        return None
    if found["top"]:
        if not int(found["bottom"]):
            return None
        value = Fraction(int(found["top"]), int(found["bottom"])) + int(found["whole"] or 0)
        return value, Fraction(0), len(found["top"]), text[found.end() :], False
    if found["whole"]:
        return None
    whole, decimals = re.sub("[, ]", "", found["number"] or ""), (found["point"] or ".")[1:]
    exponent = int((found["e"] or found["ten"] or "0").strip("()"))
    if abs(exponent) > _MAX_EXPONENT:
        return None
    scale = Fraction(10) ** exponent
    step = Fraction(1, 10 ** len(decimals)) * scale if decimals else Fraction(0)
    digits = len((whole + decimals).lstrip("0"))
    return Fraction(int(whole + decimals or "0"), 10 ** len(decimals)) * scale, step, digits, text[found.end() :], False


def _in_words(text: str) -> _Body | None:
    words = [(found[0], found.end()) for found in _TOKEN.finditer(text.casefold()[:MAX_LENGTH])][:20]
    number = number_words.read([word for word, _ in words])
    if number is None:
        return None
    value, ordinal, used = number
    end = words[used - 1][1]
    if re.search(r"[^A-Za-z\s-]", text[:end]):  # "one, two" and "three (3)" are not one number in words
        return None
    return value, Fraction(0), 3, text[end:], ordinal
