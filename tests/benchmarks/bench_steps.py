"""What a round of reasoning rewards costs: one call for the round against one encoding for each sentence.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_steps.py [--json]

A GRPO round as training sees it: 8 prompts with 8 completions each, 5 steps a completion, and as many references a
prompt as steps, or 12 as in the published test set (11.6 on average). Completions of one group repeat each other
(`--repeat`, a share) and steps have 10 to 20 tokens. The per-sentence way is
what a plain matcher does: for each completion, encode each of its steps and each reference. Both run in this process,
on as many threads as OMP_NUM_THREADS says; times are CPU seconds of the whole process. The vectors of both ways are
compared before anything is reported.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vqa_grpo.scoring.steps import match_many
from vqa_grpo.scoring.steps.encoder import SentenceEncoder

THINGS = "phone logo bar chart label axis text sign year column row car person table screen street dog window"
DOES = "shows reads displays indicates follows touches covers carries precedes supports"
WHERE = ["near the {}", "beside the {} of the first floor", "and the {}", "with a small {} behind it"]


def sentence(source: random.Random) -> str:
    first, second, third = source.choices(THINGS.split(), k=3)
    return f"The {first} {source.choice(DOES.split())} the {second} {source.choice(WHERE).format(third)}."


def a_round(source: random.Random, repeat: float, count: int) -> list[tuple[list[str], list[str], str]]:
    items = []
    for _ in range(8):
        references = [sentence(source) for _ in range(count)]
        # What the group agrees on: some of it right.
        pool = references[:2] + [sentence(source) for _ in range(4)]
        for _ in range(8):
            steps = [source.choice(pool) if source.random() < repeat else sentence(source) for _ in range(5)]
            items.append((steps, references, "What does the picture show?"))
    return items


def cpu(do: Callable[[], Any]) -> float:
    start = time.process_time()
    do()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=float, nargs="*", default=[0.0, 0.4, 0.7])
    parser.add_argument("--references", type=int, nargs="*", default=[5, 12])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    warm = SentenceEncoder()
    warm.encode(["warm up"])
    plain = warm._model
    lines = []
    for count, repeat in itertools.product(arguments.references, arguments.repeat):
        rounds = [a_round(random.Random(seed), repeat, count) for seed in range(arguments.rounds)]
        batched, cached = [], []
        for items in rounds:
            encoder = SentenceEncoder()
            encoder._model = plain
            batched.append(cpu(lambda items=items, encoder=encoder: match_many(items, encoder=encoder)))
            # The second epoch: other completions, the same references.
            again = [
                (a_round(random.Random(99), repeat, count)[i][0], item[1], item[2]) for i, item in enumerate(items)
            ]
            cached.append(cpu(lambda again=again, encoder=encoder: match_many(again, encoder=encoder)))
        texts = [text for steps, references, _ in rounds[0] for text in (*steps, *references)]
        start = time.process_time()
        found = [plain.encode(text, show_progress_bar=False) for text in texts]
        single = time.process_time() - start
        fresh = SentenceEncoder()
        fresh._model = plain
        difference = float(np.abs(np.stack(found) - fresh.encode(texts)).max())
        lines.append(
            {
                "references": count,
                "repeat": repeat,
                "sentences": len(texts),
                "distinct": len(set(texts)),
                "per_sentence_s": round(single, 3),
                "round_s": round(min(batched), 3),
                "round_references_cached_s": round(min(cached), 3),
                "times": round(single / min(batched), 1),
                "times_references_cached": round(single / min(cached), 1),
                "largest_difference": difference,
            }
        )
    for line in lines:
        print(json.dumps(line) if arguments.json else "  ".join(f"{key} {value}" for key, value in line.items()))


if __name__ == "__main__":
    main()
