"""The data report says in words and pictures what a data set holds, and no data set can break or blow up its page."""

import base64
import random
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from vqa_grpo.report.data import DataReport, Histogram, Sample
from vqa_grpo.report.data_html import MAX_BYTES, render_data_report, render_rows
from vqa_grpo.report.pictures import MAX_SIDE, kind_of_thumbnail, small_thumbnail, thumbnail
from vqa_grpo.report.svg import count_bars, histogram

HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>`</b></style>&lt; \x00\ud800 \u202e|"""
MEANINGS = {
    "image_undecodable": "the picture is broken",
    "step_long": "a step is long",
    "image_rotated": "it is turned",
}


def encoded(side: int = 64, kind: str = "PNG", seed: int = 0) -> bytes:
    buffer = BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side)).save(buffer, kind)
    return buffer.getvalue()


def plain_picture(side: int) -> bytes:
    buffer = BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def report() -> DataReport:
    return DataReport(
        source="s3://bucket/charts",
        rows={"train": 11_500, "test": 845},
        pictures={"train": 2_300, "test": 169},
        valid=12_300,
        invalid=45,
        invalid_by_code={"image_undecodable": 38, "image_new": 7},
        warnings_by_code={"step_long": 1_203, "image_rotated": 1},
        by_source={"chartqa": 12_000, "": 345},
        counts={
            "answer_type": {"choice": 12_000, "number": 345},
            "answers": {f"answer {number}": 400 - number for number in range(30)} | {"(other)": 780},
            "image_format": {"JPEG": 12_300},
            "image_mode": {"RGB": 12_299, "CMYK": 1},
            "options": {},
        },
        histograms={"visual_tokens": Histogram([0, 16, 32, 64], [0, 12_000, 300]), "steps": Histogram([0, 1], [0])},
        examples=[
            {"id": f"train/{number}", "split": "train", "code": code, "sentence": f"{code} here", "fatal": True}
            for number, code in enumerate(["image_undecodable", "step_long", "image_undecodable"])
        ],
        pictures_in_several_splits=3,
        duplicate_rows=1,
        digest="ab12" * 16,
    )


def sample(number: int = 0, **more) -> Sample:
    texts = {"question": f"question {number}?", "answer": "b", "options": ["red", "blue"], "steps": ["It is big."]}
    values = {"id": f"train/{number}", "split": "train", "width": 64, "height": 48, "picture": as_text(encoded())}
    return Sample(**values | texts | more)


def texts_of(page, tag: str, css: str) -> int:
    return sum(kind == tag and css in attributes.get("class", "").split() for kind, attributes in page.tags)


def test_the_report_says_how_many_rows_are_usable_and_whether_they_will_do(report, read_page):
    lead = "12,345 rows, 12,300 of them usable (99.6 %) and 45 not."
    unjudged = read_page(render_data_report(report, []))
    assert lead in unjudged.text
    assert "fit to train on" not in unjudged.text
    assert "refused" not in unjudged.text
    assert "fit to train on" in read_page(render_data_report(report, [], refusal="")).text
    refused = read_page(render_data_report(report, [], refusal="45 of 12,345 rows are unusable")).text
    assert "refused 45 of 12,345 rows are unusable" in refused


def test_problems_stand_with_meaning_share_and_rows_the_fatal_ones_first(report, read_page):
    text = read_page(render_data_report(report, [], MEANINGS)).text
    order = ["What keeps rows out", "image_undecodable", "image_new", "Worth a look", "step_long", "image_rotated"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "the picture is broken" in text
    assert "380.3 %" in text  # 38 rows and their share, side by side
    assert "1,2039.7 %" in text
    assert "1< 0.1 %" in text  # a single row is never "0.0 %"
    for example in ("train/0 train image_undecodable here", "train/2 train image_undecodable here"):
        assert example in text


def test_splits_leakage_and_duplicates_are_told(report, read_page):
    text = read_page(render_data_report(report, [])).text
    assert "train11,50093.2 %2,3005.0" in text
    assert "Leakage: 3 pictures stand in more than one split" in text
    assert "Duplicates: 1 row repeats an earlier one" in text
    clean = read_page(render_data_report(replace(report, pictures_in_several_splits=0, duplicate_rows=0), [])).text
    assert "No picture stands in more than one split." in clean
    assert "Duplicates" not in clean


def test_what_there_is_stands_in_charts_and_what_there_is_not_is_left_out(report, read_page):
    text = read_page(render_data_report(report, [])).text
    for expected in ("Visual tokens of a picture", "12,300 values, half of them up to 16–31", "choice", "CMYK"):
        assert expected in text
    assert "(all others)" in text
    assert "answer 9" in text
    assert "answer 10" not in text
    assert "Options offered" not in text
    assert "Reference steps of a row" not in text


def test_a_row_shows_its_picture_texts_options_steps_and_problems(report, read_page):
    problems = ["image_undecodable: it is broken", "step_long: step 1 is long"]
    page = read_page(render_data_report(report, [sample(), sample(1, picture="", answer="red", problems=problems)]))
    for expected in ("train/0 · train", "question 0?", "It is big.", "64 × 48", "no picture", *problems):
        assert expected in page.text
    assert [attributes["src"][:22] for tag, attributes in page.tags if tag == "img"] == ["data:image/png;base64,"]
    assert texts_of(page, "article", "unusable") == 1
    assert (texts_of(page, "li", "fatal"), texts_of(page, "li", "warning")) == (1, 1)


@pytest.mark.parametrize(("answer", "marked"), [("b", 1), (" Blue", 1), ("red", 1), ("c", 0), ("", 0), ("green", 0)])
def test_the_option_that_is_the_answer_is_marked(report, read_page, answer, marked):
    page = read_page(render_data_report(report, [sample(answer=answer)]))
    assert texts_of(page, "li", "right") == marked


def test_hostile_text_is_shown_as_text_wherever_it_stands(report, read_page):
    hostile = DataReport(
        source=HOSTILE,
        rows={HOSTILE: 2},
        pictures={HOSTILE: 1},
        invalid_by_code={HOSTILE: 1},
        warnings_by_code={HOSTILE: 1},
        by_source={HOSTILE: 1},
        counts={"answers": {HOSTILE: 1}, HOSTILE: {HOSTILE: 1}},
        histograms={HOSTILE: Histogram([0, 1], [1])},
        examples=[{"id": HOSTILE, "split": HOSTILE, "code": HOSTILE, "sentence": HOSTILE, "fatal": True}],
        digest=HOSTILE,
    )
    row = Sample(HOSTILE, HOSTILE, HOSTILE, HOSTILE, [HOSTILE], [HOSTILE], 1, 1, HOSTILE, [HOSTILE])
    text = render_data_report(hostile, [row], {HOSTILE: HOSTILE}, HOSTILE)
    page = read_page(text)
    good = {tag for tag, _ in read_page(render_data_report(report, [sample(problems=["a: b"])])).tags}
    assert {tag for tag, _ in page.tags} <= good - {"img"}
    assert page.text.count("<script>alert(1)</script>") >= 20
    assert "\x00" not in text
    text.encode()  # no lone surrogate is left
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "src", "style")]
    assert "default-src 'none'" in text
    assert "<script" not in render_rows(HOSTILE, [row], hostile)


@pytest.mark.parametrize(
    "picture",
    [
        "not base64 at all\"'><b>",
        'AAAA" onerror="alert(1)',
        as_text(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        as_text(b"GIF89a" + bytes(40)),
        as_text(encoded(64)[:20]),
        as_text(encoded(MAX_SIDE)),  # too many bytes
        as_text(plain_picture(MAX_SIDE + 1)),
        as_text(plain_picture(8_000)),  # few bytes, and a quarter of a gigabyte for a browser
        as_text(encoded()) + "\n",
        "é",
    ],
)
def test_what_is_not_the_base64_of_a_small_picture_is_not_shown(report, read_page, picture):
    page = read_page(render_data_report(report, [sample(picture=picture)]))
    assert "no picture" in page.text
    assert "img" not in {tag for tag, _ in page.tags}


@pytest.mark.parametrize("letter", ["x", '"', "&", "\U0001f600", "\n", "\ud800"])
def test_the_page_stays_small_whatever_it_is_given(report, read_page, letter):
    text = letter * 20_000
    many = {f"{number}{text}": 5 for number in range(200)}
    example = {"id": text, "split": text, "sentence": text, "fatal": True}
    worst = replace(
        report,
        source=text,
        digest=text,
        rows=many,
        pictures=many,
        by_source=many,
        invalid_by_code=many,
        warnings_by_code=many,
        counts=dict.fromkeys(report.counts, many),
        histograms=report.histograms | {"steps": Histogram(list(range(50_001)), [1] * 50_000)},
        examples=[{**example, "code": code} for code in many for _ in range(9)],
    )
    picture = as_text(thumbnail(encoded(300, "JPEG")))
    row = sample(0, question=text, answer=text, options=[text] * 99, steps=[text] * 99, problems=[text] * 99)
    page = render_data_report(worst, [replace(row, picture=picture)] * 300, dict.fromkeys(many, text), text)
    assert 300_000 < len(page.encode(errors="strict")) <= MAX_BYTES
    shown = read_page(page)
    assert 0 < texts_of(shown, "article", "row") < 300
    assert "more rows, which would make this page too large, are not shown" in shown.text
    assert "170 more codes are not shown" in shown.text


def test_an_empty_report_renders(read_page):
    page = read_page(render_data_report(DataReport("nothing"), []))
    assert "0 rows, 0 of them usable." in page.text
    assert "svg" not in {tag for tag, _ in page.tags}


def test_rows_to_look_at_say_that_they_are_a_part_of_the_whole(report, read_page):
    figures = replace(report, pictures={}, invalid_by_code={"image_undecodable": 1})
    text = read_page(render_rows("Rows of here", [sample(0), sample(1)], figures, MEANINGS)).text
    assert "12,345 rows; 2 of them were looked at" in text
    assert "the picture is broken" in text
    assert "150.0 %" in text  # one row of two
    assert "Different pictures" not in text
    whole = read_page(render_rows("Rows", [sample(0), sample(1)], replace(figures, rows={"train": 2}))).text
    assert "looked at" not in whole


def bars_of(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter("rect"))  # noqa: S314 - our own output


def test_a_histogram_has_a_bar_for_each_bin_between_the_first_and_the_last_filled_one():
    svg = histogram([0, 1, 2, 4, 8, 16, 32], [0, 10, 0, 20, 5, 0], title="steps")
    bars = bars_of(svg)
    assert [bar.find("title").text for bar in bars] == ["1: 10", "2–3: 0", "4–7: 20", "8–15: 5"]
    heights = [float(bar.get("height")) for bar in bars]
    assert heights == [pytest.approx(heights[2] * share) for share in (0.5, 0, 1, 0.25)]
    assert "35 values, half of them up to 4–7" in svg
    assert bars_of(histogram([0, 1, 9], [0, 2], title="t"))[0].find("title").text == "1+: 2"


@pytest.mark.parametrize("counts", [[], [0, 0], [1]])
def test_a_histogram_without_values_or_with_other_edges_says_so(counts):
    svg = histogram([0, 1, 2], counts, title="<b>")
    assert "nothing to count" in svg
    assert bars_of(svg) == []


def test_bars_are_as_long_as_their_counts():
    svg = count_bars([("red", 30), ("<blue>", 15), ("none", 0)], 60, title="Answers")
    widths = [float(bar.get("width")) for bar in bars_of(svg)]
    assert widths == [110.0, 55.0, 1.0]
    assert "30 (50.0 %)" in svg
    assert count_bars([], 0, title="Answers")


@pytest.mark.parametrize("kind", ["palette", "one colour"])
def test_a_thumbnail_is_drawn_of_a_picture_with_transparent_colours_and_a_large_profile(kind):
    noise = Image.frombytes("RGB", (300, 200), random.Random(0).randbytes(180_000))
    picture, transparent = (noise.quantize(), bytes(range(256))) if kind == "palette" else (noise, (1, 2, 3))
    buffer = BytesIO()
    picture.save(buffer, "PNG", transparency=transparent, icc_profile=random.Random(1).randbytes(50_000))
    for small in (thumbnail(buffer.getvalue()), small_thumbnail(buffer.getvalue(), 5_000)):
        assert len(small) <= 12_000
        assert kind_of_thumbnail(small)


@pytest.mark.parametrize(("side", "kind"), [(20, "PNG"), (300, "JPEG")])
@pytest.mark.parametrize("allowed", [2_000, 20_000])
def test_a_thumbnail_for_a_page_of_many_keeps_within_its_bytes(side, kind, allowed):
    data = small_thumbnail(encoded(side, kind), allowed)
    assert len(data) <= allowed
    assert kind_of_thumbnail(data) in ("image/png", "image/jpeg")
    assert Image.open(BytesIO(data)).size[0] >= 20
    assert small_thumbnail(b"<svg>", allowed) is None
