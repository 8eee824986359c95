"""JSON lines, as plain rows and in VLM-R1's form, with pictures in files; a broken line never stops the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import Part, Unreadable
from vqa_grpo.data.sources import jsonl, open_place, places
from vqa_grpo.data.sources.jsonl import parse

Lay, Encoded, Refused = Callable[..., str], Callable[..., bytes], Callable[..., str]


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def row(image: Any = "images/1.png", **more: Any) -> dict[str, Any]:
    return {"image": image, "question": "what?", "answer": "red"} | more


def test_plain_rows_find_their_pictures(lay: Lay, encoded: Encoded, asked: Callable[..., Any]) -> None:
    place = lay({"data.jsonl": lines(row(), row("gone.png")), "images/1.png": encoded()})
    source = open_place(place)
    assert (source.rows, source.exact) == ({"train": 2}, True)
    assert asked(source) == [(encoded(), "what?", "red"), (b"", "what?", "red")]


def test_vlm_r1s_rows_are_questions_and_answers(lay: Lay, encoded: Encoded, asked: Callable[..., Any]) -> None:
    said = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "0"}]
    rows = [{"id": 1, "image": image, "conversations": said} for image in ("a/1.png", ["a/1.png"])]
    assert (
        asked(open_place(lay({"train.jsonl": lines(*rows), "a/1.png": encoded()})))
        == [(encoded(), "How many?", "0")] * 2
    )


def test_pictures_lie_beside_the_file_or_at_the_top_or_in_images(lay: Lay, encoded: Encoded, rows_of: Any) -> None:
    place = lay(
        {
            "train/data.jsonl": lines(row("beside.png"), row("top.png"), row("in.png"), row("../top.png")),
            "train/beside.png": encoded(1),
            "top.png": encoded(2),
            "images/in.png": encoded(3),
        }
    )
    assert [found.image for found in rows_of(open_place(place))] == [encoded(n) for n in (1, 2, 3, 2)]


def test_one_file_may_be_given_by_its_own_name(lay: Lay, encoded: Encoded, asked: Callable[..., Any]) -> None:
    place = lay({"a.jsonl": lines(row()), "b.jsonl": lines(row()), "images/1.png": encoded()})
    assert asked(open_place(f"{place}/a.jsonl")) == [(encoded(), "what?", "red")]


BROKEN = {
    b'{"image": ': "the line is not JSON",
    b"[1, 2]": "the line is a list, not an object",
    b'"text"': "the line is text, not an object",
    b'{"question": "\xff"}': "the line is not UTF-8",
    b"[" * 100_000: "the line is",
    b'{"answer": ' + b"9" * 5000 + b"}": "the line is not JSON",
    json.dumps(row(answer=[1])).encode(): "the column answer holds a list",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_is_a_row_of_its_own_and_stops_nothing(on_disk: Lay, rows_of: Any, broken: bytes) -> None:
    first, second, third = rows_of(open_place(on_disk({"data.jsonl": lines(row(), broken, row())})))
    assert isinstance(first, Record)
    assert isinstance(third, Record)
    assert third.id == "train/00000002"
    assert isinstance(second, Unreadable)
    assert second.id == "train/00000001"
    assert BROKEN[broken] in second.sentence


def test_empty_lines_are_no_rows(on_disk: Lay) -> None:
    source = open_place(on_disk({"data.jsonl": b"\xef\xbb\xbf" + lines(row(), b"", b"  ", row()) + b"\n"}))
    assert source.rows == {"train": 2}
    assert [found.id for found in source.records("train")] == ["train/00000000", "train/00000001"]


def test_a_line_too_long_to_hold_is_one_broken_row(on_disk: Lay, rows_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LINE_BYTES", 200)
    long = [row(question="q" * length) for length in (200, 1000, 5000)]
    found = rows_of(open_place(on_disk({"data.jsonl": lines(row(), *long, row())})))
    assert [isinstance(one, Record) for one in found] == [True, False, False, False, True]
    assert "longer than 200 bytes" in found[2].sentence


def test_the_rows_of_a_large_file_are_estimated_and_said_to_be(on_disk: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "HEAD_BYTES", 5_000)
    place = on_disk({"train-1.jsonl": lines(*[row()] * 1000), "train-2.jsonl": lines(*[row()] * 10)})
    source = open_place(place)
    assert not source.exact
    assert source.rows["train"] == pytest.approx(1010, abs=5)
    assert len(list(source.records("train"))) == 1010


def test_only_the_pictures_of_the_part_are_opened(on_disk: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_place(on_disk({"data.jsonl": lines(*[row(f"{number}.png") for number in range(2500)])}))
    opened: list[str] = []
    monkeypatch.setattr(places.Place, "picture", lambda self, path, folder: opened.append(path) or b"")
    assert [number for number, _ in source.read("train", Part(1, 2))] == list(range(1000, 2000))
    assert opened == [f"{number}.png" for number in range(1000, 2000)]


def test_a_column_that_no_row_has_is_named(on_disk: Lay, refused: Refused) -> None:
    place = on_disk({"data.jsonl": lines({"image": "1.png", "problem": "what?", "answer": "red"})})
    said = refused(DataError, place)
    assert "data.jsonl lacks the column question; it has image, problem, answer" in said
    assert "--set data.columns.question=…" in said
    assert len(list(open_place(place, {"question": "problem"}).records("train"))) == 1


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_refused(lay: Lay, refused: Refused, content: bytes) -> None:
    assert "holds no rows" in refused(DataError, lay({"data.jsonl": content}))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_sentence(line: bytes) -> None:
    found = parse(line)
    assert found if isinstance(found, str) else isinstance(found, dict)


@given(st.dictionaries(st.text(), st.none() | st.text() | st.integers() | st.lists(st.text())))
def test_every_object_comes_back(written: dict[str, Any]) -> None:
    assert parse(json.dumps(written).encode()) == written
    assert parse(json.dumps(written, ensure_ascii=False).encode("utf-8", "replace")) is not None
