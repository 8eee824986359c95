"""Does GRPO teach better answers, or only the form of an answer? Three seeds, two arms, one look at the test split.

    make prove-learning        # or: OMP_NUM_THREADS=1 python tests/benchmarks/prove_learning.py

The recipe is prove_learning.yaml; its base is the quickstart's `room-to-rise`, which calls some colours and one shape
by another's name. Every seed has a base of its own and two trainings from it:

- format + accuracy: nothing that is paid for tells the model a fact beyond right or wrong;
- format + accuracy + reasoning: the reference steps name what is in the picture, so this arm is told more.

Each base and each finished model is asked the test questions once, when all trainings have ended, and every one is
in the table. Pieces run two at a time, one thread each; what is finished stays, and the same command goes on from it.
`--split validation` asks held-out training pictures instead: that is what a recipe may be chosen by.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqa_grpo import steps
from vqa_grpo.contract.completion import Outcome
from vqa_grpo.contract.failure import StepError
from vqa_grpo.contract.layout import key_of, step_uri
from vqa_grpo.evaluation.compare import TypeGain, compare, paired_interval
from vqa_grpo.evaluation.score import blind_level, read_predictions
from vqa_grpo.quickstart.facts import ANSWERS, KINDS
from vqa_grpo.report import progress

CONFIG = Path(__file__).with_suffix(".yaml")
SEEDS = (0, 1, 2)
ARMS = {"accuracy": ("format", "accuracy"), "reasoning": ("format", "accuracy", "reasoning")}
# Questions of each kind. Three in four of the data set's are yes/no, and there the commonest answer alone is right four
# times in five: training takes fewer of them, and as many with yes as with no, so that it does not pay.
SHARES = {
    "train": {"color": 1200, "shape": 1200, "yes-no": 600, "yes-no-negated": 600},
    "validation": dict.fromkeys(KINDS, 450),
    "test": dict.fromkeys(KINDS, 1000),
}
SEEN = ("color", "shape")  # the kinds that the target is about
RISE = 0.10
AT_ONCE = 2
SHOWN_SECONDS = 30.0
# CPU-seconds that a piece takes, roughly: for the time left, nothing else.
COSTS = {"data": 15, "base": 225, "train": 145, "read": 20}
# Where a task that a piece reports stands in it: start and width.
TASKS = {"prepare vision": (0.0, 0.55), "prepare captions": (0.55, 0.07), "prepare answers": (0.62, 0.38)}
NOTES = """Per kind of question. Blind: always the commonest training answer to the same question text. Form: answers
that are the asked-for JSON object. Strict: right and readable; its gain is split into what comes from form and what
from answers (per question asked). Given form: right among well-formed answers; the gain there is paired, over the n
questions that base and tuned model both answered in form. Leniently: the last answer word, in whatever form. Gains are
in points with paired bootstrap 95 % intervals over questions; among 24 of them one or so misses by chance."""


# --- numbers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """How often a well-formed answer is right. `base` and `tuned` are rates over each model's own well-formed answers;
    `gain` is the paired difference over the questions that both answered in form, so that none of it is from form."""

    base: float | None
    tuned: float | None
    both: int
    gain: float | None
    gain_ci: list[float] | None


@dataclass(frozen=True)
class Line:
    """One kind of question before and after one training: rates, and the gain taken apart."""

    n: int
    blind: float
    format_base: float
    format_tuned: float
    strict: TypeGain
    given: Given
    lenient_base: float
    lenient_tuned: float
    lenient_ci: list[float] | None


def lenient(completion: str) -> str | None:
    """The last word of the completion that could be an answer, in whatever form it is said.

    >>> lenient("The image shows a red circle. So it is red."), lenient('{"answer": "no"}'), lenient("Well.")
    ('red', 'no', None)
    """
    words = [word for word in re.findall(r"[a-z]+", completion.lower()) if word in ANSWERS]
    return words[-1] if words else None


def given_format(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Given:
    """From (base row, tuned row) of the same questions, as prediction files have them."""
    base, tuned = ([pair[side]["correct"] for pair in pairs if _in_form(pair[side])] for side in (0, 1))
    both = [(b["correct"], t["correct"]) for b, t in pairs if _in_form(b) and _in_form(t)]
    won, lost = both.count((False, True)), both.count((True, False))
    gain = (won - lost) / len(both) if both else None
    return Given(_mean(base), _mean(tuned), len(both), gain, paired_interval(won, lost, len(both)))


def lines(base: Path, tuned: Path, blind: Mapping[str, float]) -> dict[str, Line]:
    """A line for each kind of question, from two prediction files."""
    columns = ["id", "type", "gold", "completion", "outcome", "correct"]
    after = {row["id"]: row for row in read_predictions(tuned, columns)}
    pairs = defaultdict(list)
    for row in read_predictions(base, columns):
        pairs[row["type"]].append((row, after[row["id"]]))
    strict = compare(base, tuned).by_type
    return {kind: _line(pairs[kind], strict[kind], blind[kind]) for kind in KINDS}


def _line(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], strict: TypeGain, blind: float) -> Line:
    said = [tuple(lenient(row["completion"]) == row["gold"] for row in pair) for pair in pairs]
    return Line(
        n=len(pairs),
        blind=blind,
        format_base=_rate([_in_form(b) for b, _ in pairs]),
        format_tuned=_rate([_in_form(t) for _, t in pairs]),
        strict=strict,
        given=given_format(pairs),
        lenient_base=_rate([b for b, _ in said]),
        lenient_tuned=_rate([t for _, t in said]),
        lenient_ci=paired_interval(said.count((False, True)), said.count((True, False)), len(said)),
    )


def _in_form(row: Mapping[str, Any]) -> bool:
    return bool(row["outcome"] == Outcome.VALID)


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _rate(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


# --- the verdict, in words --------------------------------------------------------------------------------------

Results = Mapping[int, Mapping[str, Line]]  # seed → kind → line


def verdict(arm: str, results: Results) -> tuple[bool, str]:
    """Whether an arm met the target: given format, a colour or a shape is named right more often by `RISE` on two
    seeds or more, and no kind of question has fallen on any seed by an interval that lies wholly below zero."""
    risen = {kind: [s for s, by_kind in results.items() if (by_kind[kind].given.gain or 0) >= RISE] for kind in SEEN}
    fallen = [
        f"{kind} on seed {seed} ({points(line.given.gain, line.given.gain_ci)})"
        for seed, by_kind in results.items()
        for kind, line in by_kind.items()
        if line.given.gain_ci and line.given.gain_ci[1] < 0
    ]
    met = any(len(seeds) >= 2 for seeds in risen.values()) and not fallen
    rises = ", ".join(f"{kind} on {len(seeds)} of {len(results)} seeds" for kind, seeds in risen.items())
    falls = f"fell beyond noise: {'; '.join(fallen)}" if fallen else "no kind of question fell beyond noise"
    rewards = " + ".join(ARMS[arm])
    outcome = "target met" if met else "target NOT met"
    return met, f"{rewards}: {outcome}. A rise of {100 * RISE:.0f} points or more: {rises}; {falls}."


def table(results: Mapping[str, Results]) -> str:
    """All arms, seeds and kinds of question as one Markdown table."""
    head = (
        "| rewards | seed | questions | n | blind | form | right (strict) | gain | of it form | of it answers "
        "| right, given form | gain given form, on n questions | right, leniently | gain |"
    )
    rows = [head, "|:--|--:|:--|" + "--:|" * 11]
    for arm, seeds in results.items():
        for seed, by_kind in seeds.items():
            rows += [_row(" + ".join(ARMS[arm]), seed, kind, line) for kind, line in by_kind.items()]
    return "\n".join(rows)


def _row(arm: str, seed: int, kind: str, line: Line) -> str:
    strict, given = line.strict, line.given
    before = (strict.both_right + strict.base_only) / line.n
    after = (strict.both_right + strict.tuned_only) / line.n
    cells = [
        arm,
        str(seed),
        kind,
        str(line.n),
        percent(line.blind),
        f"{percent(line.format_base)} → {percent(line.format_tuned)}",
        f"{percent(before)} → {percent(after)}",
        points(strict.gain, strict.gain_ci),
        points(strict.from_format),
        points(strict.from_answers),
        f"{percent(given.base)} → {percent(given.tuned)}",
        f"{points(given.gain, given.gain_ci)}, {given.both}",
        f"{percent(line.lenient_base)} → {percent(line.lenient_tuned)}",
        points(line.lenient_tuned - line.lenient_base, line.lenient_ci),
    ]
    return f"| {' | '.join(cells)} |"


def percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f}"


def points(gain: float | None, interval: Sequence[float] | None = None) -> str:
    """
    >>> points(0.125, [0.1, 0.15]), points(None)
    ('+12.5 [+10.0, +15.0]', '–')
    """
    if gain is None:
        return "–"
    return f"{100 * gain:+.1f}" + (f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]" if interval else "")


# --- the pieces, each in a process of its own -------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """Where everything lies and what it is called; `out` is runs/prove-learning, with storage of its own in it."""

    out: Path
    split: str

    def resolved(self, seed: int, arm: str = "accuracy") -> steps.Resolved:
        """One training's configuration and place. The split is left out: the same models answer either of them."""
        settings = [f"seed={seed}", f"rewards.functions=[{', '.join(ARMS[arm])}]"]
        return steps.resolve(str(CONFIG), settings, str(self.out / "store"))

    def converted(self) -> steps.Converted:
        run = self.resolved(0)
        report = steps.validate_dataset(run.data_config, run.checks, run.fingerprint, run.root, run.code)
        return steps.convert_dataset(run.data_config, run.fingerprint, run.root, run.code, report.report_uri)

    def questions(self) -> str:
        """The URI of the questions that are trained on and asked, by kind as `SHARES` says."""
        from vqa_grpo.steps.shared import once

        whole = self.converted()
        uri = step_uri(self.resolved(0).root, "questions-" + key_of(whole.digest, SHARES), "data")
        once("questions", uri, lambda folder: choose(whole.dataset_uri, folder))
        return uri

    def base(self, seed: int) -> str:
        run = self.resolved(seed)
        return steps.prepare_model(run.config, self.converted().dataset_uri, run.root).base

    def tuned(self, seed: int, arm: str) -> str:
        run = self.resolved(seed, arm)
        base = self.base(seed)
        return steps.train_model(run.config, run.run_id, run.root, self.questions(), base).model_uri

    def answers(self, seed: int, arm: str) -> Path:
        """The file with a model's answers to the questions of the split: asked once, and never again.

        Its name is made from everything that decides them; `base` for an arm is the base model itself.
        """
        from vqa_grpo.evaluation.ask import predict_to
        from vqa_grpo.steps.shared import dataset_folder

        run = self.resolved(seed, "accuracy" if arm == "base" else arm)
        key = key_of(run.run_id, SHARES)
        out = self.out / f"answers-{self.split}" / f"{arm}-{seed}-{key}.parquet"
        if not out.exists():
            model = self.base(seed) if arm == "base" else self.tuned(seed, arm)
            config = steps.checked(run.config, [f"evaluate.split={self.split}"])
            predict_to(config, model, dataset_folder(self.questions()), out, f"ask {arm} {seed}")
        return out


def choose(dataset_uri: str, folder: Path) -> dict[str, Any]:
    """Write the questions that `SHARES` asks for, always the same ones; only answers of training rows are looked at."""
    import datasets

    from vqa_grpo.evaluation.predict import question_type, sample_rows
    from vqa_grpo.steps.shared import dataset_folder

    chosen = {}
    for split, shares in SHARES.items():
        rows = datasets.load_from_disk(str(dataset_folder(dataset_uri) / split))
        of_kind = defaultdict(list)
        for index, source in enumerate(rows["source"]):
            of_kind[question_type(source, "")].append(index)
        parts = []
        for kind, count in shares.items():
            asked = rows.select(of_kind[kind])
            if split == "train" and kind not in SEEN:
                answers = asked["answer"]
                for word in ("yes", "no"):
                    same = asked.select([index for index, answer in enumerate(answers) if answer == word])
                    parts.append(sample_rows(same, count // 2, seed=0))
            else:
                parts.append(sample_rows(asked, count, seed=0))
        chosen[split] = datasets.concatenate_datasets(parts).flatten_indices()
    datasets.DatasetDict(chosen).save_to_disk(str(folder))
    return {"rows": {split: len(rows) for split, rows in chosen.items()}, "shares": SHARES}


def run_piece(study: Study, name: str) -> None:
    """Do one piece; whatever is there already is left as it is."""
    kind, *rest = name.split()
    if kind == "data":
        study.questions()
    elif kind == "base":
        study.base(int(rest[0]))
    elif kind == "train":
        study.tuned(int(rest[1]), rest[0])
    else:
        study.answers(int(rest[1]), rest[0])


def pieces() -> dict[str, list[str]]:
    """Every piece, and what must be finished before it. Nothing reads the test split before all trainings are over."""
    made: dict[str, list[str]] = {"data": []}
    made |= {f"base {seed}": ["data"] for seed in SEEDS}
    trainings = {f"train {arm} {seed}": [f"base {seed}"] for seed in SEEDS for arm in ARMS}
    made |= trainings
    return made | {f"read {arm} {seed}": list(trainings) for seed in SEEDS for arm in ("base", *ARMS)}


# --- two at a time ----------------------------------------------------------------------------------------------


class Ledger:
    """What is finished and what it cost, in a file that only the same recipe, code and questions find again."""

    def __init__(self, study: Study) -> None:
        runs = [study.resolved(seed, arm).run_id for seed in SEEDS for arm in ARMS]
        self.path = study.out / f"pieces-{key_of(runs, SHARES, study.split)}.json"
        self.pieces: dict[str, dict[str, Any]] = {}
        self.wall_seconds = 0.0
        if self.path.exists():
            before = json.loads(self.path.read_text(encoding="utf-8"))
            self.pieces, self.wall_seconds = before["pieces"], before["wall_seconds"]
        self._wall, self._cpu = time.monotonic(), children()

    def add(self, name: str, finished: bool, seconds: float) -> None:
        """Take in a piece whose process has just ended. One that was stopped and went on costs both times."""
        wall, cpu = time.monotonic(), children()
        before = self.pieces.get(name, {"seconds": 0.0, "cpu_seconds": 0.0})
        self.pieces[name] = {
            "finished": finished,
            "seconds": round(before["seconds"] + seconds, 1),
            "cpu_seconds": round(before["cpu_seconds"] + cpu - self._cpu, 1),
        }
        self.wall_seconds = round(self.wall_seconds + wall - self._wall, 1)
        self._wall, self._cpu = wall, cpu
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"wall_seconds": self.wall_seconds, "pieces": self.pieces}, indent=1), "utf-8")
        part.replace(self.path)

    def finished(self) -> set[str]:
        return {name for name, piece in self.pieces.items() if piece["finished"]}

    def cpu_seconds(self) -> float:
        return sum(piece["cpu_seconds"] for piece in self.pieces.values())


def children() -> float:
    """CPU-seconds of all processes below this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Running:
    """A piece in a process of its own, its log, and how far it is."""

    def __init__(self, name: str, study: Study) -> None:
        self.name, self.share, self.began = name, 0.0, time.monotonic()
        self.log = study.out / "logs" / f"{name.replace(' ', '-')}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--out", str(study.out), "--split", study.split, "--piece", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment(study),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self.log.open("a", encoding="utf-8") as log:
            for line in self._process.stdout:
                if report := progress.read(line):
                    start, width = TASKS.get(report["task"], (0.0, 1.0))
                    self.share = start + width * report["done"] / max(1, report["total"])
                else:
                    log.write(line)
                    log.flush()

    def over(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> int:
        self._reader.join()
        return int(self._process.wait())

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def environment(study: Study) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": "1",
        "VQA_GRPO_WORK": str(study.out / "work"),
        "VQA_GRPO_CACHE": str(study.out / "cache"),
        "VQA_GRPO_PROGRESS": "lines",
        "MLFLOW_TRACKING_URI": "",
    }


def run_all(study: Study, ledger: Ledger) -> None:
    """Run what is not finished, `AT_ONCE` pieces at a time. SystemExit with the log's end where one fails."""
    done = ledger.finished()
    waiting = {name: needs for name, needs in pieces().items() if name not in done}
    everything, work, worked = len(pieces()), sum(map(cost, waiting)), 0.0
    running: list[Running] = []
    began = shown = time.monotonic()
    try:
        while waiting or running:
            ready = [name for name, needs in waiting.items() if done.issuperset(needs)]
            for name in ready[: AT_ONCE - len(running)]:
                del waiting[name]
                running.append(Running(name, study))
            time.sleep(0.2)
            for piece in [*running]:
                if piece.over():
                    running.remove(piece)
                    settle(ledger, piece)
                    done.add(piece.name)
                    worked += cost(piece.name)
            if time.monotonic() - shown > SHOWN_SECONDS:
                shown = time.monotonic()
                so_far = worked + sum(cost(piece.name) * piece.share for piece in running)
                left = f"about {(work - so_far) * (shown - began) / so_far / 60:.0f} min left" if so_far else ""
                where = [f"{piece.name} {100 * piece.share:.0f} %" for piece in running]
                say("; ".join([f"{len(done)} of {everything} pieces", *where, left]))
    finally:
        for piece in running:
            piece.stop()
            ledger.add(piece.name, False, time.monotonic() - piece.began)


def settle(ledger: Ledger, piece: Running) -> None:
    code, seconds = piece.result(), time.monotonic() - piece.began
    ledger.add(piece.name, code == 0, seconds)
    if code:
        end = "".join(piece.log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        raise SystemExit(f"error: {piece.name} failed with {code}; log: {piece.log}\n{end}")
    say(f"{piece.name}: finished, {seconds:.0f} s")


def cost(name: str) -> float:
    return COSTS[name.split()[0]]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# --- all of it --------------------------------------------------------------------------------------------------


def collect(study: Study) -> dict[str, dict[int, dict[str, Line]]]:
    """Arm → seed → kind of question → line, from the answers of all models."""
    import datasets

    from vqa_grpo.steps.shared import dataset_folder

    train = datasets.load_from_disk(str(dataset_folder(study.converted().dataset_uri) / "train"))
    asked = datasets.load_from_disk(str(dataset_folder(study.questions()) / study.split))
    blind = blind_level(train, asked).by_type
    return {
        arm: {seed: lines(study.answers(seed, "base"), study.answers(seed, arm), blind) for seed in SEEDS}
        for arm in ARMS
    }


def write(study: Study, ledger: Ledger, results: Mapping[str, Results]) -> str:
    """table.md and table.json; returns the text of the first."""
    verdicts = {arm: verdict(arm, seeds) for arm, seeds in results.items()}
    minutes, cpu = ledger.wall_seconds / 60, ledger.cpu_seconds()
    text = "\n".join(
        [
            f"# Learning, on the {study.split} split",
            "",
            *(f"- {sentence}" for _, sentence in verdicts.values()),
            f"- {minutes:.1f} minutes and {cpu:.0f} CPU-seconds in all, {AT_ONCE} processes of one thread at a time",
            "",
            table(results),
            "",
            NOTES,
        ]
    )
    facts = {
        "split": study.split,
        "wall_seconds": ledger.wall_seconds,
        "cpu_seconds": cpu,
        "pieces": ledger.pieces,
        "recipe": json.loads(study.resolved(0).config),
        "code": study.resolved(0).code,
        "verdicts": {arm: {"met": met, "sentence": sentence} for arm, (met, sentence) in verdicts.items()},
        "results": {
            arm: {str(seed): {kind: asdict(line) for kind, line in by_kind.items()} for seed, by_kind in seeds.items()}
            for arm, seeds in results.items()
        },
    }
    name = "table" if study.split == "test" else f"table-{study.split}"
    (study.out / f"{name}.md").write_text(text, encoding="utf-8")
    (study.out / f"{name}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/prove-learning"), help="where everything is kept")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--piece", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    study = Study(arguments.out.absolute(), arguments.split)
    os.environ.update(environment(study))
    if arguments.piece:
        return run_piece(study, arguments.piece)
    os.environ["VQA_GRPO_PROGRESS"] = "quiet"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    study.out.mkdir(parents=True, exist_ok=True)
    try:
        ledger = Ledger(study)
        run_all(study, ledger)
        print(write(study, ledger, collect(study)))
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
    except StepError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
