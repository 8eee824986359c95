import datasets
import pytest

from vqa_grpo.evaluation.compare import compare
from vqa_grpo.evaluation.gate import decide
from vqa_grpo.evaluation.present import KINDS, pick_examples, run_report
from vqa_grpo.evaluation.score import BlindLevel, score
from vqa_grpo.report.html import render_run_report
from vqa_grpo.report.run import headline


@pytest.fixture
def two(table):
    types = ["color"] * 4 + ["shape"] * 4
    return table("-oxo" * 2, types), table("oox-" * 2, types)


def test_the_report_takes_over_the_numbers_of_both_evaluations(two):
    base, tuned = map(score, two)
    comparison = compare(*two)
    blind = BlindLevel(8, 0.25, {"color": 0.5, "shape": 0.0})
    report = run_report(
        "run", base, tuned, comparison, blind=blind, decision=decide(base, tuned, comparison), timings={"train": 3.0}
    )
    assert [(group.name, group.n, group.blind) for group in report.types] == [("color", 4, 0.5), ("shape", 4, 0.0)]
    assert report.overall.base.accuracy == base.accuracy == 0.5
    assert report.decision == "hold"
    assert headline(report).startswith("accuracy 50.0 % → 50.0 %, +0.0 points [")
    assert "not wholly above zero" in render_run_report(report)


def test_examples_show_each_kind_with_types_mixed_and_pictures(two, picture):
    image = {"bytes": picture((255, 0, 0)), "path": None}
    rows = [{"id": f"q{number}", "image": image} for number in range(8)]
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    examples = pick_examples(*two, datasets.Dataset.from_list(rows, features=features), each=2)
    assert [example.kind for example in examples] == [kind for kind in KINDS for _ in range(2)] == [
        "fixed", "fixed", "broken", "broken", "both right", "both right", "both wrong", "both wrong",
    ]  # fmt: skip
    fixed = examples[0]
    assert fixed.base_note.startswith("wrong, no_json")
    assert fixed.tuned_note.startswith("right, valid")
    assert fixed.image.startswith(b"\x89PNG")


def test_examples_of_a_data_set_that_lacks_a_question_go_without_its_picture(two, picture):
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    rows = [{"id": "another", "image": {"bytes": picture((255, 0, 0)), "path": None}}]
    nothing = datasets.Dataset.from_list(rows, features=features)
    assert all(example.image is None for example in pick_examples(*two, nothing))
