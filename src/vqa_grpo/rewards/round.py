"""One round's completions, read, graded and matched once for all three rewards.

TRL calls each reward with the same completions and columns. Each part is worked out when a reward first asks for it,
and equal completions of one question, common late in training, are worked out once. A row that cannot be scored
holds the exception in its place, so that it costs nobody else anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, partial
from typing import Any, TypeAlias, TypeVar

from vqa_grpo.contract.completion import Completion, parse
from vqa_grpo.contract.record import offered
from vqa_grpo.contract.verdict import Verdict
from vqa_grpo.rewards.guard import text_of
from vqa_grpo.rewards.settings import RewardSettings
from vqa_grpo.scoring import judge
from vqa_grpo.scoring.answer import grade
from vqa_grpo.scoring.steps import StepScore, match_many

T = TypeVar("T")
Either: TypeAlias = T | Exception
StepItem: TypeAlias = tuple[tuple[str, ...], tuple[str, ...], str]
COLUMNS = ("answer", "choices", "options", "source", "question", "reference_steps", "id")


class Round:
    """The rows of one call, with everything that is known of them."""

    def __init__(
        self,
        completions: Sequence[Any],
        columns: dict[str, Any],
        settings: RewardSettings | None = None,
        second_opinion: judge.Judge | None = None,
    ) -> None:
        self.settings = settings or RewardSettings()
        self.completions = completions
        self.columns = {name: columns[name] for name in COLUMNS if isinstance(columns.get(name), list)}
        self.texts = texts_of(completions)
        self.judge_counts: dict[str, int] = {}
        self._judge = second_opinion

    def serves(self, completions: Sequence[Any], columns: dict[str, Any]) -> bool:
        """Whether a call is about this round: the same list, with nothing changed in it or in the columns."""
        if completions is not self.completions or list(map(str, texts_of(completions))) != list(map(str, self.texts)):
            return False
        return all(columns.get(name) == self.columns.get(name) for name in COLUMNS)

    def value(self, name: str, row: int, default: Any = None) -> Any:
        column = self.columns.get(name, ())
        return column[row] if row < len(column) else default

    @cached_property
    def parsed(self) -> list[Either[Completion]]:
        memo: dict[Hashable, Either[Completion]] = {}
        return [_once(memo, str(text), partial(_parse, text)) for text in self.texts]

    @cached_property
    def verdicts(self) -> list[Either[Verdict]]:
        """The rules' verdicts, changed by the judge where there is one and the rules are unsure."""
        memo: dict[Hashable, Either[Verdict]] = {}
        ruled = [_once(memo, self._key(row), partial(self._grade, row)) for row in range(len(self.texts))]
        return self._judged(ruled) if self._judge else ruled

    @cached_property
    def matches(self) -> list[Either[StepScore | None]]:
        """Each row's match with its reference steps; None where there are none.

        One call for the whole round, so that the encoder gets one batch. Where that fails, each row is tried alone: if
        one completion broke it, it costs nobody else their reward. Raises if no row can be matched, as without encoder.
        """
        memo: dict[Hashable, Either[StepItem]] = {}
        items = [_once(memo, self._key(row), partial(self._item, row)) for row in range(len(self.texts))]
        usable = list(dict.fromkeys(item for item in items if not isinstance(item, Exception)))
        scores: dict[Any, Either[StepScore | None]]
        try:
            scores = dict(zip(usable, self._match(usable), strict=True))
        except Exception:
            scores = {item: _attempt(partial(self._match_one, item)) for item in usable}
            if all(isinstance(score, Exception) for score in scores.values()):
                raise
        return [item if isinstance(item, Exception) else scores[item] for item in items]

    def golds(self, row: int) -> tuple[str, ...]:
        """Raises TypeError or ValueError for an answer column that holds no gold answer."""
        answer = self.value("answer", row)
        golds = (answer,) if isinstance(answer, str) else tuple(answer)
        if not golds or not all(isinstance(gold, str) for gold in golds):
            raise ValueError(f"the answer column holds no text: {answer!r}")
        return golds

    def references(self, row: int) -> tuple[str, ...]:
        """Raises TypeError for a column that holds something else than texts."""
        steps = self.value("reference_steps", row) or ()
        steps = (steps,) if isinstance(steps, str) else tuple(steps)
        if not all(isinstance(step, str) for step in steps):
            raise TypeError(f"reference_steps holds something else than texts: {steps!r:.200}")
        return steps

    def question(self, row: int) -> str:
        return str(self.value("question", row) or "")

    def _key(self, row: int) -> Hashable:
        """Equal for rows of the same question with the same completion."""
        return str(self.texts[row]), self.group(row)

    def group(self, row: int) -> str:
        """Equal for the completions of one question, as far as this process sees them."""
        return repr([self.value(name, row) for name in COLUMNS])

    def _grade(self, row: int) -> Verdict:
        options = offered(self.value("choices", row), self.value("options", row))
        source = str(self.value("source", row) or "")
        return grade(_no_exception(self.parsed[row]).answer, self.golds(row), options, source)

    def _match(self, items: Sequence[StepItem]) -> list[StepScore | None]:
        mode, encoder = self.settings.step_match
        return match_many(items, mode=mode, encoder=encoder)

    def _match_one(self, item: StepItem) -> StepScore | None:
        return self._match([item])[0]

    def _item(self, row: int) -> StepItem:
        return _no_exception(self.parsed[row]).steps, self.references(row), self.question(row)

    def _judged(self, ruled: list[Either[Verdict]]) -> list[Either[Verdict]]:
        asked: dict[int, judge.Item] = {}
        for row, (verdict, parsed) in enumerate(zip(ruled, self.parsed, strict=True)):
            if isinstance(verdict, Exception) or isinstance(parsed, Exception) or parsed.answer is None:
                continue
            golds = self.golds(row)
            if judge.unsure(verdict, parsed.answer, golds):
                asked[row] = judge.Item(self.question(row), golds, parsed.answer)
        assert self._judge is not None
        before = self._judge.counts.copy()
        opinions = dict(zip(asked, self._judge.ask_many(list(asked.values())), strict=True))
        self.judge_counts = dict(self._judge.counts - before)
        # GRPO compares the completions of one question. If the judge answered for some and fell silent for others,
        # the same words would be paid by chance: then the rules speak for all of them.
        silent = {self.group(row) for row, opinion in opinions.items() if not opinion.reached}
        judged = list(ruled)
        for row, opinion in opinions.items():
            verdict = _no_exception(ruled[row])
            if opinion.correct and self.group(row) not in silent:
                why = f"the judge calls it right; by the rules alone: {verdict.explanation}"
                judged[row] = dataclasses.replace(verdict, correct=True, reward=1.0, rule="judge", explanation=why)
        return judged


def texts_of(completions: Sequence[Any]) -> list[Either[str]]:
    return [_attempt(partial(_text, completion)) for completion in completions]


def _text(completion: Any) -> str:
    text = text_of(completion)
    if not isinstance(text, str):
        raise TypeError(f"a completion is {type(text).__name__}, not text")
    return text


def _parse(text: Either[str]) -> Completion:
    return parse(_no_exception(text))


def _once(memo: dict[Hashable, Either[T]], key: Hashable, make: Callable[[], T]) -> Either[T]:
    if key not in memo:
        memo[key] = _attempt(make)
    return memo[key]


def _attempt(make: Callable[[], T]) -> Either[T]:
    try:
        return make()
    except Exception as error:
        return error


def _no_exception(value: Either[T]) -> T:
    if isinstance(value, Exception):
        raise value
    return value
