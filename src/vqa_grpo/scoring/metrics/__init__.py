"""The field's standard metrics, by name and by source, all with one signature. README.md lists where they differ.

Importing this imports no library: `anls-star` and `math-verify` are asked for when a metric first needs them.

>>> METRICS["chartqa"]("4.1", ["4"], []).correct
True
>>> metric_for("DocVQA/validation"), metric_for("easy-vqa")
('anls', '')
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vqa_grpo.contract.verdict import Verdict
from vqa_grpo.scoring.metrics import anls, chartqa, crystal, math_equivalence, mmmu, vqa_soft

METRICS: dict[str, Callable[[str | None, Sequence[str], Sequence[str]], Verdict]] = {
    "vqa_soft": vqa_soft.vqa_soft,
    "textvqa": vqa_soft.textvqa,
    "anls": anls.anls,
    "anls_star": anls.anls_star,
    "chartqa": chartqa.chartqa,
    "mmmu": mmmu.mmmu,
    "math": math_equivalence.math,
    "crystal": crystal.crystal,
}

METRIC_OF_SOURCE: dict[str, str] = {
    "vqav2": "vqa_soft",
    "okvqa": "vqa_soft",
    "textvqa": "textvqa",
    "docvqa": "anls",
    "infovqa": "anls",
    "chartqa": "chartqa",
    "mmmu": "mmmu",
    "mathvista": "math",
    "mathvision": "math",
}


def metric_for(source: str) -> str:
    """The metric that a source is reported in, or "" for a source that is not known; what follows a "/" is ignored."""
    return METRIC_OF_SOURCE.get(source.partition("/")[0].strip().lower(), "")
