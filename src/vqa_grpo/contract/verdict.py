"""What a grader says about one answer, and what one evaluated question looks like on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """`gold_type` is fixed from the gold answer and the options, never from the prediction.

    `seen` and `expected` are the normalised forms that were compared, one of `expected` for each gold answer tried.
    """

    correct: bool
    reward: float
    gold_type: str
    rule: str
    explanation: str
    seen: str = ""
    expected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """One row of a prediction file: what was asked, what came back, what it is worth.

    `type` is the question type that reports group by; `reasoning_f1` is None where the row has no reference steps.
    `metric` is the standard metric of the row's source, empty where it has none. Lengths are in tokens of the
    model's own tokenizer.
    """

    id: str
    type: str
    question: str
    gold: str
    completion: str
    completion_tokens: int
    outcome: str
    format_reward: float
    answer: str | None
    steps: list[str]
    correct: bool
    reward: float
    gold_type: str
    rule: str
    explanation: str
    reasoning_f1: float | None
    metric: str = ""
    metric_score: float | None = None


def prediction_schema() -> Any:
    """The Arrow schema of a prediction file, one column for each field of `Prediction`."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    return pa.schema(
        {
            "id": text,
            "type": text,
            "question": text,
            "gold": text,
            "completion": text,
            "completion_tokens": pa.int64(),
            "outcome": text,
            "format_reward": number,
            "answer": text,
            "steps": pa.list_(text),
            "correct": pa.bool_(),
            "reward": number,
            "gold_type": text,
            "rule": text,
            "explanation": text,
            "reasoning_f1": number,
            "metric": text,
            "metric_score": number,
        }
    )
