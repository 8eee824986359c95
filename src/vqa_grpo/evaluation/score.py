"""Turn a prediction file into numbers, and say what a model that never looks at a picture would get."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.contract.completion import Outcome
from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import offered, question_text
from vqa_grpo.contract.verdict import prediction_schema
from vqa_grpo.evaluation.predict import question_type
from vqa_grpo.scoring.answer import grade, type_of

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 1000
Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution


@dataclass(frozen=True)
class TypeScores:
    """The rates over the questions of one type; None where there is nothing to take a rate of."""

    n: int
    format_rate: float | None
    accuracy: float | None
    accuracy_ci: list[float] | None
    accuracy_given_format: float | None


@dataclass(frozen=True)
class Scores(TypeScores):
    """What a prediction file is worth.

    `format_rate` counts completions that are the prompt's contract and nothing else. `accuracy` is strict: an answer
    that cannot be read is wrong; one with text around the object can be read. `accuracy_given_format` is the accuracy
    among the completions that `format_rate` counts. `reasoning_f1` is the mean over the rows with reference steps.
    `standard` is the mean of each standard metric over the rows whose source is reported in it.
    Every number is a plain int or float and never NaN, so that `as_dict()` is JSON.
    """

    by_type: dict[str, TypeScores]
    mean_completion_tokens: float | None
    reasoning_f1: float | None
    outcomes: dict[str, int]
    standard: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scores:
        by_type = {name: TypeScores(**scores) for name, scores in values["by_type"].items()}
        return cls(**{**values, "by_type": by_type})


@dataclass(frozen=True)
class BlindLevel:
    """Accuracy of the best answer that needs no picture; `by_type` has the types of the test rows."""

    n: int
    accuracy: float | None
    by_type: dict[str, float]


def score(predictions: Path | str | pa.Table) -> Scores:
    """Score a prediction file or table.

    Intervals are Wilson's (`wilson`), which takes the questions as independent. Questions about one picture are not
    quite that, and a bootstrap over pictures would be somewhat wider; a prediction does not say which picture it is
    about.
    """
    rows = read_predictions(predictions)
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["type"]].append(row)
    counted = Counter(row["outcome"] for row in rows)
    return Scores(
        **vars(_rates(rows)),
        by_type={name: _rates(groups[name]) for name in sorted(groups)},
        mean_completion_tokens=_mean([row["completion_tokens"] for row in rows]),
        reasoning_f1=_mean([row["reasoning_f1"] for row in rows if row["reasoning_f1"] is not None]),
        outcomes={outcome.value: counted[outcome.value] for outcome in Outcome},
        standard={
            name: statistics.fmean(row["metric_score"] for row in rows if row["metric"] == name)
            for name in sorted({row["metric"] for row in rows} - {"", None})
        },
    )


def read_predictions(predictions: Path | str | pa.Table, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a prediction file or table as dictionaries; without `columns`, those that numbers are made from."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = columns or [
        "metric",
        "metric_score",
        "id",
        "type",
        "outcome",
        "answer",
        "correct",
        "completion_tokens",
        "reasoning_f1",
        "gold",
    ]
    if isinstance(predictions, Path | str):
        try:
            return pq.read_table(predictions, columns=columns, schema=prediction_schema()).to_pylist()
        except pa.ArrowInvalid as error:
            why = " ".join(str(error).split())[:200]
            raise DataError(f"{predictions} is not a prediction file of `vqa-grpo evaluate`: {why}") from error
    return predictions.select(columns).to_pylist()


def wilson(successes: int, n: int, z: float = Z_95) -> list[float] | None:
    """Wilson's score interval of a rate, 95 % by default; None when n is 0.

    With p = successes / n, centre (p + z²/2n) / (1 + z²/n), half width z √(p(1-p)/n + z²/4n²) / (1 + z²/n).
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927);
    recommended over the normal interval by Brown, Cai and DasGupta, Statistical Science 16 (2001).

    >>> [round(bound, 4) for bound in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if n == 0:
        return None
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # At p = 0 and p = 1 a bound equals p; rounding must not push it past.
    return [min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))]


def blind_level(train_rows: Iterable[Mapping[str, Any]], test_rows: Iterable[Mapping[str, Any]]) -> BlindLevel:
    """The accuracy of always giving the commonest training answer to the same question text.

    The text includes the options, as the prompt shows them. A question that training never asked gets the commonest
    answer of its type, and a type that training never had the commonest answer of all. A model has learnt to look at
    pictures only as far as it is above this level. Takes data sets or plain rows; of a data set only the texts are
    read, and of the training rows a batch at a time is in memory, beside the counts.
    """
    questions = [
        (_text(row), _type(row), row["answer"], offered(row.get("choices"), row.get("options")))
        for row in _without_pictures(test_rows)
    ]
    by_text: dict[str, Counter[str]] = {text: Counter() for text, *_ in questions}
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    everything: Counter[str] = Counter()
    for row in _without_pictures(train_rows):
        if (answers := by_text.get(_text(row))) is not None:
            answers[row["answer"]] += 1
        by_type[_type(row)][row["answer"]] += 1
        everything[row["answer"]] += 1
    to_text = {text: _commonest(answers) for text, answers in by_text.items() if answers}
    to_type = {kind: _commonest(answers) for kind, answers in by_type.items()}
    to_any = _commonest(everything)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for text, kind, gold, options in questions:
        answer = to_text.get(text, to_type.get(kind, to_any))
        asked[kind] += 1
        right[kind] += grade(answer, [gold], options).correct
    n = asked.total()
    return BlindLevel(n, right.total() / n if n else None, {kind: right[kind] / asked[kind] for kind in sorted(asked)})


def _rates(rows: list[dict[str, Any]]) -> TypeScores:
    n = len(rows)
    correct = sum(row["correct"] for row in rows)
    valid = [row for row in rows if row["outcome"] == Outcome.VALID]
    return TypeScores(
        n=n,
        format_rate=len(valid) / n if n else None,
        accuracy=correct / n if n else None,
        accuracy_ci=wilson(correct, n),
        accuracy_given_format=sum(row["correct"] for row in valid) / len(valid) if valid else None,
    )


def _mean(values: list[Any]) -> float | None:
    finite = [float(value) for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def _without_pictures(rows: Any) -> Iterator[Mapping[str, Any]]:
    if not hasattr(rows, "select_columns"):
        yield from rows
        return
    wanted = ("question", "answer", "choices", "options", "source")
    texts = rows.select_columns([name for name in wanted if name in rows.column_names])
    for batch in texts.iter(batch_size=_BATCH_ROWS):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _text(row: Mapping[str, Any]) -> str:
    return question_text(row["question"], row.get("choices"), row.get("options"))


def _type(row: Mapping[str, Any]) -> str:
    gold_type = type_of(row["answer"], offered(row.get("choices"), row.get("options")))
    return question_type(row.get("source"), gold_type)


def _commonest(answers: Counter[str]) -> str | None:
    """Among equals the first in the alphabet, so that the order of the rows does not matter."""
    return min(answers, key=lambda answer: (-answers[answer], answer), default=None)
