"""Match F1: how far a model's reasoning steps agree with the reference steps.

Each reference is matched by at most one step and each step matches at most one reference; among all such pairings the
one with the most pairs counts, and among those the one with the greatest similarity (the published reference matches
greedily and misses pairs in one case of five). Steps in conflict never match, however similar their embeddings; a
step said twice, or one that only repeats the question, matches nothing and still counts, so padding costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.scoring.steps import crystal
from vqa_grpo.scoring.steps.conflicts import conflict
from vqa_grpo.scoring.steps.encoder import DEFAULT_ENCODER, TextEncoder, require, shared
from vqa_grpo.scoring.steps.text import SAME_WORDING, clean, content, is_bare, is_echo, overlap, wording, words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Mode = Literal["semantic", "lexical", "crystal"]
Item = tuple[Sequence[str], Sequence[str], str]

# Cosine of all-MiniLM-L6-v2 from which two steps say the same, and share of common words. README.md: how chosen.
SEMANTIC_THRESHOLD = 0.6
LEXICAL_THRESHOLD = 0.6
# What a completion may cost; 400 one-letter steps from each of 64 completions would be a minute of encoding.
MAX_STEPS = 32
MAX_STEP_CHARACTERS = 512
# Data are trusted further than completions: published references have up to 42 steps.
MAX_REFERENCES = 64
# A reference worded this much alike (shared content words over those of the shorter one) is what a step contradicts.
ALIKE = 0.5


@dataclass(frozen=True)
class StepScore:
    """The agreement of one completion's steps with the references.

    `length_controlled` is f1 − 2k/(k+N) for k steps and N references: how far F1 stays below the value that it takes
    when precision is 1. Over 16 published checkpoints 2k/(k+N) alone explains 99 % of the variance of Match F1, so
    compare models by this figure wherever they differ in the number of steps. It is never positive for k ≤ N.
    """

    precision: float
    recall: float
    f1: float
    steps: int
    references: int
    matched: int
    duplicates: int
    echoes: int
    conflicts: int
    length_controlled: float
    order: float | None = None

    @property
    def ordered_f1(self) -> float:
        """F1 with 30 % of it paid for order, where order was asked for; else F1."""
        return (
            self.f1 if self.order is None else self.f1 * (1 - crystal.ORDER_WEIGHT + crystal.ORDER_WEIGHT * self.order)
        )


def match_f1(
    steps: Sequence[str],
    references: Sequence[str],
    question: str = "",
    *,
    order: bool = False,
    mode: Mode = "semantic",
    encoder: str | TextEncoder | None = None,
) -> StepScore | None:
    """Precision, recall and F1 of the matched steps; None without references, since there is nothing to match.

    >>> match_f1(["A red circle is shown."], ["A red circle is shown.", "It is round."], mode="lexical").recall
    0.5
    >>> match_f1(["A green circle is shown."], ["A red circle is shown."], mode="lexical").conflicts
    1
    """
    return match_many([(steps, references, question)], order=order, mode=mode, encoder=encoder)[0]


def match_many(
    items: Sequence[Item],
    *,
    order: bool = False,
    mode: Mode = "semantic",
    encoder: str | TextEncoder | None = None,
) -> list[StepScore | None]:
    """`match_f1` of each (steps, references, question), with one call of the encoder for all of them.

    Without any references, or in lexical mode, no encoder is loaded.
    """
    if mode not in get_args(Mode):
        raise ConfigurationError(f"reasoning match mode {mode!r}: use one of {', '.join(get_args(Mode))}")
    if mode == "crystal":
        return _crystal(items, order, encoder)
    cases = [_Case(steps, references, question) for steps, references, question in items]
    vectors: dict[str, NDArray[np.float32]] = {}
    if mode == "semantic" and any(case.references for case in cases):
        # Asked for even where nothing is left to encode: whether a run has its encoder must not hang on its rows.
        vectors = _encoded(_encoder(encoder), [text for case in cases for text in case.texts()])
    return [case.score(mode, vectors, order) if case.references else None for case in cases]


def check(mode: Mode = "semantic", encoder: str | TextEncoder | None = None) -> None:
    """ConfigurationError, with the fix, where this mode cannot work here; loads nothing."""
    if mode != "lexical" and (encoder is None or isinstance(encoder, str)):
        require(encoder or DEFAULT_ENCODER)


def _encoder(encoder: str | TextEncoder | None) -> TextEncoder:
    if encoder is None or isinstance(encoder, str):
        require(encoder or DEFAULT_ENCODER)
        return shared(encoder or DEFAULT_ENCODER)
    return encoder


def _encoded(encoder: TextEncoder, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, encoder.encode(distinct), strict=True)) if distinct else {}


class _Case:
    """One completion: which of its steps may match which references, before any similarity is known.

    Steps of one wording form a unit, which matches as one step, and only what all of its members match: saying a
    thing twice can then never help, whichever of the two wordings is the better one, and the order of the steps does
    not decide which of them is the original.
    """

    def __init__(self, steps: Sequence[str], references: Sequence[str], question: str) -> None:
        self.references = [
            text for text in (clean(r, MAX_STEP_CHARACTERS) for r in references[:MAX_REFERENCES]) if text
        ]
        self.steps = [clean(step, MAX_STEP_CHARACTERS) for step in steps[:MAX_STEPS]] if self.references else []
        question = clean(question, 4 * MAX_STEP_CHARACTERS)
        echoes = {i for i, step in enumerate(self.steps) if step and is_echo(step, question)}
        spoken = [i for i, step in enumerate(self.steps) if step and i not in echoes]
        self.echoes = len(echoes)
        self.units = _units(self.steps, spoken)
        self.duplicates = len(spoken) - len(self.units)
        self.allowed = [
            [all(_comparable(self.steps[i], reference) for i in unit) for reference in self.references]
            for unit in self.units
        ]

    def texts(self) -> list[str]:
        """What must be encoded. The guard went first: a step that may match nothing never is."""
        found = [self.steps[i] for unit, row in zip(self.units, self.allowed, strict=True) if any(row) for i in unit]
        columns = zip(*self.allowed, strict=True) if self.units else ()
        return found + [text for text, column in zip(self.references, columns, strict=False) if any(column)]

    def score(self, mode: Mode, vectors: dict[str, NDArray[np.float32]], order: bool) -> StepScore:
        pairs = self._pairs(mode, vectors)
        k, n, matched = len(self.steps), len(self.references), len(pairs)
        f1 = 2 * matched / (k + n)
        return StepScore(
            precision=matched / k if k else 0.0,
            recall=matched / n,
            f1=f1,
            steps=k,
            references=n,
            matched=matched,
            duplicates=self.duplicates,
            echoes=self.echoes,
            conflicts=self._conflicts({unit for unit, _ in pairs}),
            length_controlled=f1 - 2 * k / (k + n),
            order=crystal.in_order([(self.units[unit][0], j) for unit, j in pairs]) if order else None,
        )

    def _pairs(self, mode: Mode, vectors: dict[str, NDArray[np.float32]]) -> list[tuple[int, int]]:
        import numpy as np
        from scipy.optimize import linear_sum_assignment

        if not any(any(row) for row in self.allowed):
            return []
        allowed = np.array(self.allowed, dtype=bool)
        similarity = self._semantic(vectors) if mode == "semantic" else self._lexical()
        good = allowed & (similarity >= (SEMANTIC_THRESHOLD if mode == "semantic" else LEXICAL_THRESHOLD))
        # One more pair is worth more than any similarity, which is at most 1 for each pair.
        worth = np.where(good, min(good.shape) + 1.0 + similarity, 0.0)
        rows, columns = linear_sum_assignment(worth, maximize=True)
        return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if good[i, j]]

    def _semantic(self, vectors: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        import numpy as np

        nothing = np.zeros_like(next(iter(vectors.values())))
        references = np.stack([vectors.get(text, nothing) for text in self.references])
        rows = []
        for unit in self.units:
            cosines = crystal.similarities(np.stack([vectors.get(self.steps[i], nothing) for i in unit]), references)
            rows.append(np.nan_to_num(cosines.astype(np.float64)).min(axis=0))
        return np.stack(rows)

    def _lexical(self) -> NDArray[np.float64]:
        import numpy as np

        return np.array(
            [
                [min(_overlap(self.steps[i], reference) for i in unit) for reference in self.references]
                for unit in self.units
            ]
        )

    def _conflicts(self, matched: set[int]) -> int:
        """Unmatched units that contradict a reference of like wording."""
        return sum(
            any(
                not allowed and any(_alike(self.steps[i], reference) for i in unit)
                for allowed, reference in zip(row, self.references, strict=True)
            )
            for at, (unit, row) in enumerate(zip(self.units, self.allowed, strict=True))
            if at not in matched
        )


def _units(steps: Sequence[str], spoken: Sequence[int]) -> list[list[int]]:
    """Groups of steps that say the same in nearly the same words, each in order.

    The groups stand in the order of their texts: where two assignments are worth the same, the order of the steps must
    not choose between them.
    """
    units: list[list[int]] = []
    for i in spoken:
        same = [unit for unit in units if any(_same_wording(steps[i], steps[j]) for j in unit)]
        units = [unit for unit in units if unit not in same] + [sorted([i, *(j for unit in same for j in unit)])]
    return sorted(units, key=lambda unit: min(steps[i] for i in unit))


def _same_wording(a: str, b: str) -> bool:
    return a == b or (overlap(wording(a), wording(b)) >= SAME_WORDING and conflict(a, b) is None)


def _overlap(a: str, b: str) -> float:
    return overlap(frozenset(words(a)), frozenset(words(b)))


def _comparable(a: str, b: str) -> bool:
    """Not in conflict; and where one of them is a single word, the other must say it too."""
    if conflict(a, b) is not None:
        return False
    if a == b or not (is_bare(a) or is_bare(b)):
        return True
    first, second = wording(a), wording(b)
    return bool(first and second) and (first <= second or second <= first)


def _alike(a: str, b: str) -> bool:
    first, second = content(a), content(b)
    shared = len(first & second)
    return shared > 0 and shared >= ALIKE * min(len(first), len(second))


def _crystal(items: Sequence[Item], order: bool, encoder: str | TextEncoder | None) -> list[StepScore | None]:
    """No caps, no cleaning, no guard: as published. An empty list of references is None here, an error there."""
    wanted = [(list(steps), list(references)) for steps, references, _ in items]
    if not any(references for _, references in wanted):
        return [None] * len(items)
    model = _encoder(encoder)
    vectors = _encoded(model, [t for steps, references in wanted if references for t in (*steps, *references)])
    threshold = crystal.THRESHOLDS.get(model.name, crystal.OTHER_MODELS)
    return [_crystal_score(s, r, vectors, threshold, order) if r else None for s, r in wanted]


def _crystal_score(
    steps: list[str], references: list[str], vectors: dict[str, NDArray[np.float32]], threshold: float, order: bool
) -> StepScore:
    import numpy as np

    pairs: list[tuple[int, int]] = []
    if steps:
        matrix = crystal.similarities(np.stack([vectors[t] for t in steps]), np.stack([vectors[t] for t in references]))
        pairs = crystal.greedy(matrix, threshold)
    k, n, matched = len(steps), len(references), len(pairs)
    precision, recall = (matched / k if k else 0.0), matched / n
    # The harmonic mean as it is written there: 2·matched/(k+N) differs from it in the last bit.
    f1 = 2 * (precision * recall) / (precision + recall) if matched else 0.0
    in_order = crystal.in_order(pairs) if order else None
    return StepScore(precision, recall, f1, k, n, matched, 0, 0, 0, f1 - 2 * k / (k + n), in_order)
