"""Units of measurement: a table of the spellings that answers use, and conversion through pint.

The table decides what is a unit, so that the kind of a gold answer never depends on pint's thousands of names, among
which "points", "links", "hands" and "pa" (a picoyear) are units too. pint only converts between two known units. No
text of an answer ever reaches pint's expression parser.
"""

from __future__ import annotations

import functools
import re
from typing import Any

Unit = tuple[tuple[str, int], ...]  # pint's names with their powers, in alphabetical order

# pint's name, symbols (case counts), words (case does not count; a plural s is understood)
_TABLE = """
meter|m|metre
centimeter|cm cms|centimetre
millimeter|mm mms|millimetre
kilometer|km kms|kilometre
micrometer|µm μm um|micrometre micron
nanometer|nm|nanometre
decimeter|dm|decimetre
inch|in in.|inches
foot|ft ft.|feet
yard|yd yd.|
mile|mi mi.|
nautical_mile|nmi|
light_year|ly|lightyear
gram|g|gramme
kilogram|kg kgs|kilo
milligram|mg|
microgram|µg μg mcg|
metric_ton|t|tonne
pound|lb lbs lb. lbs. lbm|
ounce|oz oz.|
ton||
stone||
second|s sec secs sec.|
millisecond|ms msec|
microsecond|µs μs us|
nanosecond|ns|
minute|min mins min.|
hour|h hr hrs hr.|
day|d|
week|wk wks|
month|mo mos|
year|yr yrs|
calendar_decade||decade
century||centuries
liter|l L|litre
milliliter|ml mL|millilitre
centiliter|cl cL|centilitre
deciliter|dl dL|decilitre
gallon|gal gal.|
quart|qt|
pint|pt|
cup||
fluid_ounce|fl.oz floz|
tablespoon|tbsp|
teaspoon|tsp|
degree_Celsius|°C ℃ degC C|celsius centigrade
degree_Fahrenheit|°F ℉ degF F|fahrenheit
kelvin|K|
degree|° deg|
radian|rad|
hectare|ha|
acre|ac|
mile_per_hour|mph MPH|
kilometer_per_hour|kph kmh KPH|
knot|kn kt kts|
watt|W|
kilowatt|kW|
megawatt|MW|
gigawatt|GW|
milliwatt|mW|
horsepower|hp|
kilowatt_hour|kWh|
watt_hour|Wh|
volt|V|
millivolt|mV|
kilovolt|kV|
ampere|A|amp
milliampere|mA|milliamp
ohm|Ω Ω|
hertz|Hz|
kilohertz|kHz|
megahertz|MHz|
gigahertz|GHz|
joule|J|
kilojoule|kJ|
calorie|cal|
kilocalorie|kcal|
newton|N|
pascal|Pa|
kilopascal|kPa|
hectopascal|hPa|
megapascal|MPa|
bar||
millibar|mbar mb|
psi|PSI|
atmosphere|atm|
mmHg||
byte|B|
kilobyte|KB kB|
megabyte|MB|
gigabyte|GB|
terabyte|TB|
bit||
megabit|Mb|
pixel|px|
decibel|dB|
mole|mol|
lumen|lm|
candela|cd|
lux|lx|
"""
_SYMBOLS: dict[str, str] = {}
_WORDS: dict[str, str] = {}
for _line in _TABLE.split("\n")[1:-1]:
    _name, _symbols, _spellings = _line.split("|")
    _SYMBOLS |= dict.fromkeys(_symbols.split(), _name)
    for _word in (_name.casefold().replace("_", " "), *_spellings.split()):
        _WORDS |= {_word: _name, _word + "s": _name}
_WORDS |= {"degree celsius": "degree_Celsius", "degrees celsius": "degree_Celsius", "degrees c": "degree_Celsius"}
_WORDS |= {"degrees centigrade": "degree_Celsius", "miles per hour": "mile_per_hour", "degrees f": "degree_Fahrenheit"}
_WORDS |= {"degree fahrenheit": "degree_Fahrenheit", "degrees fahrenheit": "degree_Fahrenheit"}
_WORDS |= {"kilometers per hour": "kilometer_per_hour", "kilometres per hour": "kilometer_per_hour"}
_WORDS |= {"deg c": "degree_Celsius", "deg f": "degree_Fahrenheit"}
_WORDS |= {"fl oz": "fluid_ounce", "mm hg": "mmHg", "feet": "foot"}

_POWER_WORDS = {"square": 2, "sq": 2, "sq.": 2, "squared": 2, "cubic": 3, "cu": 3, "cu.": 3, "cubed": 3}
_FACTOR = re.compile(r"(.*?[^\d^*])\s*(?:(?:\^|\*\*)?(-?[1-4]))?")
# Counting them is what the question asks for, so a prediction may leave them out.
COUNTED = {"year", "month", "week", "day", "calendar_decade", "century", "degree", "pixel", "bit", "byte"}


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Unit | None:
    """A unit expression such as "km/h", "square feet" or "kg m^-3"; None for anything else.

    >>> read("Km"), read("m/s^2"), read("square feet"), read("apples")
    ((('kilometer', 1),), (('meter', 1), ('second', -2)), (('foot', 2),), None)
    """
    text = text.strip().strip("()").rstrip(",;")
    if not text or len(text) > 40:
        return None
    powers: dict[str, int] = {}
    whole = _one(text)
    if whole:
        return ((whole, 1),)
    sign = 1
    for side in re.split(r"\s*/\s*|\s+per\s+|^per\s+", text)[:3]:
        for name, power in _factors(side) or [("", 0)]:
            if not name:
                return None
            powers[name] = powers.get(name, 0) + sign * power
        sign = -1
    return tuple(sorted((name, power) for name, power in powers.items() if power)) or None


def _factors(text: str) -> list[tuple[str, int]] | None:
    whole = _one(text)
    if whole:
        return [(whole, 1)]
    first, _, rest = text.partition(" ")
    last_rest, _, last = text.rpartition(" ")
    if first.casefold() in _POWER_WORDS and (name := _one(rest)):
        return [(name, _POWER_WORDS[first.casefold()])]
    if last.casefold() in _POWER_WORDS and (name := _one(last_rest)):
        return [(name, _POWER_WORDS[last.casefold()])]
    factors = []
    for part in re.split(r"\s*[·*⋅](?!\*)\s*|\s+", text):
        found = _FACTOR.fullmatch(part)
        name = found and _one(found[1])
        if not found or not name:
            return None
        factors.append((name, int(found[2] or 1)))
    return factors


def _one(text: str) -> str | None:
    """A symbol as it is written, else a word in any case, else a symbol whose case was not cared for (KM, Kg)."""
    if name := _SYMBOLS.get(text) or _WORDS.get(text.casefold().rstrip(".")):
        return name
    folded = text.casefold()
    return _SYMBOLS.get(folded) if len(folded) > 1 else None


@functools.lru_cache(maxsize=4096)
def conversion(source: Unit, target: Unit) -> tuple[float, float] | None:
    """Factor and offset that turn a value in one unit into another; None where the two measure different things."""
    if source == target:
        return 1.0, 0.0
    try:
        registry = _registry()
        zero, one = (registry.Quantity(x, _pint_unit(source)).to(_pint_unit(target)).magnitude for x in (0.0, 1.0))
    except ImportError:
        raise
    except Exception:  # pint's own errors, and arithmetic on units with an offset
        return None
    return float(one) - float(zero), float(zero)


def _pint_unit(unit: Unit) -> Any:
    from pint.util import UnitsContainer

    return _registry().Unit(UnitsContainer(dict(unit)))


@functools.cache
def _registry() -> Any:
    import pint

    registry: Any = pint.UnitRegistry(cache_folder=None)
    registry.define("calendar_decade = 10 * year")  # pint's own decade is a ratio of ten
    return registry
