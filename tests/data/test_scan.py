"""One look at each row, whatever the number of threads; a scan that was stopped looks like none."""

from __future__ import annotations

import base64
import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data import pictures
from vqa_grpo.data import scan as scanning
from vqa_grpo.data.checks import Problem
from vqa_grpo.data.index import RowFacts
from vqa_grpo.data.pictures import Look
from vqa_grpo.data.rules import Rules
from vqa_grpo.data.samples import UNUSABLE, USABLE
from vqa_grpo.data.scan import scan
from vqa_grpo.data.source import Part, Row, Source, Unreadable
from vqa_grpo.data.validate import conclude

Made, Encoded = Callable[..., Source], Callable[..., bytes]
RULES = Rules(wants_steps=True)


def record(image: bytes, question: str = "Which?", **more: Any) -> Record:
    return Record(image, question, **{"answer": "red", "reference_steps": ("One.",)} | more)


def facts(folder: Path) -> list[RowFacts]:
    return [RowFacts(**row) for row in pq.read_table(folder / "index.parquet").to_pylist()]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def mixed(source_of: Made, encoded: Encoded) -> Source:
    """Rows of every kind, some sharing a picture, in two splits."""
    train: list[Row] = [record(encoded(number % 5), f"question {number}?") for number in range(40)]
    train[3:6] = [record(b""), Unreadable("line 5", "not JSON"), record(b"no picture")]
    return source_of(train=train, test=[record(encoded(9), "", answer="")] * 2)


def test_every_row_has_its_facts_in_the_sources_order(mixed: Source, tmp_path: Path) -> None:
    scan(mixed, RULES, tmp_path)
    found = facts(tmp_path)
    assert [(row.split, row.number) for row in found] == [("train", n) for n in range(40)] + [("test", 0), ("test", 1)]
    first = found[0]
    assert (first.id, first.width, first.height, first.orientation) == ("train/00000000", 24, 16, 1)
    assert (first.answer_type, first.fatal, len(first.picture), len(first.answer)) == ("text", "", 32, 8)
    assert [row.fatal for row in found[3:6]] == ["image_missing", "row_unreadable", "image_undecodable"]
    assert found[4].id == "line 5"
    assert [row.fatal for row in found[-2:]] == ["question_empty"] * 2


def test_the_result_does_not_depend_on_the_number_of_threads(mixed: Source, tmp_path: Path) -> None:
    for workers in (1, 2, 7):
        scan(mixed, RULES, tmp_path / str(workers), workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "7")


def test_problems_and_unusable_rows_are_written_with_all_that_is_needed_to_find_them(
    mixed: Source, tmp_path: Path
) -> None:
    scan(mixed, RULES, tmp_path)
    problems = lines(tmp_path / "problems.jsonl")
    assert problems[1] == {
        "split": "train",
        "number": 4,
        "id": "line 5",
        "code": "row_unreadable",
        "sentence": "not JSON",
        "fatal": True,
    }
    quarantine = lines(tmp_path / "quarantine.jsonl")
    assert [row["number"] for row in quarantine] == [3, 4, 5, 0, 1]
    assert quarantine[2]["picture"] == facts(tmp_path)[5].picture.hex()
    assert [problem["code"] for problem in quarantine[3]["problems"]] == ["question_empty", "answer_empty"]
    assert (quarantine[2]["question"], quarantine[2]["answer"]) == ("Which?", "red")


@pytest.mark.parametrize(
    "change",
    [
        {"question": "What?"},
        {"answer": "blue"},
        {"reference_steps": ("Two.",)},
        {"options": ("red",)},
        {"choices": ("red",)},
        {"source": "b"},
    ],
)
def test_a_rows_digest_covers_its_texts(
    change: dict[str, Any], source_of: Made, encoded: Encoded, tmp_path: Path
) -> None:
    row = record(encoded(), id="a")
    scan(source_of(train=[row, replace(row, id="b"), replace(row, **change)]), RULES, tmp_path)
    same, renamed, changed = (row.content for row in facts(tmp_path))
    assert same == renamed != changed


def test_a_rows_digest_covers_its_picture_and_keeps_texts_apart(
    source_of: Made, encoded: Encoded, tmp_path: Path
) -> None:
    rows = [record(encoded()), record(encoded("blue")), record(encoded(), options=("a", "b"), answer="a")]
    scan(source_of(train=[*rows, record(encoded(), options=("a,b",), answer="a")]), RULES, tmp_path)
    assert len({row.content for row in facts(tmp_path)}) == 4


def test_an_options_letter_and_its_text_are_one_answer(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    rows = [record(encoded(), options=("red", "blue"), answer=answer) for answer in ("blue", "B", "(b)", "red")]
    scan(source_of(train=rows), RULES, tmp_path)
    found = [row.answer for row in facts(tmp_path)]
    assert found[0] == found[1] == found[2] != found[3]


def test_texts_that_no_file_can_hold_are_written_as_escapes(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    rows = [
        record(encoded(), "a\udc80?", id="x\ud800", source="s\udfff", answer="\udc80"),
        Unreadable("y\ud800", "no \udc80"),
        record(encoded(), "a\0b"),
    ]
    scan(source_of(train=rows), RULES, tmp_path)
    assert [row.id for row in facts(tmp_path)] == ["x\\ud800", "y\\ud800", "train/00000002"]
    assert [row.fatal for row in facts(tmp_path)] == ["text_encoding", "row_unreadable", "text_encoding"]
    for path in tmp_path.glob("*.json*"):
        json.dumps([json.loads(line) for line in path.read_text().splitlines()], ensure_ascii=False).encode()


# --- pictures ---------------------------------------------------------------------------------------------------


class Eyes:
    """Stands in for `pictures.look`; knows what was looked at and how many looks ran at once."""

    def __init__(self) -> None:
        self.looks: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self.meet: threading.Barrier | None = None

    def look(self, data: bytes, rules: Rules, digest: bytes) -> Look:
        if self.meet:
            self.meet.wait(20)
        with self._lock:
            self.looks[data] += 1
        return Look(digest, len(data), 8, 8, 1, "PNG", "RGB", 1, ())


@pytest.fixture
def eyes(monkeypatch: pytest.MonkeyPatch) -> Eyes:
    eyes = Eyes()
    monkeypatch.setattr(pictures, "look", eyes.look)
    return eyes


def test_a_picture_with_many_questions_is_looked_at_once(source_of: Made, eyes: Eyes, tmp_path: Path) -> None:
    rows = [record(b"picture %d" % (number // 50), f"{number}?") for number in range(200)]
    scan(source_of(train=rows, test=rows[:50]), RULES, tmp_path, workers=4)
    assert set(eyes.looks.values()) == {1}
    assert len(eyes.looks) == 4


def test_pictures_are_looked_at_side_by_side(source_of: Made, eyes: Eyes, tmp_path: Path) -> None:
    eyes.meet = threading.Barrier(3)  # breaks unless three looks run at once
    scan(source_of(train=[record(b"%d" % number) for number in range(9)]), RULES, tmp_path, workers=3)
    assert len(eyes.looks) == 9


def test_only_a_few_rows_are_held_at_a_time(source_of: Made, eyes: Eyes, tmp_path: Path) -> None:
    held: weakref.WeakSet[Record] = weakref.WeakSet()
    most = 0
    source = source_of(train=[record(b"%d" % number, f"{number}?") for number in range(300)])

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        nonlocal most
        for number, row in source.read(split, part):
            assert isinstance(row, Record)
            held.add(row)
            most = max(most, len(held))
            yield number, row

    scan(replace(source, read=read), RULES, tmp_path, workers=2)
    assert 2 <= most <= 2 * scanning.AHEAD + USABLE + UNUSABLE + 2


def test_what_is_remembered_of_pictures_is_bounded(eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "REMEMBERED", 3)
    judge = scanning.PictureJudge(RULES)
    for data in (b"a", b"b", b"c", b"a", b"d", b"a", b"b"):  # b was the one not asked for longest
        judge.look(data)
    assert eyes.looks == {b"a": 1, b"b": 2, b"c": 1, b"d": 1}


def test_every_problem_of_a_picture_is_noted(
    source_of: Made, eyes: Eyes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (Problem("image_rotated", "turned", fatal=False), Problem("image_small", "1x1"))
    monkeypatch.setattr(pictures, "look", lambda *given: replace(eyes.look(*given), problems=found))
    scan(source_of(train=[record(b"x", "")]), RULES, tmp_path)
    noted = [(note["code"], note["fatal"]) for note in lines(tmp_path / "problems.jsonl")]
    assert noted == [("image_rotated", False), ("image_small", True), ("question_empty", True)]
    assert facts(tmp_path)[0].fatal == "image_small"
    (quarantined,) = lines(tmp_path / "quarantine.jsonl")
    assert [problem["code"] for problem in quarantined["problems"]] == ["image_small", "question_empty"]


# --- rows to show -----------------------------------------------------------------------------------------------


def test_a_few_rows_are_kept_to_show_whatever_their_order(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    rows = [record(encoded(number % 7), f"{number}?", id=str(number)) for number in range(60)]
    rows += [record(encoded(), f"{number}?", answer="", id=f"bad {number}") for number in range(20)]
    shown = []
    for name, order in (("there", rows), ("back", rows[::-1])):
        scan(source_of(train=order), RULES, tmp_path / name)
        chosen = json.loads((tmp_path / name / "samples.json").read_text())
        shown.append({entry["sample"]["id"]: entry["sample"] for entry in chosen})
        assert Counter(entry["usable"] for entry in chosen) == {True: USABLE, False: UNUSABLE}
    assert shown[0] == shown[1]
    sample = next(iter(shown[0].values()))
    assert (sample["width"], sample["height"], sample["steps"]) == (24, 16, ["One."])
    assert pictures.look(base64.b64decode(sample["picture"]), RULES).width == 24


# --- parts and interruptions ------------------------------------------------------------------------------------


def test_a_part_holds_its_own_rows_only(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    source = source_of(train=[record(encoded(), f"{number}?") for number in range(2300)])
    scan(source, RULES, tmp_path / "second", Part(1, 2))
    assert [row.number for row in facts(tmp_path / "second")] == list(range(1000, 2000))
    scan(source, RULES, tmp_path / "few", Part(limit=5))
    assert [row.number for row in facts(tmp_path / "few")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("at", [0, 1, 5, 30])
def test_a_scan_that_was_stopped_leaves_nothing(at: int, mixed: Source, tmp_path: Path) -> None:
    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        for number, row in mixed.read(split, part):
            if number == at:
                raise DataError("the shard is damaged")
            yield number, row

    with pytest.raises(DataError, match="the shard is damaged"):
        scan(replace(mixed, read=read), RULES, tmp_path / "scan")
    assert list((tmp_path / "scan").iterdir()) == []


def test_a_scan_that_was_killed_leaves_nothing_that_looks_finished(mixed: Source, tmp_path: Path) -> None:
    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        yield from mixed.read(split, part)
        os._exit(9)

    if (child := os.fork()) == 0:
        scan(replace(mixed, read=read), RULES, tmp_path / "scan")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with pytest.raises(DataError, match="holds no finished scan"):
        conclude("x", [tmp_path / "scan"], RULES, tmp_path / "out")
    scan(mixed, RULES, tmp_path / "scan")
    scan(mixed, RULES, tmp_path / "once")
    assert files(tmp_path / "scan") == files(tmp_path / "once")


def test_a_scan_takes_the_place_of_an_older_one(mixed: Source, source_of: Made, tmp_path: Path) -> None:
    scan(source_of(train=[record(b"")]), RULES, tmp_path / "again")
    scan(mixed, RULES, tmp_path / "again")
    scan(mixed, RULES, tmp_path / "once")
    assert files(tmp_path / "again") == files(tmp_path / "once")
