"""What training shows the supervisor: signs of life, and the reason of an end."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.test_run import ROOT, options
from vqa_grpo.contract import vitals
from vqa_grpo.contract.failure import DataError, FailureReason
from vqa_grpo.jobs.supervisor import Ending, Work, supervise


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(vitals.FOLDER, str(tmp_path))
    monkeypatch.setattr(vitals, "_last", None)
    return tmp_path


def test_each_step_and_each_reward_is_a_sign_of_life_with_the_collectives_timeout(folder: Path) -> None:
    from vqa_grpo.training.signs import Signs, watched

    args: Any = SimpleNamespace(ddp_timeout=1800, world_size=2)
    state: Any = SimpleNamespace(global_step=7)
    seen = []

    def judge(completions: list[str]) -> list[float]:
        seen.extend(vitals.beats(folder))
        return [1.0] * len(completions)

    Signs().on_step_begin(args, state, None)  # type: ignore[arg-type]
    reward = watched(judge)
    assert reward(completions=["a", "b"]) == [1.0, 1.0]
    assert reward.__name__ == "judge"
    after = vitals.beats(folder)
    assert [(beat.step, beat.doing, beat.patience) for beat in (*seen, *after)] == [
        (7, "reward judge", 1800.0),
        (7, "reward judge done", 1800.0),
    ]
    assert [beat.count for beat in (*seen, *after)] == [2, 3]
    Signs().on_train_end(args, state, None)  # type: ignore[arg-type]
    assert vitals.beats(folder)[0].patience is None


def test_a_rank_alone_has_no_limit(folder: Path) -> None:
    from vqa_grpo.training.signs import Signs

    args: Any = SimpleNamespace(ddp_timeout=1800, world_size=1)
    Signs().on_step_begin(args, SimpleNamespace(global_step=0), None)  # type: ignore[arg-type]
    assert vitals.beats(folder)[0].patience is None


def test_the_first_reason_counts(folder: Path) -> None:
    vitals.beat(3, "step begins", None)
    vitals.fail(DataError("row 7 has no image"))
    vitals.fail(SystemExit(65))
    (found,) = vitals.failures(folder)
    assert (found.reason, found.sentence, found.step) == (FailureReason.DATA, "row 7 has no image", 3)


def test_without_a_supervisor_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(vitals.FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    vitals.beat(1, "step begins", None)
    vitals.fail(DataError("x"))
    assert list(tmp_path.iterdir()) == []


def train(model: Path, dataset: Path, output: Path, *more: str, processes: int = 1) -> Ending:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests" / "training")])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    argv = options(model, dataset, output, "--use_cpu", *more)
    work = Work("vqa_grpo.training", argv, processes=processes, environment=environment, timeout_seconds=300)
    return supervise(work)


def test_a_mistake_in_an_option_reaches_the_supervisor(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    failure = train(tiny_model, tiny_dataset, tmp_path, "--bog", "1").failure
    assert failure is not None
    assert failure.reason is FailureReason.CONFIGURATION
    assert "unknown option --bog" in failure.sentence


@pytest.mark.full
@pytest.mark.parametrize("fate", ["hangs", "dies"])
def test_a_rank_that_comes_to_grief_ends_the_other_and_is_named(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, fate: str
) -> None:
    more = ("--reward_funcs", f"stuck_reward:{fate}", "--ddp_timeout", "15")
    ending = train(tiny_model, tiny_dataset, tmp_path, *more, processes=2)
    failure = ending.failure
    assert failure is not None
    assert (failure.rank, failure.step) == (1, 1)
    if fate == "hangs":
        assert failure.reason is FailureReason.RETRY
        assert "rank 1 did not arrive (rank 1 was at step 1: reward hangs)" in failure.sentence
        assert "Timed out waiting 15000ms" in failure.sentence
    else:
        assert "SIGKILL" in failure.sentence
    assert [beat.step for beat in ending.beats] == [1, 1]


@pytest.mark.full
def test_a_job_that_loses_a_rank_as_it_is_stopped_asks_for_another_attempt(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERVISOR", str(os.getpid()))
    more = ("--reward_funcs", "stuck_reward:leaves", "--save_strategy", "steps", "--save_steps", "1")
    ending = train(tiny_model, tiny_dataset, tmp_path, *more, processes=2)
    failure = ending.failure
    assert failure is not None
    assert (failure.rank, failure.reason) == (0, FailureReason.RETRY)
    # The sentence ends at gloo's first full stop; the rank's own last line says all.
    assert failure.sentence.startswith("stopped by SIGTERM and then RuntimeError: ")
    assert any("the newest checkpoint is step 1" in line for line in ending.lines)
