"""The crystal mode against the published reference, crystal-metrics 0.2.0, with one encoder for both."""

import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vqa_grpo.scoring.steps import crystal, match_many
from vqa_grpo.scoring.steps.encoder import _packaged, shared

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text(encoding="utf-8"))
SENTENCES = sorted({sentence for pairs in PAIRS.values() for pair in pairs for sentence in pair})


def test_equal_similarities_are_taken_from_the_larger_indices_and_the_threshold_itself_is_no_match() -> None:
    matrix = np.array([[0.5, 0.5], [0.5, 0.35]], np.float32)
    assert crystal.greedy(matrix, 0.35) == [(1, 0), (0, 1)]
    assert crystal.greedy(np.array([[0.35]], np.float32), 0.35) == []


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The package itself: from VQA_GRPO_CRYSTAL, a folder, or installed for the test; it is no dependency of ours."""
    folder = os.environ.get("VQA_GRPO_CRYSTAL") or str(tmp_path_factory.mktemp("crystal"))
    if not os.environ.get("VQA_GRPO_CRYSTAL"):
        command = ["-m", "pip", "install", "-q", "--no-deps", "--target", folder, "crystal-metrics==0.2.0"]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(f"crystal-metrics cannot be installed here: {done.stderr.strip()[-200:]}")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("crystal_metrics.reasoning")
    finally:
        sys.path.remove(folder)


def generated(count: int, seed: int) -> list[tuple[list[str], list[str], str]]:
    source = random.Random(seed)
    made = []
    for _ in range(count):
        references = source.choices(SENTENCES, k=source.randint(1, 12))
        steps = [source.choice([*references, *SENTENCES]) for _ in range(source.randint(0, 10))]
        made.append((steps, references, ""))
    return made


@pytest.mark.full
def test_every_figure_agrees_bit_for_bit_on_two_thousand_pairs(reference) -> None:
    encoder = shared()
    judge = reference.MLLMReasoningEvaluator.__new__(reference.MLLMReasoningEvaluator)  # its encoder is ours instead
    judge.debug_mode, judge.similarity_threshold = False, crystal.THRESHOLDS[encoder.name]
    judge._compute_embeddings = encoder.encode
    items = generated(2500, 1)
    for (steps, references, _), ours in zip(items, match_many(items, mode="crystal", order=True), strict=True):
        theirs = judge.evaluate_single(steps, references, alpha=crystal.ORDER_WEIGHT, order_metric="lis")
        assert ours is not None
        assert (ours.f1, ours.precision, ours.recall) == (theirs.match_f1, theirs.precision, theirs.recall)
        assert (ours.matched, ours.steps) == (theirs.num_matched_predictions, theirs.num_predicted_steps)
        if steps:  # for no steps the reference reports an order of 1 and an ordered F1 of 0, as F1 is
            assert (ours.order, ours.ordered_f1) == (theirs.order_score, theirs.ordered_match_f1)


@pytest.mark.full
def test_the_thresholds_are_the_references_and_its_own_encoding_gives_the_same_scores(reference) -> None:
    judge = reference.MLLMReasoningEvaluator(str(_packaged()), crystal.THRESHOLDS["all-MiniLM-L6-v2"], "cpu")
    assert judge.model_thresholds == crystal.THRESHOLDS
    assert reference.MLLMReasoningEvaluator(str(_packaged()), None, "cpu").similarity_threshold == crystal.OTHER_MODELS
    items = generated(60, 2)
    for (steps, references, _), ours in zip(items, match_many(items, mode="crystal"), strict=True):
        assert ours is not None
        assert ours.f1 == judge.evaluate_single(steps, references).match_f1
