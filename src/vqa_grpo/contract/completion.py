"""What a model's completion turned out to be. One parser serves every reward, the evaluation and the command line.

JSON's grammar is RFC 8259, so NaN, comments, single quotes and trailing commas are not JSON. Python's own decoder is
not enough alone: it raises RecursionError on deep nesting and ValueError on long integers, takes NaN, and lets the
last of two equal keys win. `_find_objects` therefore recognises objects without recursion, in one pass, and the
decoder reads only what it found.

The grades, from best to worst (`FORMAT_REWARD`); a completion with several flaws gets the grade of its worst one:

| outcome        | grade | what the completion is                                                   | answer | steps |
| -------------- | ----- | ------------------------------------------------------------------------ | ------ | ----- |
| valid          | 1.0   | the prompt's contract, with nothing but JSON's white space around it      | yes    | yes   |
| wrapped        | 0.5   | the contract's object with a code fence, prose or other objects around it | yes    | yes   |
| extra_keys     | 0.4   | the contract's object with further keys                                   | yes    | yes   |
| too_large      | 0.3   | the contract's object with too many, too long or too wordy steps          | yes    | no    |
|                |       | the same, but the answer is too long                                      | no     | no    |
| fields         | 0.25  | a complete object, but a contract key is missing, empty or no string      | no     | no    |
| duplicate_keys | 0.2   | an object that says one key twice: nobody can tell which one it means     | no     | no    |
| several        | 0.1   | two or more objects with contract keys: a guess spread over many answers  | no     | no    |
| oversized      | 0.05  | a complete object, but it is nested too deeply, or the completion is over | no     | no    |
|                |       | 64 KiB, white space included                                              |        |       |
| malformed      | 0.0   | looks like an object, but is not JSON                                     | no     | no    |
| truncated      | 0.0   | the object never ends                                                     | no     | no    |
| no_json        | 0.0   | no object at all                                                          | no     | no    |

What is oversized is searched for a complete object and read no further. Its grade is the lowest that an object can
get, so that no padding pays, whatever it hides.

The text alone decides. TRL does not tell a reward why generation stopped, and evaluation must not grade otherwise than
training does: a whole object before endless prose is "wrapped", cut off or not, and an object cut off is "truncated".
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """The named results of parsing; the module's table says what each is worth."""

    VALID = "valid"
    WRAPPED = "wrapped"
    EXTRA_KEYS = "extra_keys"
    TOO_LARGE = "too_large"
    FIELDS = "fields"
    DUPLICATE_KEYS = "duplicate_keys"
    SEVERAL = "several"
    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    TRUNCATED = "truncated"
    NO_JSON = "no_json"


FORMAT_REWARD = {
    Outcome.VALID: 1.0,
    Outcome.WRAPPED: 0.5,
    Outcome.EXTRA_KEYS: 0.4,
    Outcome.TOO_LARGE: 0.3,
    Outcome.FIELDS: 0.25,
    Outcome.DUPLICATE_KEYS: 0.2,
    Outcome.SEVERAL: 0.1,
    Outcome.OVERSIZED: 0.05,
    Outcome.MALFORMED: 0.0,
    Outcome.TRUNCATED: 0.0,
    Outcome.NO_JSON: 0.0,
}
MAX_BYTES = 65_536
MAX_STEPS = 32
MAX_STEP_CHARACTERS = 512
MAX_STEP_WORDS = 64  # the prompt asks for 14; a step of four times that is no single clause by any reading
MAX_ANSWER_CHARACTERS = 512
MAX_DEPTH = 32  # the contract needs two levels
KEYS = {"reasoning_steps", "answer"}


@dataclass(frozen=True)
class Completion:
    """A parsed completion; `answer` is None and `steps` is empty unless they can be used.

    Each reason is "code: sentence". The codes are stable, and `codes` gives them alone.
    """

    outcome: Outcome
    answer: str | None = None
    steps: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def format_reward(self) -> float:
        return FORMAT_REWARD[self.outcome]

    @property
    def binary_format_reward(self) -> float:
        """The guide's all or nothing: 1.0 for the contract's object, with or without text around it, else 0.0."""
        return float(self.outcome in (Outcome.VALID, Outcome.WRAPPED))

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(reason.partition(":")[0] for reason in self.reasons)


def parse(text: str) -> Completion:
    """Read a completion. Never raises; the time is linear in the text's length.

    >>> parse('{"reasoning_steps": ["A red circle is shown."], "answer": "red"}').outcome.value
    'valid'
    >>> parse('Sure! {"answer": "red", "reasoning_steps": ["A red circle is shown."]}').answer
    'red'
    >>> parse("It looks red.").reasons
    ('no_object: no JSON object in the completion',)
    """
    body = text.strip(_SPACES)
    if not body:
        return Completion(Outcome.NO_JSON, reasons=("empty: the completion is empty",))
    oversized = len(text) > MAX_BYTES or (not text.isascii() and len(text.encode(errors="surrogatepass")) > MAX_BYTES)
    whole = None if oversized else _decode_whole(body)
    if whole is not None:
        return _judge(whole, [])
    spans, unfinished, fault = _find_objects(body)
    if not oversized:
        return _choose(body, spans) if spans else _no_object(body, unfinished, fault)
    reason = f"oversized: the completion is longer than {MAX_BYTES} bytes"
    if spans:
        return Completion(Outcome.OVERSIZED, reasons=(reason,))
    nothing = _no_object(body, unfinished, fault)
    return replace(nothing, reasons=(reason, *nothing.reasons))


# --- from objects to an outcome ---------------------------------------------------------------------------------

_Flaw = tuple[Outcome, str]
_USABLE = {Outcome.WRAPPED, Outcome.EXTRA_KEYS}
_STEPS_OVER = ("too_many_steps", "long_step")


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys it held twice."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    value = _Object(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        value.repeated = tuple(sorted({key for key, _ in pairs if key in seen or seen.add(key)}))  # type: ignore[func-returns-value]
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _some_number(digits: str) -> float:
    """No number can be part of the contract, so none is worth converting: Python refuses integers of 4,301 digits."""
    return 0.0


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_int=_some_number, parse_float=_some_number
)


def _decode_whole(body: str) -> _Object | None:
    """The usual completion, one object and nothing else, at the speed of Python's decoder."""
    if body[0] != "{" or body[-1] != "}" or body.count("{") + body.count("[") > MAX_DEPTH:
        return None
    try:
        value, end = _DECODER.raw_decode(body)
    except ValueError:
        return None
    return value if end == len(body) else None


def _choose(body: str, spans: list[tuple[int, int, bool]]) -> Completion:
    """The object that is meant: the only one with a key of the contract, else the first."""
    values = [None if deep else _DECODER.raw_decode(body, start)[0] for start, _, deep in spans]
    named = [index for index, value in enumerate(values) if value is not None and KEYS & value.keys()]
    if len(named) > 1:
        return Completion(
            Outcome.SEVERAL, reasons=(f"several_objects: {len(named)} objects with keys of the contract",)
        )
    index = named[0] if named else 0
    start, end, _ = spans[index]
    flaws: list[_Flaw] = []
    if len(spans) > 1:
        flaws.append((Outcome.WRAPPED, f"other_objects: {len(spans)} JSON objects in the completion"))
    elif _FENCE.fullmatch(body[:start]) and body[end:].strip(_SPACES) == "```":
        flaws.append((Outcome.WRAPPED, "code_fence: a code fence around the JSON object"))
    elif start > 0 or end < len(body):
        flaws.append((Outcome.WRAPPED, "text_around: text around the JSON object"))
    value = values[index]
    if value is None:
        flaws.append((Outcome.OVERSIZED, f"too_deep: nested deeper than {MAX_DEPTH} levels"))
        return _completion(flaws, None, ())
    return _judge(value, flaws)


_FENCE = re.compile(r"```[A-Za-z]*\s*")


def _judge(value: _Object, flaws: list[_Flaw]) -> Completion:
    if value.repeated:
        flaws.append((Outcome.DUPLICATE_KEYS, f"duplicate_keys: {_names(value.repeated)} stands twice"))
    if extra := value.keys() - KEYS:
        flaws.append((Outcome.EXTRA_KEYS, f"extra_keys: keys beyond the contract: {_names(sorted(extra))}"))
    steps, answer = value.get("reasoning_steps"), value.get("answer")
    flaws += _step_flaws(steps) + _answer_flaws(answer)
    strings = [part for part in (answer, *(steps if isinstance(steps, list) else ())) if isinstance(part, str)]
    if not all(map(_is_text, strings)):
        flaws.append((Outcome.FIELDS, "lone_surrogate: a lone surrogate, which no UTF-8 file can hold"))
    return _completion(flaws, answer, tuple(steps) if isinstance(steps, list) else ())


def _completion(flaws: list[_Flaw], answer: Any, steps: tuple[Any, ...]) -> Completion:
    outcome = min((flaw[0] for flaw in flaws), key=FORMAT_REWARD.__getitem__, default=Outcome.VALID)
    reasons = tuple(sentence for _, sentence in flaws)
    spoilt = [sentence for found, sentence in flaws if found not in _USABLE]
    if not spoilt:
        return Completion(outcome, answer, steps, reasons)
    # The limits on steps protect the step matcher from its cost; they say nothing against the answer.
    only_steps = all(sentence.startswith(_STEPS_OVER) for sentence in spoilt)
    return Completion(outcome, answer if only_steps else None, (), reasons)


def _step_flaws(steps: Any) -> list[_Flaw]:
    if steps is None:
        return [(Outcome.FIELDS, "no_steps: reasoning_steps is missing")]
    if not isinstance(steps, list):
        return [(Outcome.FIELDS, f"steps_type: reasoning_steps is {_kind(steps)} and not a list")]
    if not steps:
        return [(Outcome.FIELDS, "no_steps: reasoning_steps is empty")]
    wrong = [step for step in steps if not isinstance(step, str)]
    if wrong:
        return [(Outcome.FIELDS, f"step_type: a reasoning step is {_kind(wrong[0])} and not a string")]
    flaws: list[_Flaw] = []
    if any(_is_blank(step) for step in steps):
        flaws.append((Outcome.FIELDS, "empty_step: a reasoning step is empty"))
    if len(steps) > MAX_STEPS:
        flaws.append((Outcome.TOO_LARGE, f"too_many_steps: {len(steps)} steps, over the limit of {MAX_STEPS}"))
    if any(len(step) > MAX_STEP_CHARACTERS or len(step.split()) > MAX_STEP_WORDS for step in steps):
        limits = f"{MAX_STEP_CHARACTERS} characters or {MAX_STEP_WORDS} words"
        flaws.append((Outcome.TOO_LARGE, f"long_step: a step is over the limit of {limits}"))
    return flaws


def _answer_flaws(answer: Any) -> list[_Flaw]:
    if answer is None:
        return [(Outcome.FIELDS, "no_answer: answer is missing")]
    if not isinstance(answer, str):
        return [(Outcome.FIELDS, f"answer_type: answer is {_kind(answer)} and not a string")]
    if _is_blank(answer):
        return [(Outcome.FIELDS, "empty_answer: answer is empty")]
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return [(Outcome.TOO_LARGE, f"long_answer: the answer is over the limit of {MAX_ANSWER_CHARACTERS} characters")]
    return []


def _no_object(body: str, unfinished: bool, fault: str) -> Completion:
    if unfinished:
        return Completion(Outcome.TRUNCATED, reasons=("unfinished_object: the JSON object never ends",))
    if fault:
        return Completion(Outcome.MALFORMED, reasons=(fault,))
    if _SINGLE_QUOTED.search(body):
        return Completion(Outcome.MALFORMED, reasons=("single_quotes: JSON's strings stand in double quotes",))
    return Completion(Outcome.NO_JSON, reasons=("no_object: no JSON object in the completion",))


def _names(keys: Any) -> str:
    """Keys come from the model: ASCII, quoted and cut, they can stand in any log."""
    return ", ".join(ascii(key[:40]) for key in list(keys)[:5])[:120]


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", _Object: "an object", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def _is_blank(text: str) -> bool:
    """Empty to a reader: nothing but white space, control and zero-width characters, marks without a letter, and
    letters and symbols without ink."""
    return all(c in _INKLESS or (unicodedata.category(c)[0] in "ZCM" and not "\ud800" <= c <= "\udfff") for c in text)


# Hangul fillers, the braille pattern without dots, and the musical note without a head.
_INKLESS = "\u115f\u1160\u3164\uffa0\u2800\U0001d159"


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- finding objects in any text --------------------------------------------------------------------------------

_SPACES = " \t\n\r"
# Possessive quantifiers keep every expression linear: nothing is ever tried a second way.
_WHITE = rf"[{_SPACES}]*+"
_ESCAPE = r"\\(?:[\"\\/bfnrt]|u[0-9a-fA-F]{4})"
_STRING = rf'"(?:[^"\\\x00-\x1f]++|{_ESCAPE})*+'
_NUMBER = r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
_TOKEN = re.compile(rf'{_WHITE}(?:([{{}}\[\],:])|({_STRING}")|(?:{_NUMBER}(?![.eE0-9])|true|false|null))')
# A brace in prose or TeX is followed by something else; so are all but the last of a million braces.
_START = re.compile(rf'\{{(?={_WHITE}(?:["}}]|\Z))')
# What is left of a text that ends inside a token.
_CUT_TOKEN = re.compile(
    rf"{_WHITE}(?:{_STRING}(?:\\(?:u[0-9a-fA-F]{{0,3}})?)?|-|t|tr|tru|f|fa|fal|fals|n|nu|nul|"
    r"-?(?:0|[1-9][0-9]*+)(?:\.|(?:\.[0-9]++)?[eE][+-]?)?)?\Z"
)
_SINGLE_QUOTED = re.compile(r"\{\s*+'")
_FAULTS = [
    (re.compile(rf"{_WHITE}-?(?:NaN|Infinity)"), "not_a_number: NaN and Infinity are not JSON"),
    (re.compile(rf"{_WHITE}'"), "single_quotes: JSON's strings stand in double quotes"),
    (re.compile(rf"{_WHITE}(?://|/\*|#)"), "comment: JSON has no comments"),
    (re.compile(rf"{_WHITE}{_STRING}[\x00-\x1f]"), "control_character: a raw line break or control character"),
    (re.compile(rf"{_WHITE}{_STRING}\\"), "bad_escape: an escape that JSON does not have"),
]


def _find_objects(text: str) -> tuple[list[tuple[int, int, bool]], bool, str]:
    """The outermost complete objects as (start, end, too deep to read), whether the text ends inside one, and why the
    first attempt at an object failed.

    After a failure the search goes on at the character that did not fit or, when a string stood before it, inside that
    string: its opening quote may have been prose. So may the quote of a first key that never ends (`use {" as opener`).
    A string can be entered so only once, at its closing quote or the text's end, so every character is looked at a
    bounded number of times.
    """
    spans: list[tuple[int, int, bool]] = []
    unfinished, fault = False, ""
    position = 0
    while found := _START.search(text, position):
        done, position, failed = _walk(text, found.start())
        spans += done
        unfinished = unfinished or failed is None
        fault = fault or failed or ""
    return spans, unfinished, fault


def _walk(text: str, start: int) -> tuple[list[tuple[int, int, bool]], int, str | None]:
    """Read one object by JSON's grammar: what is complete in it, where to go on, and what is wrong.

    The last is "" for a complete object and None when the text ends inside it.
    """
    done: list[tuple[int, int, bool]] = []
    opened = [start]  # for an object where it starts, for a list -1
    deepest = 1
    position = start + 1
    expected = "key or }"
    string_at = -1
    while True:
        token = _TOKEN.match(text, position)
        if token is None:
            if _CUT_TOKEN.match(text, position):
                return [], position + 1 if position == start + 1 else len(text), None
            break
        mark, string = token.group(1), token.group(2) is not None
        if expected[0] == "k":
            if string:
                expected = "colon"
            elif mark != "}" or expected == "key":
                break
        elif expected == "colon":
            if mark != ":":
                break
            expected = "value"
        elif expected[0] == "v":
            if mark is None:
                expected = "comma"
            elif mark in "{[":
                opened.append(token.end() - 1 if mark == "{" else -1)
                deepest = max(deepest, len(opened))
                expected = "key or }" if mark == "{" else "value or ]"
            elif mark != "]" or expected == "value":
                break
        elif mark == ",":
            expected = "value" if opened[-1] < 0 else "key"
        elif mark is None or mark not in "}]" or (mark == "]") != (opened[-1] < 0):
            break
        position = token.end()
        string_at = token.start(2)  # -1 unless the token is a string
        if mark is not None and mark in "}]":
            begin = opened.pop()
            if begin >= 0:
                while done and done[-1][0] > begin:
                    done.pop()
                done.append((begin, position, deepest > MAX_DEPTH))
            if not opened:
                return done, position, ""
            expected = "comma"
    resume = string_at + 1 if string_at >= 0 else position
    return done, resume, _fault(text, position, expected)


def _fault(text: str, position: int, expected: str) -> str:
    for pattern, reason in _FAULTS:
        if pattern.match(text, position):
            return reason
    token = _TOKEN.match(text, position)
    if text[position - 1] == "," and token is not None and token.group(1) in ("}", "]"):
        return "trailing_comma: a comma before the closing bracket"
    return f"syntax: expected {expected.replace('comma', 'comma or end')} at character {position}"
