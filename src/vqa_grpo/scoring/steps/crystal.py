"""The published reference's matching, crystal-metrics 0.2.0, for comparison with published numbers.

Written from its behaviour (MIT, `crystal_metrics.reasoning`), and held against it in tests: same thresholds, strict
comparison, pairs taken greedily from the most similar down, equal similarities from the larger indices down. Nothing
guards against contradictions, repetition or length here; do not train on it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

THRESHOLDS = {
    "all-MiniLM-L6-v2": 0.35,
    "all-MiniLM-L12-v2": 0.37,
    "all-mpnet-base-v2": 0.38,
    "all-distilroberta-v1": 0.35,
    "paraphrase-multilingual-MiniLM-L12-v2": 0.33,
    "paraphrase-multilingual-mpnet-base-v2": 0.35,
}
OTHER_MODELS = 0.45
# The weight of order in Ordered Match F1 that the reference recommends.
ORDER_WEIGHT = 0.3


def similarities(steps: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines, in the reference's order of operations."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        left = steps / np.linalg.norm(steps, axis=1, keepdims=True)
        right = references / np.linalg.norm(references, axis=1, keepdims=True)
    return np.dot(left, right.T)


def greedy(matrix: NDArray[np.float32], threshold: float) -> list[tuple[int, int]]:
    """Pairs of step and reference, the most similar first."""
    rows, columns = (matrix > threshold).nonzero()
    candidates = sorted(((matrix[i, j], int(i), int(j)) for i, j in zip(rows, columns, strict=True)), reverse=True)
    steps: set[int] = set()
    references: set[int] = set()
    pairs = []
    for _, i, j in candidates:
        if i not in steps and j not in references:
            steps.add(i)
            references.add(j)
            pairs.append((i, j))
    return pairs


def in_order(pairs: list[tuple[int, int]]) -> float:
    """The share of matched steps in the longest run that follows the references' order; 1 for fewer than two.

    >>> in_order([(0, 0), (1, 2), (2, 1)])
    0.6666666666666666
    """
    if len(pairs) < 2:
        return 1.0
    tails: list[int] = []
    for step, _ in sorted(pairs, key=lambda pair: pair[1]):
        at = bisect_left(tails, step)
        tails[at : at + 1] = [step]
    return len(tails) / len(pairs)
