"""Every bad row is found, named and put aside, in one scan as in many; too many of them stop the run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data import pictures
from vqa_grpo.data.checks import CODES, Problem
from vqa_grpo.data.pictures import Look
from vqa_grpo.data.rules import Rules
from vqa_grpo.data.scan import scan
from vqa_grpo.data.source import BLOCK, Part, Row, Source, Unreadable
from vqa_grpo.data.stats import MAX_VALUES, OTHER, Counts
from vqa_grpo.data.validate import SHOWN_PER_CODE, conclude, refuse_if_bad, validate
from vqa_grpo.report.data import DataReport

Made, Encoded = Callable[..., Source], Callable[..., bytes]
RULES = Rules(wants_steps=True)
FILES = {
    "report.json",
    "report.md",
    "report.html",
    "metrics.json",
    "problems.jsonl",
    "quarantine.jsonl",
    "index.parquet",
}


def record(image: bytes, question: str = "Which?", **more: Any) -> Record:
    return Record(image, question, **{"answer": "red", "reference_steps": ("One.",)} | more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def found(folder: Path) -> list[tuple[str, int, str]]:
    return [(note["split"], note["number"], note["code"]) for note in lines(folder / "problems.jsonl")]


# --- every code -------------------------------------------------------------------------------------------------

TEXTS: dict[str, dict[str, Any]] = {
    "question_empty": {"question": "\u200b"},
    "answer_empty": {"answer": " "},
    "answer_not_offered": {"options": ("blue", "green")},
    "answer_letter_out_of_range": {"answer": "D", "options": ("blue", "green")},
    "answer_ambiguous": {"answer": "A", "options": ("blue", "blue")},
    "text_encoding": {"question": "\ud800?"},
    "text_mojibake": {"question": "cafÃ©?"},
    "options_duplicate": {"options": ("red", "blue", "blue")},
    "steps_missing": {"reference_steps": ()},
    "step_long": {"reference_steps": ("word " * 15,)},
    "step_chained": {"reference_steps": ("Therefore it is red.",)},
    "step_clauses": {"reference_steps": ("It is red; it is tall.",)},
}
PICTURES = [code for code in CODES if code.startswith("image_") and code != "image_leak"]
ACROSS = {"row_duplicate", "id_repeated", "answers_conflict", "image_leak"}


def test_every_code_is_tried_here() -> None:
    assert {*TEXTS, *PICTURES, *ACROSS, "row_unreadable"} == set(CODES)


def assert_counted(report: DataReport, folder: Path, code: str, fatal: bool) -> None:
    """One row of two has the code, in the figures, the problems, the index and the quarantine."""
    assert (report.valid, report.invalid) == ((1, 1) if fatal else (2, 0))
    assert (report.invalid_by_code if fatal else report.warnings_by_code) == {code: 1}
    assert not (report.warnings_by_code if fatal else report.invalid_by_code)
    assert found(folder) == [("train", 1, code)]
    (example,) = report.examples
    assert (example["split"], example["code"], example["fatal"]) == ("train", code, fatal)
    assert [row["number"] for row in lines(folder / "quarantine.jsonl")] == ([1] if fatal else [])
    assert pq.read_table(folder / "index.parquet")["fatal"].to_pylist() == ["", code if fatal else ""]
    assert code in (folder / "report.md").read_text().replace("\\", "")


@pytest.mark.parametrize("code", TEXTS)
def test_what_is_wrong_with_texts_is_reported(code: str, source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    bad = replace(record(encoded("blue")), **TEXTS[code])
    report = validate(source_of(train=[record(encoded()), bad]), RULES, tmp_path)
    fatal = list(CODES).index(code) < list(CODES).index("image_odd")
    assert_counted(report, tmp_path, code, fatal)


@pytest.mark.parametrize("code", PICTURES)
@pytest.mark.parametrize("fatal", [True, False])
def test_what_is_wrong_with_a_picture_is_reported(
    code: str, fatal: bool, source_of: Made, encoded: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, see = encoded("blue"), pictures.look

    def look(data: bytes, rules: Rules, digest: bytes) -> Look:
        assert rules == RULES
        return replace(see(data, rules, digest), problems=(Problem(code, "look", fatal),) if data == bad else ())

    monkeypatch.setattr(pictures, "look", look)
    report = validate(source_of(train=[record(encoded()), record(bad)]), RULES, tmp_path)
    assert_counted(report, tmp_path, code, fatal)


@pytest.mark.parametrize(("data", "code"), [(b"", "image_missing"), (b"no picture", "image_undecodable")])
def test_what_is_no_picture_is_reported(
    data: bytes, code: str, source_of: Made, encoded: Encoded, tmp_path: Path
) -> None:
    report = validate(source_of(train=[record(encoded()), record(data)]), RULES, tmp_path)
    assert_counted(report, tmp_path, code, True)


def test_a_row_that_cannot_be_read_is_reported(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    source = source_of(train=[record(encoded()), Unreadable("rows.jsonl:2", "this line is not JSON")])
    report = validate(source, RULES, tmp_path)
    assert_counted(report, tmp_path, "row_unreadable", True)
    assert report.examples[0] == {
        "id": "rows.jsonl:2",
        "split": "train",
        "code": "row_unreadable",
        "sentence": "this line is not JSON",
        "fatal": True,
    }


def test_an_id_that_an_earlier_row_has_is_reported(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    """Evaluation tells predictions apart by their ids: better known before training than after."""
    rows = [record(encoded("blue"), "1?", id="a\x1b"), record(b"", "2?", id="a\x1b"), record(encoded(), "3?", id="b")]
    report = validate(source_of(train=rows, test=[record(encoded("green"), "4?", id="a\x1b")]), RULES, tmp_path)
    (note,) = (note for note in lines(tmp_path / "problems.jsonl") if note["code"] == "id_repeated")
    assert (note["split"], note["number"], note["fatal"]) == ("test", 0, False)
    assert note["sentence"].startswith("row 0 of train has this id, too")
    assert (report.warnings_by_code["id_repeated"], report.valid) == (1, 3)
    assert [example["id"] for example in report.examples if example["code"] == "id_repeated"] == ["a\\x1b"]


def test_a_row_that_repeats_an_earlier_one_is_reported(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    rows = [record(encoded(), id="a"), record(encoded("blue")), record(encoded(), id="b"), record(encoded(), id="c")]
    report = validate(source_of(train=rows), RULES, tmp_path)
    assert found(tmp_path) == [("train", 2, "row_duplicate"), ("train", 3, "row_duplicate")]
    assert [note["sentence"] for note in lines(tmp_path / "problems.jsonl")] == [
        "the same picture and texts as row a"
    ] * 2
    assert (report.duplicate_rows, report.warnings_by_code, report.valid) == (2, {"row_duplicate": 2}, 4)


def test_rows_that_contradict_each_other_are_reported(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    rows = [
        record(encoded(), id="a"),
        record(encoded(), id="b", answer="blue", source="other"),
        record(encoded("blue"), answer="blue"),  # another picture
        record(encoded(), "What?", answer="blue"),  # another question
        record(encoded(), answer="B", options=("red", "blue")),  # asked with options
        record(encoded(), answer="blue", options=("red", "blue")),
        record(encoded(), id="c", answer="The Red!", source="other"),
    ]
    report = validate(source_of(train=rows), RULES, tmp_path)
    assert found(tmp_path) == [("train", number, "answers_conflict") for number in (0, 1, 6)]
    others = [note["sentence"].split()[1] for note in lines(tmp_path / "problems.jsonl")]
    assert others == ["b", "a", "b"]
    assert report.warnings_by_code == {"answers_conflict": 3}


def test_a_picture_in_several_splits_is_kept_by_the_held_out_one(
    source_of: Made, encoded: Encoded, tmp_path: Path
) -> None:
    both, tested, mine = encoded("red"), encoded("blue"), encoded("green")
    source = source_of(
        train=[record(both, "1?"), record(tested, "2?"), record(mine, "3?"), record(both, "4?")],
        validation=[record(both, "5?"), record(tested, "6?")],
        test=[record(tested, "7?", id="t")],
    )
    report = validate(source, RULES, tmp_path)
    leaks = [("train", 0), ("train", 1), ("train", 3), ("validation", 1)]
    assert found(tmp_path) == [(split, number, "image_leak") for split, number in leaks]
    assert report.pictures_in_several_splits == 2
    assert report.warnings_by_code == {"image_leak": 4}
    assert report.pictures == {"train": 3, "validation": 2, "test": 1}
    sentence = lines(tmp_path / "problems.jsonl")[-1]["sentence"]
    assert sentence == "row t of test has the same picture, and test keeps it"
    assert "2 pictures stand in more than one split." in report.markdown()


def test_unusable_rows_repeat_and_contradict_nothing(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    rows = [record(encoded(), answer=""), record(b""), Unreadable("x", "?")] * 2
    report = validate(source_of(train=[record(encoded()), *rows], test=rows[1:3]), RULES, tmp_path)
    assert (report.warnings_by_code, report.pictures_in_several_splits, report.duplicate_rows) == ({}, 0, 0)
    assert report.pictures == {"train": 1, "test": 0}


def test_a_picture_is_held_out_by_an_unusable_row_too(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    source = source_of(train=[record(encoded()), record(encoded(), "")], test=[record(encoded(), answer="")])
    report = validate(source, RULES, tmp_path)
    assert report.warnings_by_code == {"image_leak": 1}
    assert ("train", 0, "image_leak") in found(tmp_path)
    assert report.pictures_in_several_splits == 1


def test_whole_set_warnings_agree_with_a_plain_search(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    pick = random.Random(7)
    shades = [encoded(number) for number in range(12)] + [b""]
    splits = {
        split: [
            record(pick.choice(shades), pick.choice("pq"), answer=pick.choice(["red", "blue", ""])) for _ in range(40)
        ]
        for split in ("test", "train", "validation")
    }
    validate(source_of(**splits), RULES, tmp_path)

    rows = [(split, number, row) for split in splits for number, row in enumerate(splits[split])]
    usable = [(split, number, row) for split, number, row in rows if row.image and row.answer]
    keeps = {"test": 2, "validation": 1, "train": 0}
    expected = set()
    for place, (split, number, row) in enumerate(usable):
        if any(keeps[s] > keeps[split] and other.image == row.image for s, _, other in rows):
            expected.add((split, number, "image_leak"))
        if any(other == row for _, _, other in usable[:place]):
            expected.add((split, number, "row_duplicate"))
        same = [other for _, _, other in usable if (other.image, other.question) == (row.image, row.question)]
        if {other.answer for other in same} != {row.answer}:
            expected.add((split, number, "answers_conflict"))
    across = [entry for entry in found(tmp_path) if entry[2] in ACROSS]
    assert [entry[:2] for entry in across] == sorted(entry[:2] for entry in across)
    assert set(across) == expected
    assert len(across) == len(expected) > 50


# --- the report -------------------------------------------------------------------------------------------------


@pytest.fixture
def bad(source_of: Made, encoded: Encoded) -> Source:
    """Eight rows, five of them bad in several ways."""
    good = encoded()
    train = [
        record(good, source="a"),
        record(b"no picture", source="a"),
        record(b"", source="a"),
        record(good, "", answer="", source="a"),
        record(good, answer="yellow", options=("red", "blue"), source="b"),
        record(good, options=("red", "blue"), reference_steps=(), source="b"),
        record(good, "What is it now?", answer="blue", source="b"),
    ]
    return source_of(train=train, test=[record(encoded("green"), answer="  ", source="b")])


def test_rows_are_counted_once_and_once_for_each_code(bad: Source, tmp_path: Path) -> None:
    report = validate(bad, RULES, tmp_path)
    assert report.rows == {"train": 7, "test": 1}
    assert (report.valid, report.invalid, report.total) == (3, 5, 8)
    assert report.invalid_by_code == {
        "answer_empty": 2,
        "answer_not_offered": 1,
        "image_missing": 1,
        "image_undecodable": 1,
        "question_empty": 1,
    }
    assert report.warnings_by_code == {"steps_missing": 1}
    assert report.by_source == {"a": 4, "b": 4}
    assert report.figures() == {
        "rows": 8,
        "valid": 3,
        "invalid": 5,
        "invalid_by_code": report.invalid_by_code,
        "warnings_by_code": {"steps_missing": 1},
        "digest": report.digest,
        "splits": {"train": 7, "test": 1},
    }


def test_the_report_shows_how_the_data_are_distributed(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    rows = [
        record(encoded(size=(100, 30)), "one two three four", reference_steps=("a b", "c d e f")),
        record(encoded(kind="JPEG", size=(700, 500)), "one", answer="yes"),
        record(encoded(size=(9000, 60)), answer="B", options=("x", "y")),
    ]
    report = validate(source_of(train=rows), Rules(), tmp_path)
    assert report.counts["answer_type"] == {"choice": 1, "text": 1, "yes_no": 1}
    assert report.counts["image_format"] == {"PNG": 2, "JPEG": 1}
    assert report.counts["image_mode"] == {"RGB": 3}
    assert report.counts["answers"] == {"B": 1, "red": 1, "yes": 1}
    assert report.counts["options"] == {"0": 2, "2": 1}
    for name, values in {
        "image_width": [100, 700, 9000],
        "image_height": [30, 500, 60],
        "question_words": [4, 1, 1],
        "answer_words": [1, 1, 1],
        "steps": [2, 1, 1],
        "step_words": [2, 4, 1, 1],
    }.items():
        histogram = report.histograms[name]
        assert sum(histogram.counts) == len(values)
        for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
            last = high == histogram.edges[-1]
            assert count == sum(low <= value and (value < high or last) for value in values), name


def test_steps_are_missed_in_training_rows_only(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    bare = record(encoded(), reference_steps=())
    report = validate(source_of(train=[bare], test=[replace(bare, image=encoded("blue"))]), RULES, tmp_path)
    assert report.warnings_by_code == {"steps_missing": 1}
    assert found(tmp_path) == [("train", 0, "steps_missing")]


def test_everything_is_written_and_nothing_else(bad: Source, tmp_path: Path) -> None:
    report = validate(bad, RULES, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert set(files(folder)) == FILES
    assert DataReport.from_dict(json.loads((folder / "report.json").read_text())) == report
    assert (folder / "report.md").read_text() == report.markdown()
    assert "8 rows, 5 unusable." in report.markdown()
    assert "| answer\\_empty | 2 | train/00000003: the answer is empty |" in report.markdown()
    assert "<html" in (folder / "report.html").read_text() or "<pre" in (folder / "report.html").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["rows"], metrics["invalid_by_code/answer_empty"], metrics["splits/train"]) == (8, 2, 7)


def test_a_report_that_cannot_be_drawn_leaves_no_files(
    bad: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr("vqa_grpo.report.data_html.render_data_report", broken)
    with pytest.raises(RuntimeError):
        validate(bad, RULES, tmp_path)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("moved", range(len(FILES)))
def test_a_report_is_there_only_when_all_else_is(
    moved: int, bad: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate(bad, RULES, tmp_path)
    move, left = Path.replace, [moved]

    def fails_later(path: Path, target: Path) -> Path:
        if target.parent == tmp_path:
            if not left[0]:
                raise OSError("the disk is full")
            left[0] -= 1
        return move(path, target)

    monkeypatch.setattr(Path, "replace", fails_later)
    with pytest.raises(OSError, match="full"):
        validate(bad, RULES, tmp_path)
    assert "report.json" not in files(tmp_path)


def test_hostile_texts_do_no_harm_to_the_files(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    texts = ["\ud800|a|\n<script>", "\0", "`x`" * 1000, "\u2028\x85", '"}']
    rows: list[Row] = [
        record(encoded(number), text, answer=text, options=(text,), source=text, id=text, reference_steps=(text,))
        for number, text in enumerate(texts)
    ]
    report = validate(source_of(train=[*rows, Unreadable(texts[0], texts[0])]), RULES, tmp_path)
    assert report.invalid_by_code["text_encoding"] == 2
    for name, data in files(tmp_path).items():
        if name.endswith(".jsonl"):
            assert all(json.loads(line) for line in data.decode().split("\n") if line)
        elif name != "index.parquet":
            assert "<script" not in data.decode() or name.endswith(".json")
    assert len(report.markdown().splitlines()) == len((tmp_path / "report.md").read_text().split("\n")) - 1


def test_only_a_few_examples_of_each_code_are_shown(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    rows = [record(encoded(), f"{number}?", answer="") for number in range(20)]
    report = validate(source_of(train=rows), RULES, tmp_path)
    assert report.invalid_by_code == {"answer_empty": 20}
    assert [example["id"] for example in report.examples] == [f"train/0000000{n}" for n in range(SHOWN_PER_CODE)]
    assert len(lines(tmp_path / "problems.jsonl")) == len(lines(tmp_path / "quarantine.jsonl")) == 20


def test_a_limit_reads_only_the_first_rows_of_each_split(bad: Source, tmp_path: Path) -> None:
    report = validate(bad, RULES, tmp_path, limit=1)
    assert report.rows == {"train": 1, "test": 1}
    assert report.invalid_by_code == {"answer_empty": 1}


def test_an_empty_source_has_a_report_too(source_of: Made, tmp_path: Path) -> None:
    report = validate(source_of(train=[], test=[]), RULES, tmp_path)
    assert (report.total, report.pictures, report.rows) == (0, {"train": 0, "test": 0}, {"train": 0, "test": 0})
    assert set(files(tmp_path)) == FILES


def test_answers_beyond_a_bound_are_counted_together() -> None:
    counts = Counts()
    for number in range(MAX_VALUES + 10):
        counts.add(str(number))
    counts.add("7", 5)
    assert len(counts.known) == MAX_VALUES
    assert counts.top(2) == {"7": 6, "0": 1, OTHER: MAX_VALUES - 2 + 10}


# --- the digest -------------------------------------------------------------------------------------------------


def digest_of(source: Source, folder: Path) -> str:
    return validate(source, RULES, folder / str(len(list(folder.iterdir())))).digest


def test_the_digest_covers_usable_rows_their_order_and_their_split(
    source_of: Made, encoded: Encoded, tmp_path: Path
) -> None:
    a, b = record(encoded("red")), record(encoded("blue"))
    base = digest_of(source_of(train=[a, b], test=[]), tmp_path)
    assert base == digest_of(source_of(test=[], train=[replace(a, id="other"), b]), tmp_path)
    assert base == digest_of(source_of(train=[a, replace(a, answer=""), b], test=[record(b"")]), tmp_path)
    others = [
        source_of(train=[b, a], test=[]),
        source_of(train=[a], test=[b]),
        source_of(train=[a, a, b], test=[]),
        source_of(train=[a, replace(b, image=encoded("green"))], test=[]),
        source_of(train=[a, replace(b, question="What?")], test=[]),
    ]
    assert len({base, *(digest_of(other, tmp_path) for other in others)}) == len(others) + 1


# --- parts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(source_of: Made, encoded: Encoded) -> Source:
    """Three splits over several blocks each, with problems of rows and of the whole on both sides of the seams."""
    shades, pick = [encoded(number) for number in range(400)], random.Random(3)

    def row(number: int) -> Row:
        if pick.random() < 0.01:
            return Unreadable(f"line {number}", "broken")
        answer = pick.choice(["red", "blue", "", f"answer {number}"])
        return record(pick.choice([*shades, b""]), pick.choice("abc"), answer=answer, source=pick.choice("xy"))

    counts = {"test": BLOCK // 2, "train": 3 * BLOCK + 17, "validation": BLOCK + 1}
    return source_of(**{split: [row(number) for number in range(count)] for split, count in counts.items()})


@pytest.mark.parametrize("limit", [0, BLOCK + 3])
def test_parts_together_give_exactly_what_one_scan_gives(large: Source, limit: int, tmp_path: Path) -> None:
    whole = validate(large, RULES, tmp_path / "whole", limit, workers=2)
    for index in range(3):
        scan(large, RULES, tmp_path / f"part {index}", Part(index, 3, limit), workers=1)
    parts = [tmp_path / f"part {index}" for index in (2, 0, 1)]
    assert conclude(large.name, parts, RULES, tmp_path / "parts") == whole
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    index = pq.read_table(tmp_path / "parts" / "index.parquet")
    numbers = list(zip(index["split"].to_pylist(), index["number"].to_pylist(), strict=True))
    kept = {split: min(limit or rows, rows) for split, rows in large.rows.items()}
    assert numbers == [(split, number) for split, count in kept.items() for number in range(count)]
    assert whole.warnings_by_code.keys() >= ACROSS - {"id_repeated"}


def test_more_parts_than_rows_are_no_problem(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    source = source_of(train=[record(encoded())])
    for index in range(3):
        scan(source, RULES, tmp_path / str(index), Part(index, 3))
    report = conclude("x", [tmp_path / str(index) for index in range(3)], RULES, tmp_path / "out")
    assert report.digest == validate(source, RULES, tmp_path / "whole").digest


def test_parts_that_do_not_make_a_whole_are_refused(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    source = source_of(train=[record(encoded())])
    for name, part, rules in (("a", Part(0, 2), RULES), ("b", Part(1, 2), RULES), ("c", Part(1, 2), Rules())):
        scan(source, rules, tmp_path / name, part)
    (tmp_path / "empty").mkdir()
    for names, says in {
        "a": "of 2 parts 1 is missing",
        "aab": "the same part",
        "ac": "different sources or rules",
        "": "no scan to conclude from",
    }.items():
        with pytest.raises(DataError, match=says):
            conclude("x", [tmp_path / name for name in names], RULES, tmp_path / "out")
    with pytest.raises(DataError, match="empty holds no finished scan: scan this part again"):
        conclude("x", [tmp_path / "a", tmp_path / "empty"], RULES, tmp_path / "out")
    with pytest.raises(DataError, match="scanned by other rules"):
        conclude("x", [tmp_path / "a", tmp_path / "b"], replace(RULES, min_side=3), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    conclude("x", [tmp_path / "a", tmp_path / "b"], replace(RULES, max_invalid_fraction=1.0), tmp_path / "out")


# --- thresholds -------------------------------------------------------------------------------------------------


def test_too_many_bad_rows_stop_the_run_with_the_worst_as_an_example(bad: Source, tmp_path: Path) -> None:
    report = validate(bad, RULES, tmp_path)
    refuse_if_bad(report, replace(RULES, max_invalid_fraction=5 / 8))
    with pytest.raises(DataError) as caught:
        refuse_if_bad(report, replace(RULES, max_invalid_fraction=0.6))
    message = str(caught.value)
    assert "5 of 8 rows" in message
    assert "data.max_invalid_fraction 0.6" in message
    assert "most often answer_empty, e.g. row train/00000003: the answer is empty" in message


def test_a_code_may_have_a_threshold_of_its_own(bad: Source, tmp_path: Path) -> None:
    report = validate(bad, RULES, tmp_path)
    some = replace(RULES, max_invalid_fraction=1.0)
    refuse_if_bad(report, replace(some, max_fractions={"answer_empty": 0.25, "steps_missing": 0.2, "image_leak": 0}))
    for code, most in (("answer_empty", 0.24), ("steps_missing", 0)):
        with pytest.raises(DataError, match=rf"rows of memory have {code}, more than data.max_fractions.{code}"):
            refuse_if_bad(report, replace(some, max_fractions={code: most}))


def test_a_threshold_on_a_code_that_is_none_is_refused_before_anything_is_read(source_of: Made, tmp_path: Path) -> None:
    rules = Rules(max_fractions={"image_leaks": 0.1})

    def read(*_: object) -> Any:
        raise AssertionError("it was read")

    with pytest.raises(ConfigurationError, match=r"'image_leaks', did you mean image_leak?"):
        validate(replace(source_of(train=[record(b"")]), read=read), rules, tmp_path)
    with pytest.raises(ConfigurationError, match="image_leaks"):
        refuse_if_bad(DataReport("x", {"train": 1}, valid=1), rules)


def test_a_source_without_a_usable_row_is_refused_whatever_the_thresholds(
    source_of: Made, encoded: Encoded, tmp_path: Path
) -> None:
    rules = replace(RULES, max_invalid_fraction=1.0)
    with pytest.raises(DataError, match=r"none of the 2 rows of memory is usable; most often image_missing, e.g. row"):
        refuse_if_bad(validate(source_of(train=[record(b"")] * 2), rules, tmp_path / "bad"), rules)
    with pytest.raises(DataError, match="memory holds no rows"):
        refuse_if_bad(validate(source_of(train=[]), rules, tmp_path / "none"), rules)


def test_a_good_source_passes_the_strictest_thresholds(source_of: Made, encoded: Encoded, tmp_path: Path) -> None:
    rules = replace(RULES, max_invalid_fraction=0.0, max_fractions=dict.fromkeys(CODES, 0.0))
    report = validate(source_of(train=[record(encoded(number)) for number in range(3)]), rules, tmp_path)
    refuse_if_bad(report, rules)
    assert (report.invalid, report.examples, report.warnings_by_code) == (0, [], {})
    assert (tmp_path / "quarantine.jsonl").read_text() == (tmp_path / "problems.jsonl").read_text() == ""
