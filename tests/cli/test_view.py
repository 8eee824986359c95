"""What a person sees of the pipeline's output, fed with what Kubeflow's local runner really prints."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo.cli.run import _follow
from vqa_grpo.cli.view import View, summary_text

# Two steps of our kind, without our steps: the second one fails.
PIPELINE = """
import sys, warnings
warnings.filterwarnings("ignore")
from kfp import dsl, local

@dsl.component(install_kfp_package=False)
def convert(settings: str, made: dsl.Output[dsl.Dataset]) -> str:
    from vqa_grpo.report.progress import announce, emit
    announce("convert", "started")
    emit("convert", 1, 2, "it's going")
    emit("convert", 2, 2)
    print("a library's own words")
    print("{")
    print('    "inputs": "JSON of a step\\'s own"')
    print("}")
    print("@progress {broken")
    announce("convert", "finished", seconds=1.25)
    return settings

@dsl.component(install_kfp_package=False)
def train(settings: str):
    from vqa_grpo.contract.failure import DataError
    from vqa_grpo.steps import guarded
    def train_model():
        raise DataError("row 7's picture is empty: mend it")
    guarded(train_model)()

@dsl.pipeline
def pipeline():
    train(settings=convert(settings='{"secret-looking": {"a": [1, 2]}}').outputs["Output"])

local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], raise_on_error=True)
pipeline()
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    import os

    folder = tmp_path_factory.mktemp("sample")
    (folder / "sample.py").write_text(PIPELINE)
    command = [sys.executable, str(folder / "sample.py"), str(folder / "root")]
    environment = os.environ | {"VQA_GRPO_PROGRESS": "lines"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert "Got executor_input:" in done.stdout, done.stdout
    assert "\x1b[" in done.stdout
    return done.stdout


@pytest.fixture
def follow(output, tmp_path, capsys):
    """Show the sample; returns what was announced as failed, what was shown and what was logged."""

    def followed(verbose: bool = False) -> tuple[Any, list[str], str]:
        view = View("r", tmp_path / "log", quiet=False)
        with view:
            failure = _follow(io.StringIO(output), view, verbose)
        return failure, capsys.readouterr().out.splitlines(), (tmp_path / "log").read_text()

    return followed


def test_a_person_sees_steps_and_progress_and_nothing_else(follow):
    _, shown, _ = follow()
    assert shown[0].startswith("run r, log ")
    assert shown[1].startswith("  convert 2/2")
    assert shown[2] == "✓ convert   done 1.2 s"
    assert len(shown) == 3


def test_what_a_step_has_to_say_in_between_is_shown_with_its_reason(tmp_path, capsys):
    with View("r", tmp_path / "log", quiet=False) as view:
        view.event({"step": "prepare", "event": "note", "why": "the hub does not answer"})
    assert capsys.readouterr().out.splitlines()[1:] == ["! prepare   note: the hub does not answer"]


def test_the_first_failure_is_handed_on(follow):
    failure, _, log = follow()
    assert failure == {
        "step": "train",
        "event": "failed",
        "error": "row 7's picture is empty: mend it",
        "reason": "data",
    }
    assert "train failed row 7's picture is empty" in log


def test_the_log_keeps_every_word_but_the_executor_s_json_and_the_colours(follow):
    _, _, log = follow()
    assert "parameterValues" not in log
    assert "outputFile" not in log
    assert "KFP Executor" not in log
    assert "\x1b" not in log
    for kept in ("a library's own words", "JSON of a step's own", "@progress {broken", "Task 'train' finished with"):
        assert kept in log
    assert "error: row 7's picture is empty: mend it" in log


def test_verbose_keeps_the_executor_s_json_as_well(follow):
    failure, _, log = follow(verbose=True)
    assert "parameterValues" in log
    assert failure["reason"] == "data"


def test_a_terminal_gets_bars(output, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    view = View("r", tmp_path / "log", quiet=False)
    view._out = Terminal()
    with view:
        _follow(io.StringIO(output), view, False)
        view.say("[brackets] are no markup")
    shown = view._out.getvalue()
    # A bar is drawn at most ten times a second, and goes when its step is done: which counts it showed is chance.
    assert "convert" in shown
    assert "/2" in shown
    assert "✓ convert" in shown
    assert "[brackets] are no markup" in shown


def test_a_run_of_which_little_could_be_measured_still_has_an_end(tmp_path):
    rates = dict.fromkeys(("accuracy", "format_rate", "accuracy_given_format"))
    summary = {
        "base": {**rates, "by_type": {"it's": {"accuracy": None}}},
        "tuned": {**rates, "n": 0, "by_type": {"it's": {"accuracy": None}}},
        "blind": {"accuracy": None, "by_type": {}},
        "comparison": {"gain": None, "gain_ci": None, "from_format": None, "from_answers": None},
        "gate": {"decision": "hold", "reasons": ["No questions were evaluated."]},
        "model": {"version": None},
    }
    text = summary_text(json.loads(json.dumps(summary)), tmp_path, "sqlite:///x", tmp_path, "", 1.0)
    assert "gate: hold\n  - No questions were evaluated." in text
    assert "registered:" not in text
    assert "None" not in text
    assert "[-, -]" in text


def test_types_that_only_one_model_met_do_not_break_the_end(tmp_path):
    rates = dict.fromkeys(("accuracy", "format_rate", "accuracy_given_format"), 0.5)
    summary = {
        "base": {**rates, "by_type": {}},
        "tuned": {**rates, "n": 1, "by_type": {"new": {"accuracy": 1.0}}},
        "blind": {"accuracy": 0.1, "by_type": {}},
        "comparison": {"gain": 0.1, "gain_ci": [0.0, 0.2], "from_format": 0.0, "from_answers": 0.1},
        "gate": {"decision": "hold", "reasons": []},
        "model": {"version": None},
    }
    assert "new" in summary_text(summary, tmp_path, "sqlite:///x", Path("runs"), "out", 1.0)
