"""Dates and times of day, exact to the fields that the gold answer gives.

A date of three numbers is read as month-day and as day-month. Where both readings exist it equals only a date with the
same two readings in the same places: an ambiguous answer is wrong against a clear one, and 5/3 is not 3/5. A year of
two digits stands last, never first, and is one of 1969 to 2068 (POSIX). Weekdays on both sides must agree; on one side
alone a weekday adds nothing. A gold time without am or pm accepts either.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from vqa_grpo.scoring.answer.normal import Match, plain, tidy
from vqa_grpo.scoring.answer.number_words import SMALL

_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH = {name[:n]: i + 1 for i, name in enumerate(_MONTHS) for n in (3, len(name))} | {"sept": 9}
_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_DAY = {name[:n]: name for name in _DAYS for n in (3, len(name))} | {"tues": "tuesday", "thurs": "thursday"}
# Short names that are no word of another kind.
_SURE = (_MONTH.keys() | _DAY.keys()) - {"mar", "mon", "wed", "sat", "sun"}
_M, _D, _Y = rf"({'|'.join(sorted(_MONTH, key=len, reverse=True))})\.?", r"(\d{1,2})(?:st|nd|rd|th)?", r"(\d{4}|'\d{2})"
_CENTURIES = r"(1[89]\d{2}|20\d{2})"  # what else stands beside a month of one or two digits may be anything
_FORMS = [
    (re.compile(rf"{_M} {_D}(?:,? {_Y})?"), "mdy"),
    (re.compile(rf"(?:the )?{_D}(?: of)?[ -]{_M}(?:,?[ -](\d{{4}}|'?\d{{2}}))?"), "dmy"),
    (re.compile(rf"{_M}(?:,? | of |-){_Y}"), "my"),
    (re.compile(rf"(\d{{4}}),? {_M} {_D}"), "ymd"),
    (re.compile(rf"(\d{{1,2}})[-/]{_CENTURIES}"), "my"),
    (re.compile(rf"{_CENTURIES}[-/](\d{{1,2}})"), "ym"),
    (re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})"), "ymd"),
    (re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})"), "either"),
]
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DAY_NAME = rf"({'|'.join(sorted(_DAY, key=len, reverse=True))})\.?"
_WEEKDAY = re.compile(rf"\b(?:on )?{_DAY_NAME}(?:,\s*|\s+)(?=.*\d)|(?<=\d),? (?:on )?\(?{_DAY_NAME}\)?$")
_CLOCK = re.compile(
    r"(?:at )?(?:(\d{1,2}):(\d{2})(?::(\d{2}))?|(\d{1,2})(?:[.](\d{2}))?(?=\s*[ap]\.?m)|(\d{1,2})(?= o'?clock))"
    r"(?: o'?clock)?(?:\s*(a|p)\.?m\.?)?(?:\s*(?:hrs?|hours))?"
)
_SPOKEN = re.compile(
    r"(?:at )?(?:(half|quarter|a quarter|[a-z-]+|\d{1,2}(?= minutes| past))(?: minutes)? (past|to) ([a-z]+|\d{1,2})"
    r"|([a-z]+) o'?clock)"
    r"(?:\s*(a|p)\.?m\.?)?"
)
_TIME = r"(\S*\d:\d\d\S*(?: ?[ap]\.?m\.?)?|\d{1,2} ?[ap]\.?m\.?)"
_BOTH = re.compile(rf"(.+?),? (?:at )?{_TIME}|{_TIME},? (?:on )?(.+)")


class Clock(NamedTuple):
    hour: int
    minute: int
    second: int
    half: str  # "am", "pm", "24" where the hour itself says so, "" where it stays open


class Moment(NamedTuple):
    """`dates` holds the readings as (year, month, day) with 0 for what is not said; `name` a lone month or weekday.

    Month-day comes before day-month, so that 5/3 and 3/5 differ although each can be read as the other.
    """

    dates: tuple[tuple[int, int, int], ...] = ()
    clock: Clock | None = None
    name: str = ""
    weekday: str = ""  # beside a date or a time

    def __str__(self) -> str:
        dates = " or ".join("-".join(f"{part:02d}" if part else "?" for part in date) for date in sorted(self.dates))
        clock = (
            f"{self.clock.hour}:{self.clock.minute:02d}:{self.clock.second:02d} {self.clock.half}" if self.clock else ""
        )
        return " ".join(filter(None, (self.weekday, dates, clock.strip(), self.name)))


def is_gold(gold: str) -> bool:
    """A full date or time, or the name of a month or weekday, full or short: "sun" and "mar" may be something else."""
    moment = read(gold)
    return moment is not None and (not moment.name or plain(gold) in _SURE)


def match(prediction: str, gold: str) -> Match:
    seen, expected = read(prediction), read(gold)
    correct = seen is not None and expected is not None and _same(seen, expected)
    return Match(correct, "datetime", str(seen) if seen else plain(prediction), str(expected or plain(gold)))


def _same(seen: Moment, gold: Moment) -> bool:
    if (seen.dates, seen.name) != (gold.dates, gold.name) or (seen.clock is None) != (gold.clock is None):
        return False
    if seen.weekday != gold.weekday and not (gold.dates and "" in (seen.weekday, gold.weekday)):
        return False
    if seen.clock is None or gold.clock is None:
        return True
    if gold.clock.half == "":
        return seen.clock[:3] == gold.clock[:3]
    return _absolute(seen.clock) == _absolute(gold.clock)


def _absolute(clock: Clock) -> tuple[int, int, int]:
    if clock.half in ("am", "pm"):
        return clock.hour % 12 + 12 * (clock.half == "pm"), clock.minute, clock.second
    return clock[:3]


def read(text: str) -> Moment | None:
    """A text that is one date, one time of day or both; None for anything else.

    >>> str(read("March 5th, 2010")), str(read("5/3/2010")), str(read("10:30 p.m."))
    ('2010-03-05', '2010-03-05 or 2010-05-03', '10:30:00 pm')
    """
    return _read(text) if len(text) <= 60 else None


@functools.lru_cache(maxsize=4096)  # one prediction is compared with every option
def _read(text: str) -> Moment | None:
    text = tidy(text).casefold().rstrip(",; ")
    if not text.endswith((".m.", "am.", "pm.")):
        text = text.rstrip(".")
    name = text.removeprefix("on ")
    if name in _DAY or text in _MONTH:
        return Moment(name=_DAY.get(name) or _MONTHS[_MONTH[text] - 1])
    if not text or not (text[0].isdigit() or text[-1].isdigit() or text.endswith(("m", "m.", "k")) or " " in text):
        return Moment(clock=_NAMED[text]) if text in _NAMED else None
    day = ""
    if found := _WEEKDAY.search(text):
        day = _DAY[found[1] or found[2]]
        text = (text[: found.start()] + text[found.end() :]).removeprefix("at ")
    if clock := _clock(text):
        return Moment(clock=clock, weekday=day)
    if dates := _dates(re.sub(r"^(?:on|in) ", "", text)):
        return Moment(dates, weekday=day)
    if both := _BOTH.fullmatch(text):
        dates, clock = _dates(both[1] or both[4]), _clock(both[2] or both[3])
        return Moment(dates, clock, weekday=day) if dates and clock else None
    return None


_PART_OF_DAY = re.compile(r" in the (morning|afternoon|evening)$")
_NAMED = {
    "noon": Clock(12, 0, 0, "pm"),
    "12 noon": Clock(12, 0, 0, "pm"),
    "midday": Clock(12, 0, 0, "pm"),
    "midnight": Clock(12, 0, 0, "am"),
}


def _clock(text: str) -> Clock | None:
    if text in _NAMED:
        return _NAMED[text]
    text = _PART_OF_DAY.sub(lambda found: " am" if found[1] == "morning" else " pm", text)
    if found := _CLOCK.fullmatch(text):
        hour = int(found[1] or found[4] or found[6])
        minute, second, half = int(found[2] or found[5] or 0), int(found[3] or 0), found[7]
    elif found := _SPOKEN.fullmatch(text):
        named = found[3] or found[4]
        hour, second, half = int(named) if named.isdigit() else SMALL.get(named, 0), 0, found[5]
        minute = {"half": 30, "quarter": 15, "a quarter": 15}.get(found[1] or "", -1) if found[1] else 0
        if minute < 0:
            minute = _minutes(found[1])
        if not 1 <= hour <= 12 or minute < 0:
            return None
        if found[2] == "to":
            hour, minute = (hour - 2) % 12 + 1, 60 - minute
    else:
        return None
    if hour > 23 or minute > 59 or second > 59 or (half and not 1 <= hour <= 12):
        return None
    return Clock(hour, minute, second, half + "m" if half else "" if 1 <= hour <= 12 else "24")


def _minutes(words: str) -> int:
    values = [int(word) if word.isdigit() else SMALL.get(word, -99) for word in words.split("-")]
    return sum(values) if len(values) <= 2 and 0 < sum(values) < 60 else -1


def _dates(text: str) -> tuple[tuple[int, int, int], ...]:
    found, order = next(((found, order) for form, order in _FORMS if (found := form.fullmatch(text))), (None, ""))
    if found is None:
        return ()
    if order == "mdy":
        readings = [(_year(found[3]), _month(found[1]), int(found[2]))]
    elif order == "dmy":
        readings = [(_year(found[3]), _month(found[2]), int(found[1]))]
    elif order == "my":
        readings = [(_year(found[2]), _month(found[1]), 0)]
    elif order == "ym":
        # 2010-11 may be the season that began in 2010.
        season = int(found[2]) == (int(found[1]) + 1) % 100
        readings = [] if season and len(found[2]) == 2 else [(int(found[1]), int(found[2]), 0)]
    elif order == "ymd":
        readings = [(int(found[1]), _month(found[2]), int(found[3]))]
    else:
        first, second, year = int(found[1]), int(found[3]), _year(found[4])
        readings = [(year, first, second), (year, second, first)]
    possible = [
        (y, m, d) for y, m, d in readings if 1 <= m <= 12 and (1 <= d <= _LONGEST[m - 1] or order in ("my", "ym"))
    ]
    return tuple(dict.fromkeys(possible))


def _month(text: str) -> int:
    return int(text) if text.isdigit() else _MONTH[text]


def _year(text: str | None) -> int:
    """0 where none is said."""
    digits = (text or "0").removeprefix("'")
    return int(digits) + (0 if len(digits) != 2 else 2000 if int(digits) <= 68 else 1900)
