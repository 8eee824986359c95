"""`vqa-grpo grade` and `vqa-grpo parse`, one case and whole files."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo.cli.app import main

GOOD = '{"reasoning_steps": ["s"], "answer": "red"}'


@pytest.fixture
def vqa(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vqa-grpo", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as stopped:
            main()
        out, error = capsys.readouterr()
        return stopped.value.code or 0, out, error  # type: ignore[return-value]

    return call


def test_grade_prints_the_five_keys_of_a_verdict(vqa: Any) -> None:
    code, out, _ = vqa("grade", "--gold", "2010", "--gold", "-7", "--prediction", "-7", "--json")
    verdict = json.loads(out)
    assert (code, verdict["correct"], verdict["reward"], verdict["gold_type"]) == (0, True, 1.0, "number")
    assert set(verdict) == {"correct", "reward", "gold_type", "rule", "explanation"}


def test_grade_takes_options_in_order_and_a_source(vqa: Any) -> None:
    options = ["--option", "2003", "--option", "2010"]
    assert "right (choice)" in vqa("grade", "--gold", "B", "--prediction", "2010", *options)[1]
    assert "wrong" in vqa("grade", "--gold", "1,000", "--prediction", "1000", "--source", "codes/text")[1]


def test_parse_prints_what_a_completion_is_worth(vqa: Any) -> None:
    expected = {"outcome": "valid", "format_reward": 1.0, "answer": "red", "steps": ["s"]}
    assert json.loads(vqa("parse", "--completion", GOOD, "--json")[1]) == expected
    assert "no_json, format reward 0.0: no_object" in vqa("parse", "--completion", "red")[1]


def test_files_give_one_line_for_each_line_in_order(vqa: Any, tmp_path: Path) -> None:
    rows = [
        {"gold": "1", "prediction": "one"},
        {"gold": ["1", "2"], "prediction": "B", "options": ["2", "1"]},
        {"gold": "red", "prediction": None, "options": None, "source": None, "metric": None},
        {"gold": "\ud800", "prediction": "\ud800x"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    code, out, _ = vqa("grade", "--file", str(file))
    assert code == 0
    assert [json.loads(line)["correct"] for line in out.splitlines()] == [True, True, False, False]
    code, out, _ = vqa("parse", "--file", "-", stdin=json.dumps({"completion": GOOD}).encode())
    assert json.loads(out)["answer"] == "red"


def test_steps_are_read_from_stdin_too(vqa: Any) -> None:
    rows = [{"id": 1, "steps": ["It is red."], "references": ["It is red."]}, {"id": "b", "steps": ["x"]}]
    lines = "\n\n".join(map(json.dumps, rows)).encode()
    code, out, _ = vqa("score-steps", "--file", "-", "--mode", "lexical", stdin=lines)
    scored = [json.loads(line) for line in out.splitlines()]
    assert (code, [(row["id"], row["f1"]) for row in scored]) == (0, [(1, 1.0), ("b", None)])


@pytest.mark.parametrize(
    ("verb", "line", "says"),
    [
        ("grade", b"{", "not JSON"),
        ("grade", b"\xff", "not JSON"),
        ("grade", b"[" * 100_000, "not JSON"),
        ("grade", b"[1]", "not a JSON object"),
        ("grade", b'{"prediction": "1"}', "gold must be a string"),
        ("grade", b'{"gold": 1, "prediction": "1"}', "gold must be a string"),
        ("grade", b'{"gold": [], "prediction": "1"}', "gold must be a string"),
        ("grade", b'{"gold": "1"}', "prediction must be a string, or null"),
        ("grade", b'{"gold": "1", "prediction": 1}', "prediction must be a string, or null"),
        ("grade", b'{"gold": "1", "prediction": "1", "options": "AB"}', "options must be a list"),
        ("grade", b'{"gold": "1", "prediction": "1", "source": 1}', "source and metric must be strings"),
        ("parse", b"{}", "completion must be a string"),
        ("score-steps", b"{", "not JSON"),
        ("score-steps", b"\xff", "not JSON"),
        ("score-steps", b"[" * 100_000, "not JSON"),
        ("score-steps", b"[1]", "not a JSON object"),
        ("score-steps", b'{"steps": "a"}', "steps must be a list of strings"),
        ("score-steps", b'{"references": [1]}', "references must be a list of strings"),
        ("score-steps", b'{"question": 1}', "question must be a string"),
        ("score-steps", b'{"id": NaN}', "id must be a string or a whole number"),
    ],
)
def test_a_bad_line_is_one_error_that_names_the_line(vqa: Any, verb: str, line: bytes, says: str) -> None:
    good = json.dumps({"gold": "1", "prediction": "1", "completion": GOOD}).encode()
    mode = ["--mode", "lexical"] if verb == "score-steps" else []
    code, out, error = vqa(verb, "--file", "-", *mode, stdin=good + b"\n" + line)
    assert (code, len(out.splitlines()), error.count("\n")) == (65, 0 if verb == "score-steps" else 1, 1)
    assert error.startswith("error: stdin, line 2: ")
    assert says in error


@pytest.mark.parametrize(
    "arguments",
    [
        ("grade",),
        ("grade", "--gold", "1"),
        ("grade", "--file", "-", "--gold", "1"),
        ("grade", "--file", "no-such-file"),
        ("parse",),
        ("parse", "--file", "-", "--completion", "x"),
        ("score-steps", "--file", "no-such-file", "--mode", "lexical"),
    ],
)
def test_arguments_that_make_no_sense_are_a_configuration_error(vqa: Any, arguments: tuple[str, ...]) -> None:
    code, _, error = vqa(*arguments)
    assert (code, error.count("\n")) == (78, 1)


def test_a_file_of_thousands_of_rows_is_graded(vqa: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    cases = [("3 dogs", "three"), ("B", "(b)"), ("red, blue", "blue and red"), ("March 5, 2010", "2010-03-05")]
    file.write_text("".join(json.dumps({"gold": g, "prediction": p}) + "\n" for g, p in cases * 1000))
    code, out, _ = vqa("grade", "--file", str(file))
    assert (code, out.count("\n")) == (0, 4000)
