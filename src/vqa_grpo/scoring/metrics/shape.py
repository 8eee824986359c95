"""What every metric here has in common: its signature, and the cases that are the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from vqa_grpo.contract.verdict import Verdict


class Metric(Protocol):
    def __call__(self, prediction: str | None, golds: Sequence[str], options: Sequence[str] = ()) -> Verdict: ...


class Scored(NamedTuple):
    """A metric's value, which of its rules gave it, and why. `correct` is None where half a point decides."""

    reward: float
    rule: str
    why: str
    correct: bool | None = None


def metric(
    name: str, gold_type: Callable[[list[str], list[str]], str]
) -> Callable[[Callable[[str, list[str], list[str]], Scored]], Metric]:
    """Make a metric out of a scoring function that only ever sees a readable answer and at least one gold."""

    def wrap(score: Callable[[str, list[str], list[str]], Scored]) -> Metric:
        def graded(prediction: str | None, golds: Sequence[str], options: Sequence[str] = ()) -> Verdict:
            # A bare string is a sequence of letters, and would quietly become one gold for each of them.
            accepted = [golds] if isinstance(golds, str) else [str(gold) for gold in golds]
            offered = [str(option) for option in options]
            kind = gold_type(accepted, offered) if accepted else "none"
            if prediction is None:
                return Verdict(False, 0.0, kind, "no_answer", "the completion holds no answer that can be read")
            if not accepted:
                return Verdict(False, 0.0, kind, f"{name}:no_gold", "there is no gold answer to compare with")
            scored = score(prediction, accepted, offered)
            correct = scored.reward >= 0.5 if scored.correct is None else scored.correct
            return Verdict(correct, scored.reward, kind, f"{name}:{scored.rule}", scored.why)

        graded.__name__ = graded.__qualname__ = name
        graded.__doc__ = score.__doc__
        return graded

    return wrap


def shown(text: str, limit: int = 80) -> str:
    """A text as an explanation quotes it: escaped, so that it prints anywhere, and short."""
    return repr(text if len(text) <= limit else text[:limit] + "…")
