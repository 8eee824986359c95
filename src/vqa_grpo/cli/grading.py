"""`grade` and `parse`: one case from the command line, or a JSONL file of them at thousands of rows a second."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from vqa_grpo.contract.completion import Completion
from vqa_grpo.contract.completion import parse as parse_completion
from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.verdict import Verdict
from vqa_grpo.scoring.answer import grade

Row = dict[str, Any]


def graded(row: Row) -> Row:
    golds = row.get("gold")
    golds = [golds] if isinstance(golds, str) else golds
    prediction = row.get("prediction")
    options = row.get("options")
    options = [] if options is None else options
    if not _strings(golds) or not golds:
        raise DataError("gold must be a string, or a list with at least one string")
    if "prediction" not in row or not isinstance(prediction, str | None):
        raise DataError("prediction must be a string, or null where the model gave no answer")
    if not _strings(options):
        raise DataError("options must be a list of strings")
    source, metric = row.get("source") or "", row.get("metric") or ""
    if not isinstance(source, str) or not isinstance(metric, str):
        raise DataError("source and metric must be strings")
    return verdict_row(grade(prediction, golds, options, source, metric))


def parsed(row: Row) -> Row:
    text = row.get("completion")
    if not isinstance(text, str):
        raise DataError("completion must be a string")
    return completion_row(parse_completion(text))


def verdict_row(verdict: Verdict) -> Row:
    return {name: getattr(verdict, name) for name in ("correct", "reward", "gold_type", "rule", "explanation")}


def completion_row(completion: Completion) -> Row:
    return {
        "outcome": completion.outcome.value,
        "format_reward": completion.format_reward,
        "answer": completion.answer,
        "steps": list(completion.steps),
    }


def each_line(file: str, work: Callable[[Row], Row]) -> None:
    """JSONL in, JSONL out to stdout, one line for each line; "-" reads stdin. The first bad line ends it."""
    for where, row in read_rows(file):
        try:
            result = work(row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from None
        sys.stdout.write(json.dumps(result, sort_keys=True, allow_nan=False) + "\n")


def read_rows(file: str) -> Iterator[tuple[str, Row]]:
    """Each object of a JSONL file, or of stdin for "-", with its place for an error's text; blank lines are skipped.

    Raises ConfigurationError for a file that cannot be read, DataError for a line that is not UTF-8 or no JSON object.
    """
    name = "stdin" if file == "-" else file
    try:
        stream = nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb")  # noqa: SIM115 - the with is below
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    with stream as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{name}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON: {str(error)[:120]}") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: not a JSON object")
            yield where, row


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
