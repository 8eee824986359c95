"""CSV and TSV with pictures in files; a broken row never stops the others."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.source import Unreadable
from vqa_grpo.data.sources import open_place, places
from vqa_grpo.data.sources.records import Columns
from vqa_grpo.data.sources.table import list_of, row_of

Lay, Encoded, Refused = Callable[..., str], Callable[..., bytes], Callable[..., str]
HEADER = "image,question,answer,options,reference_steps"


def table(*rows: str, header: str = HEADER) -> bytes:
    return "".join(line + "\r\n" for line in (header, *rows)).encode()


def test_rows_their_lists_and_pictures_are_read(lay: Lay, encoded: Encoded, rows_of: Any) -> None:
    rows = ['images/1.png,"what, then?",5.0,"[""2003"", 2010]",One step. | Two steps.', 'gone.png,"two\nlines",,,']
    source = open_place(lay({"train.csv": table(*rows), "images/1.png": encoded()}))
    assert (source.rows, source.exact) == ({"train": 2}, True)
    assert rows_of(source) == [
        Record(encoded(), "what, then?", "5.0", ("One step.", "Two steps."), (), ("2003", "2010"), id="train/00000000"),
        Record(b"", "two\nlines", "", id="train/00000001"),
    ]


def test_tabs_separate_a_tsv(lay: Lay, rows_of: Any) -> None:
    (found,) = rows_of(open_place(lay({"x.tsv": b"image\tquestion\tanswer\n\twhat, then?\tred\n"})))
    assert (found.question, found.answer) == ("what, then?", "red")


def test_a_byte_order_mark_and_umlauts_are_taken(on_disk: Lay, rows_of: Any) -> None:
    data = "\ufeffimage,question,answer\n,Welche Größe?,groß\n".encode()
    (found,) = rows_of(open_place(on_disk({"x.csv": data})))
    assert (found.question, found.answer) == ("Welche Größe?", "groß")


BROKEN = {
    b"1.png,what?": "the row has 2 cells, and the header 5",
    b"1.png,what?,red,,,more": "the row has 6 cells",
    b"1.png,\xff\xfe?,red,,": "the row is not UTF-8",
    b'1.png,what?,red,"[1, ",': "the column options begins like a JSON list and is none",
    b"1.png,what?,red," + b"x" * 200_000 + b",": "the row is not CSV: field larger than field limit",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_row_is_a_row_of_its_own_and_stops_nothing(on_disk: Lay, rows_of: Any, broken: bytes) -> None:
    data = table("1.png,first?,red,,") + broken + b"\r\n1.png,third?,red,,\r\n\r\n"
    first, second, third = rows_of(open_place(on_disk({"x.csv": data})))
    assert (first.question, third.question, third.id) == ("first?", "third?", "train/00000002")
    assert isinstance(second, Unreadable)
    assert BROKEN[broken] in second.sentence


def test_a_quote_that_is_never_closed_is_named_and_held_within_bounds(on_disk: Lay, rows_of: Any) -> None:
    data = table("1.png,first?,red,,", '1.png,"never closed,red,,', *[",more?,red,,"] * 20_000)
    found = rows_of(open_place(on_disk({"x.csv": data})))
    assert isinstance(found[0], Record)
    assert any(isinstance(row, Unreadable) and "field limit" in row.sentence for row in found)


def test_a_missing_column_is_named_and_can_be_mapped(on_disk: Lay, refused: Refused) -> None:
    place = on_disk({"x.csv": table(",what?,red", header="image,problem,answer")})
    assert "x.csv lacks the column question; it has image, problem, answer" in refused(DataError, place)
    assert "lacks the column nothing" in refused(DataError, place, {"question": "nothing"})
    assert [row.question for row in open_place(place, {"question": "problem"}).records("train")] == ["what?"]


def test_every_file_of_a_split_needs_the_columns(on_disk: Lay, refused: Refused) -> None:
    files = {"a.csv": table(",what?,red,,"), "b.csv": table(",red", header="image,answer")}
    assert "b.csv lacks the column question" in refused(DataError, on_disk(files))


@pytest.mark.parametrize("content", [b"", table(), b"\n\n"])
def test_a_file_without_rows_is_refused(on_disk: Lay, refused: Refused, content: bytes) -> None:
    assert "holds no rows" in refused(DataError, on_disk({"x.csv": content}))


def test_the_rows_of_a_large_file_are_estimated_and_said_to_be(on_disk: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "HEAD_BYTES", 5_000)
    source = open_place(on_disk({"x.csv": table(*["1.png,what?,red,,"] * 2000)}))
    assert not source.exact
    assert source.rows["train"] == pytest.approx(2000, rel=0.02)


@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=3, max_size=3
    )
)
def test_what_csv_writes_comes_back(tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["image", "question", "answer"], ["", *cells[1:]]])
    place = tmp_path_factory.mktemp("csv")
    (place / "x.csv").write_bytes(text.getvalue().encode())
    (found,) = open_place(str(place)).records("train")
    assert [found.question, found.answer] == cells[1:]


@given(st.text())
def test_any_cell_is_a_list_or_refused(cell: str) -> None:
    found = row_of(["options"], [cell], Columns())
    assert isinstance(found, (str, dict))
    if not cell.strip().startswith(("[", "{")):
        assert all(isinstance(item, str) for item in list_of(cell))


@given(st.lists(st.text(alphabet="abc XYZ09.,;", min_size=1).map(str.strip).filter(bool)))
def test_items_between_bars_come_back(items: list[str]) -> None:
    assert list_of(" | ".join(items)) == items
