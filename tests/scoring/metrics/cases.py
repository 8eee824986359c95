"""Questions with answers for each metric: the same ones for the same seed, half of them ordinary and half nasty."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_WORDS = (
    "red blue dog dogs cat Nokia nokia phone umbrella left right man woman playing tennis yes no true false none zero "
    "one two three ten the a an A The Eiffel Tower Paris pizza don't dont cant can't couldnt've Im I'm let's yall "
    "y'all'd've oclock o'clock somebody'd shes she's St. Mr. U.S.A. Joe's McDonald's coca-cola t-shirt black/white "
    "unknown not sure incorrect correct negative affirmative yesterday insufficient information answer result about "
    "option choice is Größe naïve İstanbul 東京 ٣ ½ ² straße"
)
_NUMBERS = (
    "0 1 2 3 5 7 8 10 11 13 15 20 42 100 114 2003 2010 1990 1,000 1000 12,345.67 1,,2 0.5 .5 0.04 0.05 5. 3.14 3.142 "
    "3.1416 -3 -0.5 +7 1e3 5e3 1.5E-4 2e400 1_000 50% 0.50 12.5% $5 $5.00 5cm 5 1/2 3/4 10:30 10:45 3-4 nan inf "
    "-inf 12:05 99.9 0.0 -0 007 1.2.3 1.2.3e5 4,5 1e 3e2e1"
)
WORDS, NUMBERS = _WORDS.split(), _NUMBERS.split()
MARKS = [
    *".,;:!?'\"()[]{}/\\_-+=<>@`$%&*^~|",
    "’",
    "“",
    "…",
    "\n",
    "\t",
    "  ",
    "\u00a0",
    "\u200b",
    "\x1c",
    "\ud800",
    "",
]
LEADS = [
    "",
    "",
    "",
    "",
    "The answer is ",
    "the answer is: ",
    "Answer: ",
    "Result: about ",
    "approximately ",
    "It could be ",
    "So the final answer is ",
    "I think it is ",
    "x = ",
    "option ",
    "Choice ",
    "(",
    "not ",
]
TAILS = [
    "",
    "",
    "",
    "",
    ".",
    "!",
    " .",
    ")",
    "?",
    " cm",
    " meters",
    "%",
    " dogs",
    ", I think",
    "\nSo it is 5",
    " (B)",
    " A",
]


@dataclass(frozen=True)
class Case:
    prediction: str
    golds: list[str]
    options: list[str]


def _noise(rng: random.Random) -> str:
    pieces = [rng.choice([*WORDS, *NUMBERS, *MARKS, *MARKS]) for _ in range(rng.randint(0, 8))]
    return rng.choice(["", " "]).join(pieces)


def _number(rng: random.Random) -> str:
    return rng.choice(
        [
            lambda: rng.choice(NUMBERS),
            lambda: str(rng.randint(-20, 2100)),
            lambda: f"{rng.uniform(-20, 200):.{rng.randint(0, 4)}f}",
            lambda: f"{rng.randint(0, 10**7):,}",
            lambda: f"{rng.uniform(0, 100):.1f}%",
            lambda: f"{rng.uniform(-5, 5):.2e}",
        ]
    )()


def _phrase(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 6])))


def _text(rng: random.Random) -> str:
    return rng.choice([_phrase, _phrase, _number, _noise])(rng)


def _near(rng: random.Random, text: str) -> str:
    """The same text as somebody else would have written it, or almost the same text."""
    changes: list[Callable[[str], str]] = [
        lambda t: t,
        str.upper,
        str.title,
        lambda t: f" {t} ",
        lambda t: t.replace(" ", "  "),
        lambda t: t.replace(" ", rng.choice(MARKS)),
        lambda t: rng.choice(["a ", "the ", "two "]) + t,
        lambda t: t + rng.choice(MARKS),
        lambda t: rng.choice(MARKS) + t,
        lambda t: rng.choice(LEADS) + t + rng.choice(TAILS),
        lambda t: t[: len(t) // 2],
        lambda t: t[: (at := rng.randint(0, len(t)))] + rng.choice("abcé1.' ") + t[at:],
        lambda t: t[: (at := rng.randint(0, len(t)))] + t[at + 1 :],
        lambda t: " ".join(reversed(t.split(" "))),
        lambda t: t.replace("'", ""),
        lambda t: _nudged(rng, t),
    ]
    for _ in range(rng.choice([1, 1, 2])):
        text = rng.choice(changes)(text)
    return text


def _nudged(rng: random.Random, text: str) -> str:
    """A number a few percent off, where the metrics' tolerances lie."""
    try:
        value = float(text)
    except ValueError:
        return text
    share = rng.choice([0.0, 0.001, 0.03, 0.0499, 0.05, 0.0501, 0.09, 0.1, 0.11, 0.14, 0.15, 0.16, 1.0])
    return f"{value * (1 + rng.choice([-1, 1]) * share):.{rng.choice([0, 1, 2, 6])}f}"


def annotated(seed: int, count: int) -> list[Case]:
    """Ten people's answers, as VQAv2 and TextVQA have them."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        main = _text(rng)
        agreeing = rng.choice([10, 10, 9, 7, 5, 4, 3, 3, 2, 1])
        golds = [main] * agreeing + [rng.choice([_text, lambda r: _near(r, main)])(rng) for _ in range(10 - agreeing)]  # noqa: B023
        rng.shuffle(golds)
        made.append(Case(rng.choice([_near(rng, rng.choice(golds)), rng.choice(golds), _text(rng)]), golds, []))
    return made


def texts(seed: int, count: int) -> list[Case]:
    """One to four golds, as DocVQA, ChartQA and MathVista have them."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        golds = [rng.choice([_text, _number])(rng) for _ in range(rng.choice([1, 1, 2, 4]))]
        made.append(Case(rng.choice([_near(rng, rng.choice(golds)), _text(rng)]), golds, []))
    return made


def sentences(rng: random.Random, options: list[str]) -> str:
    letter = chr(ord("A") + rng.randrange(len(options) + 1))
    option = rng.choice(options)
    form = rng.choice(
        [
            "{letter}",
            "({letter})",
            "{letter}.",
            "{letter}) {option}",
            "{letter}. {option}",
            "{option}",
            "The answer is {letter}",
            "The correct choice must be {option} as the picture shows",
            "It is not (A) but ({letter}) I think",
            "Between {letter} and B, I would say C here",
            "NASA {letter}",
            "{noise} {letter} {noise}",
            "I do not know what this could possibly be",
            "Either {option} or something else, perhaps {other} after all",
            "'{letter}'",
            "",
        ]
    )
    return form.format(letter=letter, option=option, other=rng.choice(options), noise=_noise(rng))


def choices(seed: int, count: int) -> list[Case]:
    """Questions with two to six options; the gold is a letter, as MMMU has it."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        options = [_text(rng) for _ in range(rng.randint(2, 6))]
        gold = chr(ord("A") + rng.randrange(len(options)))
        made.append(Case(rng.choice([sentences(rng, options), _near(rng, gold)]), [gold], options))
    return made


def open_questions(seed: int, count: int) -> list[Case]:
    """MMMU's open questions: sentences that come to a value, over a line or two."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        golds = [rng.choice([_number, _number, _phrase, _text])(rng) for _ in range(rng.choice([1, 1, 2]))]
        value = rng.choice([_near(rng, rng.choice(golds)), _number(rng)])
        lines = [
            rng.choice(["It could be {}", "so x = {}", "Therefore the result is {}.", "{}", "= {} thus {}", "final {}"])
            for _ in range(rng.choice([1, 1, 2, 3]))
        ]
        made.append(Case("\n".join(line.format(value, _number(rng)) for line in lines), golds, []))
    return made


def mixed(seed: int, count: int) -> list[Case]:
    """One gold of any kind, with options or without: what the crystal reference sorts out by itself."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        options = [_text(rng).replace("\n", " ") for _ in range(rng.choice([0, 0, 0, 4]))]
        gold = rng.choice([_text, _number, lambda r: r.choice(["Yes", "no.", "'true'", "False"])])(rng)
        if options and rng.random() < 0.7:
            gold = rng.choice([chr(ord("A") + rng.randrange(len(options))), rng.choice(options)])
        told = sentences(rng, options) if options else _text(rng)
        made.append(Case(rng.choice([_near(rng, gold), _near(rng, gold), told]), [gold], options))
    return made


_EXPRESSIONS = (
    r"1/2;0.5;\frac{1}{2};$\frac{1}{2}$;50%;2/4;0.333333;1/3;x+1;1+x;x^2-1;(x-1)(x+1);2x;x*2;\sqrt{4};2;2.0;\pi;3.14159;"
    r"\boxed{7};7;(1,2);{1,2};{2,1};[1,2);x=3;3;1,000;1000;-4;12 cm;60^\circ;60;1e3;x<2;2>x;The answer is 7.;"
    r"$7$ apples;apples;;\frac{;))((;5 or 6;a;A;$x$"
)
EXPRESSIONS = _EXPRESSIONS.split(";")


def expressions(seed: int, count: int) -> list[Case]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        gold = rng.choice(
            [rng.choice(EXPRESSIONS), str(rng.randint(-9, 99)), f"{rng.randint(1, 9)}/{rng.randint(2, 9)}"]
        )
        made.append(Case(rng.choice([rng.choice(EXPRESSIONS), _nudged(rng, gold), f"${gold}$", gold]), [gold], []))
    return made


def _structure(rng: random.Random, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.4:
        return rng.choice([_phrase(rng)[:20], _number(rng), rng.randint(0, 99), None, True, ""])
    items = [_structure(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return items if rng.random() < 0.6 else dict(zip("abc", items, strict=False))


def structures(seed: int, count: int) -> list[Case]:
    """Lists and records in JSON, as document extraction has them, and answers with items lost, moved or changed."""
    rng = random.Random(seed)
    made: list[Case] = []
    while len(made) < count:
        gold = _structure(rng, 3)
        if not isinstance(gold, list | dict):
            continue
        told = json.loads(json.dumps(gold))
        if isinstance(told, list):
            rng.shuffle(told)
        if told and rng.random() < 0.5:
            told.pop(rng.choice([*told]) if isinstance(told, dict) else 0)
        told = rng.choice([told, told, told, _structure(rng, 2)])
        made.append(Case(json.dumps(told), [json.dumps(gold)], []))
    return made
