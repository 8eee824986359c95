"""The full fuzz of parse → grade → format: `python tests/benchmarks/fuzz_grading.py --completions 1000000`.

Completions are made from valid ones by mutation, from JSON's own pieces, from hostile material and from random
characters; gold answers and options are drawn from every type. Prints one JSON line and exits 1 if anything raised, a
reward left [0, 1], or a limit was broken: p99.9 5 ms, memory growth 50 MB. Times are the thread's own (`wall` is beside
them): on a busy machine the wall clock counts the other programs too.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time

import psutil

from vqa_grpo.contract.completion import Outcome, parse
from vqa_grpo.scoring.answer import grade, type_of

_GOLDS = """
red;nokia;5 cm;5'10";1,000;1/2;50%;$5;€12.50;3 dogs;twenty-one thousand;2010;3.14;1e300;-7;20 °C;9.8 m/s²;1 h 30 min
10:30;10:30 PM;March 5, 2010;5/3/2010;2010-03-05;Monday;yes;no;true;B;(C);B) 2010;insufficient information;red, blue
1, 2 and 3;['a','b'];a -> b -> c;3-4;C++;U.S.A.;...;the;A;一二三;½;10³;007;1st;second;half;a dozen;١٢;STRASSE;\ud800
"""
GOLDS = [*_GOLDS.strip().replace("\n", ";").split(";"), "", " ", "1" * 50, "a, " * 40]
OPTIONS = [["2003", "2010"], ["A) red", "B) blue"], ["B", "A"], ["x", "x"], ["1,000", "1000", "5 cm"], ["", " "]]
OPTIONS += [["red", "insufficient information"], [str(i) for i in range(30)]]
PIECES = [*'{}[]",:\\', '{"', '":', '"reasoning_steps":', '"answer":', "null", "NaN", "-Infinity", "1e999", "9" * 5000]
PIECES += ["\\u0000", "\\ud800", "\ud800", "\u202e", "```json", "```", "{'a': 'b'}", "// x", "\n", "true", "0.1", "01"]
PIECES += ["[" * 200, '{"a":' * 100, "{" * 2000, "\\" * 999, '"' * 500, " " * 3000, "ﷺ" * 50, "½", "10^9", "9**9**9**9"]
ANSWERS = ["9**9**9", "1e999999", "1" * 400, "(" * 400, "a " * 200, "one " * 90, "5 m/" * 60, "1,000" * 40, "and " * 90]
ANSWERS += ["5 kg m^-3", "5 °C/s", "five hundred thousand million", "A) B) C)", "A or B", "1/0", "10:99", "99/99/9999"]
ANSWERS += ["$" * 60, "-" * 300, "1" + " 000" * 60, "['" * 90, "the answer is " * 20, "*" * 301, "'" * 200, "5'" * 30]


def completion(rng: random.Random, gold: str) -> str:
    kind = rng.random()
    if kind < 0.15:
        return "".join(rng.choice(PIECES) for _ in range(rng.randrange(25)))
    if kind < 0.25:
        return "".join(chr(rng.randrange(rng.choice((128, 0x800, 0x11000)))) for _ in range(rng.randrange(200)))
    answer = rng.choice((gold, rng.choice(GOLDS), rng.choice(ANSWERS), mutated(rng, gold)))
    steps = [rng.choice(("A red circle.", mutated(rng, gold), "x" * rng.randrange(600)))] * rng.choice((1, 2, 5, 40))
    text = json.dumps({"reasoning_steps": steps, "answer": answer}, ensure_ascii=rng.random() < 0.5)
    if kind > 0.95:  # a further key, or one of the contract's once more
        text = text[:-1] + f', "{rng.choice(("note", "answer", "reasoning_steps"))}": {rng.choice(("1", "[]", "{}"))}}}'
    if kind < 0.35:
        text = rng.choice(("Sure: ", "```json\n", "{1} ", '{"a')) + text + rng.choice(("", "\n```", text, " ok"))
    return mutated(rng, text) if kind < 0.7 else text


def mutated(rng: random.Random, text: str) -> str:
    for _ in range(rng.randrange(4)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice((0, 0, 1, 1, 5, 100_000)))
        text = text[:start] + rng.choice(("", "", rng.choice(PIECES), rng.choice("'.,-5$%"))) + text[end:]
    return text


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    places = {"p50": len(ordered) // 2, "p999": int(len(ordered) * 0.999), "max": -1}
    return {name: round(1000 * ordered[place], 3) for name, place in places.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    for gold in GOLDS:  # load pint and fill the caches of constant size before memory is measured
        grade("5 miles", [gold])
    memory = psutil.Process().memory_info
    before = memory().rss
    outcomes: dict[str, int] = dict.fromkeys(Outcome, 0)
    durations, wall, correct, failures, outside = [], [], 0, [], 0
    begun = time.monotonic()
    for _ in range(given.completions):
        gold = rng.choice(GOLDS)
        options = rng.choice(OPTIONS) if rng.random() < 0.2 else []
        text = completion(rng, gold)
        start = time.perf_counter(), time.thread_time()
        try:
            parsed = parse(text)
            verdict = grade(parsed.answer if rng.random() < 0.8 else text[:5000], [gold, "red"], options)
            reward = parsed.format_reward
            wall.append(time.perf_counter() - start[0])
            durations.append(time.thread_time() - start[1])
            outside += not all(math.isfinite(value) and 0 <= value <= 1 for value in (reward, verdict.reward))
            outside += verdict.gold_type != type_of(gold, options)
            outcomes[parsed.outcome] += 1
            correct += verdict.correct
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error} for {ascii(text)[:300]} gold {gold!a}")
    grown = (memory().rss - before - 2 * (8 + 24) * len(durations)) / 2**20  # without this program's own lists of times
    at = quantiles(durations)
    report = {
        "completions": given.completions,
        "exceptions": len(failures),
        "rewards_outside": outside,
        "milliseconds": at,
        "milliseconds_wall": quantiles(wall),
        "memory_growth_mb": round(grown, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "correct": correct,
        "outcomes": outcomes,
    }
    print(json.dumps(report))
    print("\n".join(failures[:5]), end="\n" if failures else "", file=sys.stderr)
    return int(bool(failures or outside or at["p999"] > 5 or grown > 50))


if __name__ == "__main__":
    sys.exit(main())
