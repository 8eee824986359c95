"""The figures and words of prove_learning.py, and the order of its pieces; the run itself takes half an hour."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vqa_grpo import config
from vqa_grpo.contract.verdict import prediction_schema
from vqa_grpo.quickstart.facts import KINDS


@pytest.fixture(scope="module")
def study() -> ModuleType:
    path = Path(__file__).with_name("prove_learning.py")
    spec = importlib.util.spec_from_file_location("prove_learning", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


JSON, PROSE = '{"reasoning_steps": ["It is seen."], "answer": "%s"}', "It is seen. I see %s."


def row(number: int, kind: str, said: str, in_form: bool, gold: str = "red") -> dict[str, Any]:
    return {name: None for name in prediction_schema().names} | {
        "id": str(number),
        "type": kind,
        "question": "?",
        "gold": gold,
        "completion": (JSON if in_form else PROSE) % said,
        "completion_tokens": 9,
        "outcome": "valid" if in_form else "no_json",
        "format_reward": float(in_form),
        "answer": said if in_form else None,
        "steps": [],
        "correct": in_form and said == gold,
        "reward": float(in_form and said == gold),
        "gold_type": "text",
        "rule": "text",
        "explanation": "",
    }


def pair(base: tuple[str, bool], tuned: tuple[str, bool], count: int) -> list[tuple[Any, Any]]:
    return [(row(0, "color", *base), row(0, "color", *tuned)) for _ in range(count)]


def test_a_gain_that_is_all_from_form_is_no_gain_given_form(study: ModuleType) -> None:
    found = study.given_format(pair(("red", False), ("red", True), 30) + pair(("red", True), ("red", True), 10))
    assert (found.base, found.tuned, found.both, found.gain) == (1.0, 1.0, 10, 0.0)


def test_the_gain_given_form_is_paired_over_what_both_said_in_form(study: ModuleType) -> None:
    pairs = [
        *pair(("blue", True), ("red", True), 30),  # better
        *pair(("red", True), ("blue", True), 10),  # worse
        *pair(("red", True), ("red", True), 60),
        *pair(("red", False), ("blue", True), 50),  # not both in form: in the tuned rate only
        *pair(("blue", True), ("red", False), 50),  # in the base's rate only
    ]
    found = study.given_format(pairs)
    assert found.both == 100
    assert found.gain == pytest.approx(0.2)
    assert found.gain_ci[0] < 0.2 < found.gain_ci[1]
    assert found.base == pytest.approx(70 / 150)
    assert found.tuned == pytest.approx(90 / 150)


def test_with_nothing_in_form_there_is_no_rate_rather_than_a_zero(study: ModuleType) -> None:
    found = study.given_format(pair(("red", False), ("red", True), 4))
    assert (found.base, found.both, found.gain, found.gain_ci) == (None, 0, None, None)


def test_the_lenient_answer_is_the_last_word_that_could_be_one(study: ModuleType) -> None:
    assert study.lenient("The image shows a red circle. So it is red.") == "red"
    assert study.lenient('{"reasoning_steps": ["The image shows a red circle."], "answer": "circle"}') == "circle"
    assert study.lenient("The image shows a circle. My answer is no.") == "no"
    assert study.lenient("Yesterday it was redder.") is None


def prediction_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=prediction_schema()), path)
    return path


def test_a_line_takes_the_gain_apart_for_each_kind_of_question(study: ModuleType, tmp_path: Path) -> None:
    def answered(said: str, in_form: int) -> list[dict[str, Any]]:
        return [row(10 * k + n, kind, said, n < in_form) for k, kind in enumerate(KINDS) for n in range(10)]

    base = prediction_file(tmp_path / "base.parquet", answered("blue", 4))
    tuned = prediction_file(tmp_path / "tuned.parquet", answered("red", 10)[::-1])
    found = study.lines(base, tuned, dict.fromkeys(KINDS, 0.25))
    assert list(found) == list(KINDS)
    for line in found.values():
        assert (line.n, line.blind, line.format_base, line.format_tuned) == (10, 0.25, 0.4, 1.0)
        assert (line.strict.gain, line.strict.from_format, line.strict.from_answers) == (1.0, 0.6, 0.4)
        assert (line.given.both, line.given.gain) == (4, 1.0)
        assert (line.lenient_base, line.lenient_tuned) == (0.0, 1.0)


def line(study: ModuleType, gain: float, low: float) -> Any:
    """A line whose gain given form is `gain`, with an interval from `low` to `gain` + 0.05."""
    pairs = pair(("blue", True), ("red", True), 3)
    strict = study.TypeGain(3, 1.0, [1.0, 1.0], 0, 0, 3, 0, 0.25, 0.0, 1.0, 0, 3)
    made = study._line(pairs, strict, 0.1)
    return replace(made, given=replace(made.given, gain=gain, gain_ci=[low, gain + 0.05]))


def results(study: ModuleType, colours: list[float], **others: list[float]) -> dict[int, dict[str, Any]]:
    gains = {kind: others.get(kind.replace("-", "_"), [0.0] * 3) for kind in KINDS} | {"color": colours}
    return {
        seed: {kind: line(study, gains[kind][seed], gains[kind][seed] - 0.05) for kind in KINDS} for seed in range(3)
    }


def test_the_target_is_a_rise_of_one_kind_on_two_seeds_of_three(study: ModuleType) -> None:
    assert study.verdict("accuracy", results(study, [0.2, 0.09, 0.12]))[0]
    assert study.verdict("accuracy", results(study, [0.0, 0.0, 0.0], shape=[0.1, 0.3, 0.0]))[0]
    met, sentence = study.verdict("accuracy", results(study, [0.2, 0.0, 0.0], shape=[0.0, 0.2, 0.0]))
    assert not met
    assert "NOT met" in sentence
    assert "color on 1 of 3 seeds, shape on 1 of 3 seeds" in sentence


def test_one_kind_that_falls_beyond_noise_on_one_seed_undoes_the_target(study: ModuleType) -> None:
    met, sentence = study.verdict("accuracy", results(study, [0.2] * 3, yes_no=[0.0, -0.06, -0.04]))
    assert not met
    assert "fell beyond noise: yes-no on seed 1 (-6.0 [-11.0, -1.0])" in sentence


def test_the_table_has_every_arm_seed_and_kind_of_question(study: ModuleType) -> None:
    found = study.table({arm: results(study, [0.2] * 3) for arm in study.ARMS}).splitlines()
    assert len(found) == 2 + 2 * 3 * 4
    assert len({text.count("|") for text in found}) == 1
    assert found[2].startswith("| format + accuracy | 0 | color | 3 | 10.0 | 100.0 → 100.0 | 0.0 → 100.0 |")
    assert "| +20.0 [+15.0, +25.0], 3 |" in found[2]


def test_nothing_reads_the_test_split_before_all_trainings_are_over(study: ModuleType) -> None:
    made = study.pieces()
    trainings = {name for name in made if name.startswith("train ")}
    reads = {name: set(needs) for name, needs in made.items() if name.startswith("read ")}
    assert len(trainings) == 6
    assert len(reads) == 9  # three bases, six finished models: each once
    assert all(needs == trainings for needs in reads.values())
    assert all(needs <= set(made) for needs in map(set, made.values()))


def test_the_recipe_is_a_configuration_and_its_arms_differ_in_the_reasoning_reward_only(study: ModuleType) -> None:
    made = study.Study(Path("/nowhere"), "test")
    plain, told = (config.from_tree(study.json.loads(made.resolved(1, arm).config), arm) for arm in study.ARMS)
    assert plain.model.recipe == "room-to-rise"
    assert set(told.rewards.functions) - set(plain.rewards.functions) == {"reasoning"}
    assert plain.model_copy(update={"rewards": told.rewards}) == told


def test_what_a_piece_cost_is_kept_and_added_up_when_it_went_on(study: ModuleType, tmp_path: Path) -> None:
    made = study.Study(tmp_path, "validation")
    ledger = study.Ledger(made)
    ledger.add("base 0", False, 3.0)
    ledger.add("data", True, 1.0)
    again = study.Ledger(made)
    again.add("base 0", True, 4.0)
    assert again.finished() == {"base 0", "data"}
    assert study.Ledger(made).pieces["base 0"]["seconds"] == 7.0
    assert study.Ledger(study.Study(tmp_path, "test")).finished() == set()


def test_the_tables_are_written_for_people_and_for_programs(study: ModuleType, tmp_path: Path) -> None:
    made = study.Study(tmp_path, "test")
    found = {arm: results(study, [0.2] * 3) for arm in study.ARMS}
    text = study.write(made, study.Ledger(made), found)
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text
    assert "format + accuracy: target met" in text
    facts = study.json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert facts["verdicts"]["accuracy"]["met"] is True
    assert facts["results"]["reasoning"]["2"]["color"] == asdict(found["reasoning"][2]["color"])
