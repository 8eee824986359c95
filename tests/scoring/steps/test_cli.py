"""`vqa-grpo score-steps`, the public door."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = ["--step", "The car is red.", "--step", "It is parked.", "--reference", "The car is red."]


def score_steps(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from vqa_grpo.cli import main; main()", "score-steps", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ)


def test_one_completion_is_scored_and_explained() -> None:
    done = score_steps(*STEPS, "--mode", "lexical", "--order", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "steps": 2,
        "references": 1,
        "matched": 1,
        "duplicates": 0,
        "echoes": 0,
        "conflicts": 0,
        "length_controlled": pytest.approx(2 / 3 - 4 / 3),
        "order": 1.0,
        "ordered_f1": pytest.approx(2 / 3),
    }
    text = score_steps(*STEPS, "--mode", "lexical", "--question", "The car is red.").stdout
    assert "0 of 2 steps match, of 1 references; 0 duplicates, 1 echoes, 0 in conflict" in text


def test_a_file_is_scored_line_by_line_with_the_default_encoder(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"id": "a", "steps": ["A red automobile can be seen."], "references": ["The car is red."], "question": "?"},
        {"steps": ["The car is green."], "references": ["The car is red."]},
        {"id": "c", "steps": ["Nothing to compare."], "references": []},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    done = score_steps("--file", str(file))
    assert done.returncode == 0, done.stderr
    a, b, c = map(json.loads, done.stdout.splitlines())
    assert (a["id"], a["f1"]) == ("a", 1.0)
    assert (b["f1"], b["conflicts"]) == (0.0, 1)
    assert "id" not in b
    assert (c["id"], c["f1"], c["steps"]) == ("c", None, None)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--step", "a"], 78, "--reference"),
        ([*STEPS, "--mode", "fuzzy"], 78, "semantic, lexical, crystal"),
        (["--step", "a", "--file", "rows.jsonl"], 78, "not both"),
        ([*STEPS, "--encoder", "/nowhere"], 78, "the encoder /nowhere is no folder with a sentence-transformers model"),
        (["--reference", "a", "--encoder", "./nowhere"], 78, "the encoder ./nowhere is no folder"),
        (["--file", "{folder}/empty.jsonl", "--encoder", "{folder}"], 78, "is no folder with"),
        ([*STEPS, "--mode", "lexical", "--encoder", "/nowhere"], 78, "lexical compares words: leave --encoder out"),
        (["--file", "{folder}/bad.jsonl"], 65, "line 2: steps must be a list of strings"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"steps": [], "references": []}\n{"steps": "a"}\n', encoding="utf-8")
    (tmp_path / "empty.jsonl").touch()
    done = score_steps(*(argument.format(folder=tmp_path) for argument in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
