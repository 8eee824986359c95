"""ChartQA's relaxed accuracy: numbers within 5 percent, everything else equal but for case.

Rules: `relaxed_correctness` of google-research/pix2struct, as lmms-eval (`tasks/chartqa/utils.py`) and Qwen-VL carry
it. Its holes are kept, since they are what published numbers measure: 2003 passes for 2010, "1,000" is no number.
"""

from __future__ import annotations

from vqa_grpo.scoring.metrics.shape import Scored, metric, shown

TOLERANCE = 0.05


def number(text: str) -> float | None:
    """What Python reads as a number, a trailing percent sign dividing it by a hundred.

    >>> number("12.5%"), number("1,000"), number("5 cm")
    (0.125, None, None)
    """
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(prediction: str, gold: str) -> tuple[bool, str]:
    """Whether an answer passes, and by which rule. A gold of zero has no percentages, and is compared as text."""
    seen, wanted = number(prediction), number(gold)
    if seen is not None and wanted:
        return abs(seen - wanted) / abs(wanted) <= TOLERANCE, "within_5_percent"
    return prediction.lower() == gold.lower(), "same_text"


@metric("chartqa", lambda golds, options: "text" if number(golds[0]) is None else "number")
def chartqa(prediction: str, golds: list[str], options: list[str]) -> Scored:
    """1 when the answer passes for any gold, else 0."""
    outcomes = [relaxed(prediction, gold) for gold in golds]
    at = next((at for at, (passed, _) in enumerate(outcomes) if passed), 0)
    passed, rule = outcomes[at]
    return Scored(float(passed), rule, f"{shown(prediction)} {'passes' if passed else 'fails'} for {shown(golds[at])}")
