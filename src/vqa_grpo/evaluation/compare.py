"""Compare two models on the same questions, row by row."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.contract.failure import DataError
from vqa_grpo.evaluation.score import read_predictions

if TYPE_CHECKING:
    import pyarrow as pa

RESAMPLES = 2_000


@dataclass(frozen=True)
class TypeGain:
    """The paired difference in strict accuracy, tuned minus base, over the questions of one type.

    `tuned_only` and `base_only` are McNemar's counts: questions that only the one model got right. Of the gain,
    `from_format` comes from questions where one of the two answers could not be read, `from_answers` from questions
    where both could: with u = the answer can be read and c = it is right (c <= u), b for base and t for tuned,

        gain         = sum(c_t - c_b) / n
        from_answers = sum((c_t - c_b) u_b u_t) / n
        from_format  = sum(c_t (1 - u_b) - c_b (1 - u_t)) / n

    and from_format + from_answers = gain, because c_t = c_t u_t and c_b = c_b u_b. The counts behind them
    (`*_rows`) add up exactly; the rates do up to floating point.
    """

    n: int
    gain: float | None
    gain_ci: list[float] | None
    both_right: int
    base_only: int
    tuned_only: int
    both_wrong: int
    p_value: float
    from_format: float | None
    from_answers: float | None
    from_format_rows: int
    from_answers_rows: int


@dataclass(frozen=True)
class Comparison(TypeGain):
    by_type: dict[str, TypeGain]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        by_type = {name: TypeGain(**gain) for name, gain in values["by_type"].items()}
        return cls(**{**values, "by_type": by_type})


def compare(base: Path | str | pa.Table, tuned: Path | str | pa.Table, *, seed: int = 0) -> Comparison:
    """Compare two prediction files. Raises DataError unless both answer the same questions, each once."""
    pairs = _pairs(_by_id(base, "base"), _by_id(tuned, "tuned"))
    groups: dict[str, list[_Pair]] = defaultdict(list)
    for kind, pair in pairs:
        groups[kind].append(pair)
    overall = _gain([pair for _, pair in pairs], seed)
    return Comparison(**vars(overall), by_type={kind: _gain(groups[kind], seed) for kind in sorted(groups)})


def paired_interval(tuned_only: int, base_only: int, n: int, seed: int = 0) -> list[float] | None:
    """The percentile bootstrap 95 % interval of the mean paired difference (Efron and Tibshirani 1993, chapter 13).

    A row's difference is +1, -1 or 0, so drawing n rows with replacement is one draw from the multinomial
    distribution over these three: exactly the bootstrap, without resampling rows one by one.
    """
    import numpy as np

    if n == 0:
        return None
    shares = np.array([tuned_only, base_only, n - tuned_only - base_only]) / n
    draws = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [0.025, 0.975])
    return [float(low), float(high)]


def mcnemar(base_only: int, tuned_only: int) -> float:
    """McNemar's exact two-sided p value: were the questions that only one model got right split by a fair coin?

    min(1, 2 P(X <= min(base_only, tuned_only))) with X ~ Binomial(base_only + tuned_only, 1/2); Q. McNemar,
    Psychometrika 12 (1947), in its exact form.

    >>> round(mcnemar(1, 5), 5)
    0.21875
    """
    n, fewer = base_only + tuned_only, min(base_only, tuned_only)
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


@dataclass(frozen=True)
class _Pair:
    base_right: bool
    tuned_right: bool
    base_read: bool
    tuned_read: bool


def _by_id(predictions: Path | str | pa.Table, name: str) -> dict[str, dict[str, Any]]:
    rows = read_predictions(predictions, ["id", "type", "gold", "answer", "correct"])
    found = {row["id"]: row for row in rows}
    if len(found) != len(rows):
        raise DataError(f"the {name} predictions answer {len(rows) - len(found)} questions more than once: ids repeat")
    return found


def _pairs(base: dict[str, dict[str, Any]], tuned: dict[str, dict[str, Any]]) -> list[tuple[str, _Pair]]:
    if base.keys() != tuned.keys():
        only_base, only_tuned = sorted(base.keys() - tuned.keys()), sorted(tuned.keys() - base.keys())
        raise DataError(
            "the two prediction files answer different questions: "
            f"{len(only_base)} only in base (such as {only_base[:3]}), "
            f"{len(only_tuned)} only in tuned (such as {only_tuned[:3]}); predict both on one sample"
        )
    pairs = []
    for key in sorted(base):  # by id, so that the order of the files does not matter
        b, t = base[key], tuned[key]
        if (b["gold"], b["type"]) != (t["gold"], t["type"]):
            raise DataError(f"question {key!r} has another gold answer or type in the two files: not one data set")
        readable = b["answer"] is not None, t["answer"] is not None
        pairs.append((b["type"], _Pair(b["correct"] and readable[0], t["correct"] and readable[1], *readable)))
    return pairs


def _gain(pairs: list[_Pair], seed: int) -> TypeGain:
    n = len(pairs)
    tuned_only = sum(pair.tuned_right and not pair.base_right for pair in pairs)
    base_only = sum(pair.base_right and not pair.tuned_right for pair in pairs)
    both_right = sum(pair.base_right and pair.tuned_right for pair in pairs)
    answers = sum(pair.tuned_right - pair.base_right for pair in pairs if pair.base_read and pair.tuned_read)
    form = sum(pair.tuned_right for pair in pairs if not pair.base_read)
    form -= sum(pair.base_right for pair in pairs if not pair.tuned_read)
    return TypeGain(
        n=n,
        gain=(tuned_only - base_only) / n if n else None,
        gain_ci=paired_interval(tuned_only, base_only, n, seed),
        both_right=both_right,
        base_only=base_only,
        tuned_only=tuned_only,
        both_wrong=n - both_right - base_only - tuned_only,
        p_value=mcnemar(base_only, tuned_only),
        from_format=form / n if n else None,
        from_answers=answers / n if n else None,
        from_format_rows=form,
        from_answers_rows=answers,
    )
