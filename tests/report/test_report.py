import random
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vqa_grpo.report.html import MAX_BYTES, render_run_report
from vqa_grpo.report.markdown import render_markdown
from vqa_grpo.report.metrics import clean_metrics
from vqa_grpo.report.pictures import MAX_SIDE, thumbnail
from vqa_grpo.report.run import Example, Group, Rates, RunReport, headline
from vqa_grpo.report.svg import Bar, _ticks, bar_chart, line_chart

NAN = float("nan")
HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>`</pre></style>&lt; \x00\ud800 |"""


def noise(side: int, seed: int = 0, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def run() -> RunReport:
    base = Rates(0.452, [0.43, 0.474], 0.515, 0.859)
    tuned = Rates(0.861, [0.845, 0.876], 1.0, 0.861)
    overall = Group("all", 2000, base, tuned, 0.655, 0.409, [0.38, 0.437], 0.33, 0.079)
    return RunReport(
        title="run 7",
        overall=overall,
        types=[replace(overall, name="color", n=240, blind=0.15), replace(overall, name="shape", n=300, blind=None)],
        decision="promote",
        reasons=["The format rate of 100.0 % reaches the 95.0 % asked for."],
        history=[
            {"step": 1, "reward": 0.9, "rewards/format/mean": 0.5, "completions/mean_length": 40.0, "entropy": 0.7},
            {"step": 2, "reward": NAN, "rewards/format/mean": 0.8, "completions/mean_length": 41.0, "grad_norm": 0.1},
            {"step": 3, "reward": 1.7, "rewards/format/mean": 1.0, "completions/mean_length": 43.0},
            {"train_runtime": 60.0},
        ],
        examples=[
            Example("fixed", "what color?", "red", "It is red.", '{"answer": "red"}', image=thumbnail(noise(64)))
        ],
        lineage={"dataset": "sha256:1234", "prompt": "short"},
        config={"training": {"lr": 2.5e-4}},
        timings={"train": 754.2},
        notes=["Accuracy is strict."],
    )


def test_the_page_is_well_formed_and_says_the_headline_in_words(run, read_page):
    page = read_page(render_run_report(run))
    sentence = "accuracy 45.2 % → 86.1 %, +40.9 points [38.0, 43.7]; 33.0 of the 40.9 points are format"
    assert headline(run) == sentence
    assert "A" + sentence[1:] + "." in page.text
    for expected in ("color", "15.0 %", "promote", "sha256:1234", "12 min 34 s", '"lr": 0.00025', "It is red."):
        assert expected in page.text


def test_the_page_loads_nothing_and_runs_nothing(run, read_page):
    page = read_page(render_run_report(run))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
        assert attributes.get("src", "data:").startswith("data:")


def test_hostile_text_is_shown_as_text_wherever_it_stands(run, read_page):
    group = replace(run.overall, name=HOSTILE)
    hostile = RunReport(
        title=HOSTILE,
        overall=group,
        types=[group],
        decision=HOSTILE,
        reasons=[HOSTILE],
        history=[{"step": 1, f"rewards/{HOSTILE}/mean": 0.5, HOSTILE: 1}],
        examples=[Example(*[HOSTILE] * 7)],
        lineage={HOSTILE: HOSTILE},
        config={HOSTILE: HOSTILE},
        timings={HOSTILE: 1.0},
        notes=[HOSTILE],
    )
    text = render_run_report(hostile)
    page = read_page(text)
    assert {tag for tag, _ in page.tags} < {tag for tag, _ in read_page(render_run_report(run)).tags} - {"img"}
    assert page.text.count("<script>alert(1)</script>") >= 17
    assert "\x00" not in text
    text.encode()  # no lone surrogate is left
    markdown = render_markdown(hostile)
    assert not re.search("[\0-\x09\x0b-\x1f\ud800-\udfff]", markdown)
    assert "<script" not in markdown
    assert "<img" not in markdown
    table = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in table} == {9}


def test_a_run_with_nothing_but_missing_numbers_still_renders(read_page):
    empty = Rates(None, None, None, None)
    odd = Rates(NAN, [NAN, 1.0], float("inf"), NAN)
    for rates in (empty, odd):
        run = RunReport("nothing", Group("all", 0, rates, rates))
        assert "accuracy – → –" in headline(run)
        page = read_page(render_run_report(run))
        assert "nan" not in page.text.replace("inance", "")
        assert "None" not in page.text
        assert "| all | 0 | – | – | – |" in render_markdown(run)


def test_the_page_draws_held_out_scores_and_tells_what_the_guards_warned_of(run, read_page):
    scored = [{"step": step, "eval_accuracy": 0.3 + step / 100, "eval_steps": 2.0} for step in (0, 10, 20)]
    warned = {"step": 20, "guard": "entropy_collapse", "warning": f"the entropy fell {HOSTILE}"}
    text = render_run_report(replace(run, history=[*scored, warned]))
    page = read_page(text)
    assert "Held-out questions answered right" in page.text
    assert "After step 20: the entropy fell" in page.text
    assert "Held-out questions answered right" not in read_page(render_run_report(run)).text


def test_the_headline_says_when_format_and_answers_pull_apart(run):
    group = replace(run.overall, gain=-0.03, gain_ci=[-0.05, -0.01], from_format=0.02, from_answers=-0.05)
    assert headline(replace(run, overall=group)).endswith("-3.0 points [-5.0, -1.0]; format +2.0, answers -5.0 points")


def test_the_page_stays_small_even_with_the_worst_input(run, read_page):
    pictures = [thumbnail(noise(300, seed)) for seed in range(12)]
    examples = [Example("fixed", '"' * 5000, "<" * 5000, "'" * 9000, "&" * 9000, "<" * 999, image=p) for p in pictures]
    history = [{"step": step, **{f"rewards/{name}/mean": 0.5 for name in range(30)}} for step in range(5000)]
    worst = replace(
        run,
        examples=examples,
        history=history,
        types=[replace(run.overall, name=f"type {number}", n=number) for number in range(500)],
        lineage={f"{number}": "<" * 9999 for number in range(99)},
        config={"key": "<" * 99999},
        reasons=["'" * 9999] * 99,
    )
    text = render_run_report(worst)
    assert len(text.encode()) <= MAX_BYTES
    assert "more characters" in text
    assert "460 rarer question types" in read_page(text).text


def test_pictures_are_shown_where_they_fit(run, read_page):
    pictures = [thumbnail(noise(300, seed)) for seed in range(12)]
    examples = [Example("fixed", "q", "a", "b", "c", image=picture) for picture in pictures]
    page = read_page(render_run_report(replace(run, examples=examples)))
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 12


def test_the_markdown_table_has_a_row_for_each_type_and_the_total(run):
    text = render_markdown(run)
    assert "| color | 240 | 15.0 % | 45.2 % | 86.1 % | +40.9 [38.0, 43.7] | 51.5 % | 100.0 % |" in text
    assert "| shape | 300 | – |" in text
    assert "| all | 2000 | 65.5 % |" in text
    assert "Decision: **promote**" in text


def curve_count(svg: str) -> int:
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own output
    return len(root.findall("polyline"))


def test_a_line_chart_leaves_a_gap_where_a_value_is_missing():
    points = [(1, 0.1), (2, 0.2), (3, NAN), (4, 0.4), (5, 0.5), (6, None), (7, 0.7)]
    svg = line_chart(points, title="a <b>", x_label="step", y_label='"y"')
    assert curve_count(svg) == 2
    assert len(ElementTree.fromstring(svg).findall("circle")) == 1  # noqa: S314


def test_a_line_chart_without_values_says_so():
    assert "nothing was logged" in line_chart([(1, NAN)], title="t", x_label="x", y_label="y")
    assert "nothing was logged" in line_chart([], title="t", x_label="x", y_label="y")


def test_long_curves_are_thinned_but_keep_their_last_point():
    svg = line_chart([(step, float(step)) for step in range(100_001)], title="t", x_label="x", y_label="y")
    assert len(svg) < 10_000
    line = ElementTree.fromstring(svg).find("polyline").get("points").split()  # noqa: S314
    assert line[-1] == "328.0,26.0"


def test_a_bar_is_as_long_as_its_rate_and_the_marker_stands_at_the_blind_level():
    svg = bar_chart([Bar("color", 0.5, 1.0, [0.4, 0.6], None, 0.25)], title="t", marker_label="blind")
    root = ElementTree.fromstring(svg)  # noqa: S314
    widths = [float(rect.get("width")) for rect in root.findall("rect")[2:]]
    assert widths == [255.0, 510.0]
    marker = [line for line in root.findall("line") if line.get("class") == "marker"][1]
    assert float(marker.get("x1")) == 150 + 510 / 4 == pytest.approx(277.5)


@given(st.lists(st.tuples(st.floats(), st.none() | st.floats()), max_size=8))
def test_no_values_make_a_line_chart_raise_or_break(points):
    svg = line_chart(points, title="t", x_label="x", y_label="y")
    assert "nan" not in svg
    ElementTree.fromstring(svg)  # noqa: S314


@given(st.floats(-1e12, 1e12), st.floats(0, 1e12), st.integers(2, 8))
def test_ticks_enclose_the_values_and_are_few(low, spread, about):
    ticks = _ticks(low, low + spread, about)
    slack = 1e-6 * max(1e-24, abs(low), spread)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + spread - slack
    assert 2 <= len(ticks) <= 2 * about + 3
    assert ticks == sorted(set(ticks))


def test_metrics_are_flat_finite_floats_and_the_rest_is_named():
    values = {
        "n": 3,
        "accuracy_ci": [0.1, 0.2],
        "by_type": {"color": {"accuracy": 0.5, "format_rate": None}},
        "bad": {"nan": NAN, "inf": float("inf"), "text": "0.5", "flag": True, "huge": 10**400},
        "by_type/color/accuracy": 0.7,
    }
    kept, dropped = clean_metrics(values)
    assert kept == {"n": 3.0, "accuracy_ci/0": 0.1, "accuracy_ci/1": 0.2, "by_type/color/accuracy": 0.5}
    assert all(type(value) is float for value in kept.values())
    assert dropped == {
        "by_type/color/format_rate": "no value",
        "bad/nan": "nan is not finite",
        "bad/inf": "inf is not finite",
        "bad/text": "str is not a number",
        "bad/flag": "bool is not a number",
        "bad/huge": "inf is not finite",
        "by_type/color/accuracy": "the name stands twice",
    }


def test_numpy_numbers_are_metrics():
    import numpy as np

    kept, dropped = clean_metrics({"a": np.float32(0.5), "b": np.int64(2), "c": np.float64("nan")})
    assert kept == {"a": 0.5, "b": 2.0}
    assert list(dropped) == ["c"]


@pytest.mark.parametrize(("side", "kind"), [(64, "PNG"), (300, "PNG"), (1200, "JPEG")])
def test_a_thumbnail_is_a_small_png(side, kind):
    data = thumbnail(noise(side, kind=kind))
    picture = Image.open(BytesIO(data))
    assert picture.format == "PNG"
    assert max(picture.size) <= min(side, MAX_SIDE)
    assert len(data) <= 16_000


def test_a_picture_that_cannot_be_read_has_no_thumbnail():
    assert thumbnail(b"<svg>") is None
    assert thumbnail(noise(64)[:200]) is None
