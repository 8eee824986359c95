"""Kill the trainer at every step and at every moment of one, go on, and hold each step against an uninterrupted run.

    python tests/drills/kill_trainer.py --out DIR [--steps 54] [--ranks 1 2] [--kinds mid boundary save]

A case is one kill: (kind, ranks, step). The run it hits goes on from its last whole checkpoint, is killed at the
next step, and so on to its end. Every step that was ever taken, replayed ones included, must leave bit for bit the
weights and completions of the uninterrupted run, and so must the final model. Started again with the same DIR it
continues where it stopped. Exit code 1 when anything differed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "training")]

import tiny  # noqa: E402
import warm  # noqa: E402

EPOCH = {1: 6, 2: 3}  # steps of one epoch: twelve rows, two prompts for each rank and step
SAVE_STEPS = 2


def moments(kind: str, step: int, ranks: int) -> tuple[str, int] | None:
    """When the kill of `kind` at `step` happens; None where that step has no such moment."""
    if kind == "mid":
        return None if step % EPOCH[ranks] == 0 else (warm.TRAINING[step % len(warm.TRAINING)], step)
    if kind == "boundary":
        if step % EPOCH[ranks] > 1:
            return None
        return (("generating" if step % EPOCH[ranks] else "step_end"), step)
    return (warm.SAVING[step // SAVE_STEPS % len(warm.SAVING)], step) if step % SAVE_STEPS == 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=54, help="optimizer steps of the run")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kinds", nargs="+", default=["mid", "boundary", "save"])
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    warm.preload()
    apart(lambda: tiny.model(out / "model"), out / "model")
    apart(lambda: tiny.dataset(out / "data", 12), out / "data")
    bad = sum(chain(out, kind, ranks, asked.steps) for ranks in asked.ranks for kind in asked.kinds)
    return 1 if bad else 0


def chain(out: Path, kind: str, ranks: int, steps: int) -> int:
    """All kills of one kind on one run; returns how many steps or cases differed."""
    expected, final = uninterrupted(out, ranks, steps)
    place = out / f"{kind}-{ranks}-{steps}"
    place.mkdir(exist_ok=True)
    results, journal, log = place / "results.jsonl", place / "journal.jsonl", place / "log"
    done = {json.loads(text)["step"] for text in results.read_text().splitlines()} if results.is_file() else set()
    argv = arguments(out, place / "run", steps)
    began = time.monotonic()
    for step in range(1, steps + 1):
        kill = moments(kind, step, ranks)
        if kill is None or step in done:
            continue
        victim = 0 if "seal" in kill[0] else step // SAVE_STEPS % ranks  # only the first rank seals
        codes = warm.run(argv, log, ranks, kill, victim, journal)
        record(results, {"step": step, "moment": kill[0], "codes": codes})
    if not (place / "run" / "training.json").is_file():
        codes = warm.run(argv, log, ranks, journal=journal)
        record(results, {"step": 0, "moment": "none", "codes": codes})
    cases = [json.loads(text) for text in results.read_text().splitlines()]
    missed = [case["step"] for case in cases if case["step"] and -9 not in case["codes"]]
    seen = warm.lines(journal)
    wrong = sorted(key for key, digests in seen.items() if digests != expected.get(key))
    absent = sorted(expected.keys() - seen.keys())
    same = weights(place / "run") == final
    kills = len([case for case in cases if case["step"]])
    taken = sum(1 for _ in journal.open()) // ranks
    print(
        f"{kind:8} {ranks} rank(s): {kills} kills, {len(missed)} that did not hit, {taken} steps taken for {steps}, "
        f"{len(wrong) + len(absent)} differ, final weights {'equal' if same else 'DIFFER'}, "
        f"{time.monotonic() - began:.0f} s now",
        flush=True,
    )
    return len(missed) + len(wrong) + len(absent) + (not same)


def uninterrupted(out: Path, ranks: int, steps: int) -> tuple[dict[tuple[int, int], set[tuple[str, str]]], str]:
    place = out / f"uninterrupted-{ranks}-{steps}"
    if not (place / "run" / "training.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        codes = warm.run(arguments(out, place / "run", steps), place / "log", ranks, journal=place / "journal.jsonl")
        if any(codes):
            raise SystemExit(f"the uninterrupted run failed with {codes}: see {place / 'log'}")
    return warm.lines(place / "journal.jsonl"), weights(place / "run")


def arguments(out: Path, run: Path, steps: int) -> list[str]:
    more = ["--max_steps", str(steps), "--save_steps", str(SAVE_STEPS), "--save_total_limit", "2"]
    return warm.options(out / "model", out / "data", run, *more, "--resume_from_checkpoint", "true")


def weights(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def record(results: Path, case: dict[str, object]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(case) + "\n")


def apart(build: object, folder: Path) -> None:
    """Build in a child, since what was computed here would start threads that a fork cannot take along."""
    if folder.exists():
        return
    if not (pid := os.fork()):
        build()  # type: ignore[operator]
        os._exit(0)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main())
