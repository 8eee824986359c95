"""One pass over a source, or over a part of it: each row looked at once, what was found written down.

Threads read the pictures, which is most of the work and lets go of the interpreter; the caller's thread reads the
source, checks the texts and writes. Results come in the source's order, and so are the same for any number of threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import IO, Any

from vqa_grpo.contract.record import Record, question_text
from vqa_grpo.data import pictures
from vqa_grpo.data.checks import Problem, chosen, storable, text_problems
from vqa_grpo.data.index import IndexWriter, RowFacts, content_digest, picture_digest
from vqa_grpo.data.pictures import Look
from vqa_grpo.data.rules import Rules
from vqa_grpo.data.samples import Candidate, Choice
from vqa_grpo.data.source import WHOLE, Part, Row, Source, Unreadable
from vqa_grpo.data.stats import Stats
from vqa_grpo.report.progress import Meter
from vqa_grpo.scoring.answer import type_of
from vqa_grpo.scoring.answer.normal import MAX_CHARACTERS, plain

INDEX, PROBLEMS, QUARANTINE = "index.parquet", "problems.jsonl", "quarantine.jsonl"
STATS, SAMPLES = "stats.json", "samples.json"
REMEMBERED = 1000  # different pictures; the questions about one mostly stand together
_UNFINISHED = ".unfinished-"
AHEAD = 4  # rows under way for each thread


def scan(source: Source, rules: Rules, folder: Path, part: Part = WHOLE, workers: int = 0) -> None:
    """Look at every row of a part and write what was found into `folder`, for `validate.conclude`.

    `index.parquet` holds the facts of each row, `problems.jsonl` every problem, `quarantine.jsonl` the unusable rows,
    `samples.json` rows to show, and `stats.json`, written last, what was counted. `workers` 0 takes one thread for
    each core.
    """
    workers = workers or os.cpu_count() or 1
    judge = PictureJudge(rules)
    with (
        whole(folder, last=STATS) as work,
        _Notes(work, rules) as notes,
        ThreadPoolExecutor(workers, "look") as pool,
        Meter("validate", _expected(source, part)) as meter,
    ):
        for split in source.rows:
            rows = source.read(split, part)
            for number, row, look in _looked_at(rows, judge.look, pool, workers * AHEAD):
                if isinstance(row, Unreadable):
                    notes.add_unreadable(split, number, row)
                else:
                    assert look is not None
                    notes.add(split, number, row, look)
                meter.advance()
        write_json(work / SAMPLES, notes.choice.samples(pool))
        made_of = {
            "source": source.name,
            "fingerprint": source.fingerprint,
            "splits": list(source.rows),
            "rules": looking(rules),
            "parts": part.count,
            "limit": part.limit,
        }
        write_json(work / STATS, {"made_of": made_of, "part": part.index, "stats": notes.stats.to_dict()})


def looking(rules: Rules) -> dict[str, Any]:
    """The rules that decide what a scan finds; thresholds are for afterwards."""
    return {
        name: value for name, value in asdict(rules).items() if name not in ("max_invalid_fraction", "max_fractions")
    }


class PictureJudge:
    """Looks at each different picture once, by content: questions about one picture share the verdict."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._seen: OrderedDict[bytes, Future[Look]] = OrderedDict()
        self._lock = Lock()

    def look(self, data: bytes) -> Look:
        digest = picture_digest(data)
        with self._lock:
            known = self._seen.get(digest)
            if known is None:
                own = self._seen[digest] = Future()
                if len(self._seen) > REMEMBERED:
                    self._seen.popitem(last=False)
            else:
                self._seen.move_to_end(digest)
        if known is not None:
            return known.result()  # another thread may still be at it
        try:
            own.set_result(pictures.look(data, self._rules, digest))
        except BaseException as error:
            own.set_exception(error)
        return own.result()


def _looked_at(
    rows: Iterable[tuple[int, Row]], look: Callable[[bytes], Look], pool: Executor, window: int
) -> Iterator[tuple[int, Row, Look | None]]:
    """The rows in order, each with the look at its picture; at most `window` rows are held at any time."""
    waiting: deque[tuple[int, Row, Future[Look] | None]] = deque()
    for number, row in rows:
        waiting.append((number, row, pool.submit(look, row.image) if isinstance(row, Record) else None))
        if len(waiting) >= window:
            yield _result(*waiting.popleft())
    while waiting:
        yield _result(*waiting.popleft())


def _result(number: int, row: Row, look: Future[Look] | None) -> tuple[int, Row, Look | None]:
    return number, row, look.result() if look else None


def _expected(source: Source, part: Part) -> int:
    """About how many rows the part has."""
    rows = sum(min(part.limit, rows) if part.limit else rows for rows in source.rows.values())
    return -(-rows // part.count)


class _Notes:
    """Everything that a scan writes down, row by row. A context manager: closes its files."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        self._rules = rules
        self._index = IndexWriter(folder / INDEX)
        self._problems: IO[str] = (folder / PROBLEMS).open("w", encoding="utf-8")
        self._quarantine: IO[str] = (folder / QUARANTINE).open("w", encoding="utf-8")
        self.stats, self.choice = Stats(), Choice()

    def __enter__(self) -> _Notes:
        return self

    def __exit__(self, *_: object) -> None:
        self._index.close()
        self._problems.close()
        self._quarantine.close()

    def add(self, split: str, number: int, record: Record, look: Look) -> None:
        wants_steps = self._rules.wants_steps and split == "train"
        problems = [*look.problems, *text_problems(record, wants_steps)]
        facts = _facts(split, number, record, look, problems)
        self._index.add(facts)
        self.stats.add_problems(split, problems)
        self.stats.add_record(record, look, facts.answer_type)
        self.choice.offer(Candidate(facts.content, split, number, record, look, problems))
        if problems:
            self._write_problems(facts, problems)
        if facts.fatal:
            self._write_quarantine(facts, problems, record.question, record.answer)

    def add_unreadable(self, split: str, number: int, row: Unreadable) -> None:
        problems = [Problem("row_unreadable", row.sentence)]
        empty = b""
        facts = RowFacts(
            split, number, storable(row.id), empty, empty, empty, empty, 0, 0, 0, 1, "", "", "row_unreadable"
        )
        self._index.add(facts)
        self.stats.add_problems(split, problems)
        self._write_problems(facts, problems)
        self._write_quarantine(facts, problems, "", "")

    def _write_problems(self, facts: RowFacts, problems: list[Problem]) -> None:
        for problem in problems:
            write_line(self._problems, problem_note(facts.split, facts.number, facts.id, problem))

    def _write_quarantine(self, facts: RowFacts, problems: list[Problem], question: str, answer: str) -> None:
        note = {
            "id": facts.id,
            "split": facts.split,
            "number": facts.number,
            "question": storable(question),
            "answer": storable(answer),
            "picture": facts.picture.hex(),
            "problems": [
                {"code": problem.code, "sentence": storable(problem.sentence)} for problem in problems if problem.fatal
            ],
        }
        write_line(self._quarantine, note)


def problem_note(split: str, number: int, row_id: str, problem: Problem) -> dict[str, Any]:
    """One line of problems.jsonl."""
    return {
        "split": split,
        "number": number,
        "id": row_id,
        "code": problem.code,
        "sentence": storable(problem.sentence),
        "fatal": problem.fatal,
    }


def write_line(file: IO[str], note: dict[str, Any]) -> None:
    file.write(json.dumps(note) + "\n")


def _facts(split: str, number: int, record: Record, look: Look, problems: list[Problem]) -> RowFacts:
    offered = record.offered()
    asked = question_text(record.question, record.choices, record.options)
    option = chosen(record.answer, offered) if offered else None
    answer = record.answer if option is None else offered[option]  # "B" and the text of B are one answer
    return RowFacts(
        split=split,
        number=number,
        id=storable(record.id),
        picture=look.digest,
        content=content_digest(look.digest, record),
        asked=hashlib.sha256(look.digest + storable(asked).encode()).digest(),
        answer=hashlib.sha256(storable(plain(answer[:MAX_CHARACTERS])).encode()).digest()[:8],
        bytes=len(record.image),
        width=look.width,
        height=look.height,
        orientation=look.orientation,
        source=storable(record.source),
        answer_type=type_of(record.answer, offered, record.source),
        fatal=next((problem.code for problem in problems if problem.fatal), ""),
    )


@contextmanager
def whole(folder: Path, last: str) -> Iterator[Path]:
    """A folder to write into, whose files move to `folder` when all went well, `last` after all others.

    Who finds `last` in `folder` finds everything; when the writer is stopped half-way, nothing appears. One writer at
    a time: what a killed one left is cleared away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        yield work
        (folder / last).unlink(missing_ok=True)
        for path in sorted(work.iterdir(), key=lambda path: path.name == last):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
