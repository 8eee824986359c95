"""Held-out questions choose the weights: the best step is kept, survives a kill, and is what gets published."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import warm
from warm import Rank

from vqa_grpo.storage.publish import get

STEPS = ["--max_steps", "6", "--save_steps", "2", "--validate_every", "2"]
# In tenths, by step: the best is neither the first nor the last; of the two the later counts.
SCORES = {"SCORES": json.dumps({"0": 9, "2": 7, "3": 7, "4": 7, "6": 1})}
ZERO2_LORA = ["--deepspeed", "zero2", "--use_peft", "--lora_target_modules", "q_proj", "v_proj"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five questions are held out, so that two ranks get unequal shares."""
    return tiny.dataset(tmp_path_factory.mktemp("split") / "data", 12, validation=5)


class Run:
    def __init__(self, parent: warm.Parent, model: Path, data: Path, folder: Path) -> None:
        self._parent, self._model, self._data, self._log = parent, model, data, folder / "log"
        self.output, self.store = folder / "run", folder / "store"

    def go(self, *more: str, ranks: int = 1, scores: dict[str, str] = SCORES, **how: Any) -> list[int]:
        argv = [*STEPS, "--publish_uri", str(self.store / "model"), *more]
        words = warm.options(self._model, self._data, self.output, *argv)
        processes = [Rank([str(word) for word in words], scores) for _ in range(ranks)]
        return self._parent.run(processes, self._log, **how)

    def said(self) -> str:
        return self._log.read_text()

    def record(self, folder: str = "") -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.output / folder / "training.json").read_text())
        return content

    def scored(self) -> list[dict[str, Any]]:
        rows = json.loads((self.output / "history.json").read_text())
        return [
            {key: value for key, value in row.items() if key != "eval_seconds"} for row in rows if "eval_steps" in row
        ]


@pytest.fixture
def run(parent: warm.Parent, tiny_model: Path, data: Path, tmp_path: Path) -> Run:
    return Run(parent, tiny_model, data, tmp_path)


@pytest.fixture(scope="module")
def whole(
    parent: warm.Parent, tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    """The run that nothing happens to, by options."""
    made: dict[Any, Run] = {}

    def of(*more: str, ranks: int = 1) -> Run:
        if (ranks, *more) not in made:
            new = Run(parent, tiny_model, data, tmp_path_factory.mktemp("whole"))
            assert new.go(*more, ranks=ranks) == [0] * ranks, new.said()[-3000:]
            made[ranks, *more] = new
        return made[ranks, *more]

    return of


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_best_step_is_kept_and_published_with_the_last_beside_it(whole: Callable[..., Run]) -> None:
    run = whole()
    best, last = sha(run.output / "best" / "model.safetensors"), sha(run.output / "model.safetensors")
    assert best == sha(run.output / "checkpoint-4" / "model.safetensors")
    assert last == sha(run.output / "checkpoint-6" / "model.safetensors") != best
    published = get(str(run.store / "model"))
    assert published.files["model.safetensors"]["sha256"] == best
    beside = get(str(run.store / "model-last"))
    assert beside.files["model.safetensors"]["sha256"] == last
    assert {"config.json", "prompt.txt", "history.json", "tokenizer.json"} <= set(published.files)
    assert not list(run.output.glob("**/best/training_args.bin"))  # a pickle, which may hold a token
    record = run.record("best")
    assert (record["best"], record["weights_step"]) == ({"step": 4, "score": 0.7}, 4)
    assert record["last"] == {"step": 6, "score": 0.1, "uri": str(run.store / "model-last")}
    assert run.record()["weights_step"] == 6
    assert [(row["step"], row["eval_accuracy"]) for row in run.scored()] == [(0, 0.9), (2, 0.7), (4, 0.7), (6, 0.1)]


def test_training_is_the_same_with_validation_and_without(run: Run, whole: Callable[..., Run]) -> None:
    assert run.go("--validate_every", "0", "--save_strategy", "no") == [0], run.said()[-3000:]
    assert sha(run.output / "model.safetensors") == sha(whole().output / "model.safetensors")
    assert not (run.output / "best").exists()
    assert run.record()["best"] is None
    assert not (run.store / "model-last").exists()


def test_a_run_that_lost_its_machine_still_has_the_best_of_before(run: Run, whole: Callable[..., Run]) -> None:
    more = ["--resume_from_checkpoint", "true", "--checkpoint_uri", str(run.store / "checkpoints")]
    assert run.go(*more, kill=("step_end", 5)) == [-9], run.said()[-3000:]
    shutil.rmtree(run.output)
    assert run.go(*more) == [0], run.said()[-3000:]
    assert run.record("best")["best"] == {"step": 4, "score": 0.7}
    assert sha(run.output / "best" / "model.safetensors") == sha(whole().output / "best" / "model.safetensors")
    assert run.scored() == whole().scored()


def test_a_best_from_after_the_checkpoint_is_forgotten(run: Run) -> None:
    """Its step is taken again, and may come out otherwise where arithmetic is not exact."""
    more = ["--save_steps", "4", "--resume_from_checkpoint", "true"]
    assert run.go(*more, kill=("step_end", 3)) == [-9]
    assert (run.output / "best").is_dir()
    scores = {"SCORES": json.dumps({"0": 9, "2": 1, "4": 2, "6": 1})}
    assert run.go(*more, scores=scores) == [0], run.said()[-3000:]
    assert run.record("best")["best"] == {"step": 4, "score": 0.2}


def test_a_validation_that_sigterm_cut_off_is_made_up_for(run: Run, whole: Callable[..., Run]) -> None:
    """Every step is validated, so the one after SIGTERM is too."""
    journal = run.output.parent / "journal"
    more = ["--validate_every", "1", "--resume_from_checkpoint", "true", "--save_steps", "100"]
    scores = {"SCORES": json.dumps({str(step): step for step in range(7)})}
    assert run.go(*more, scores=scores, term=(0, 2), journal=journal) == [75], run.said()[-3000:]
    assert run.go(*more, scores=scores) == [0], run.said()[-3000:]
    assert [row["step"] for row in run.scored()] == list(range(7))


def test_two_ranks_agree_with_one(run: Run, parent: warm.Parent, tiny_model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    two = Run(parent, tiny_model, data, tmp_path / "two")
    assert run.go("--max_steps", "1", scores={}) == [0], run.said()[-3000:]
    assert two.go("--max_steps", "1", scores={}, ranks=2) == [0, 0], two.said()[-3000:]
    assert two.scored()[0] == run.scored()[0]
    assert two.scored()[0]["eval_questions"] == 5
    assert two.record("best")["best"] == {"step": 1, "score": 0.0}  # of equals the last
    assert get(str(two.store / "model")).files["model.safetensors"]["sha256"] == sha(two.output / "model.safetensors")
    assert not (two.store / "model-last").exists()


def test_without_a_split_that_is_held_out_nothing_starts(
    parent: warm.Parent, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    missing = shutil.copytree(data, tmp_path / "missing")
    (missing / "dataset_dict.json").write_text('{"splits": ["train"]}')
    for folder, says in ((data / "train", "has no splits"), (missing, "has no split 'validation'")):
        run = Run(parent, tiny_model, folder, tmp_path)
        assert run.go() == [78]
        assert says in run.said()


@pytest.mark.full
@pytest.mark.parametrize("more", [["--deepspeed", "zero2"], ["--deepspeed", "zero3"], ZERO2_LORA, ZERO2_LORA[2:]])
def test_split_and_adapted_weights_are_chosen_as_plain_ones_are(
    run: Run, whole: Callable[..., Run], more: list[str]
) -> None:
    from vqa_grpo.models.load import load_model

    adapted, ranks = "--use_peft" in more, 2 if "--deepspeed" in more else 1
    clean = whole(*more, ranks=ranks)
    name, saved = ("adapter/" if adapted else "", "adapter_model" if adapted else "model")
    kept = clean.output / "best" / f"{name}{saved}.safetensors"
    assert sha(kept) == sha(clean.output / "checkpoint-4" / f"{saved}.safetensors")
    assert sha(kept) != sha(clean.output / f"{name}{saved}.safetensors")
    load_model(str(clean.output / "best"))
    resumed = [*more, "--resume_from_checkpoint", "true"]
    assert -9 in run.go(*resumed, kill=("step_end", 5), ranks=ranks)
    shutil.rmtree(run.output / "best")
    assert run.go(*resumed, ranks=ranks) == [0] * ranks, run.said()[-3000:]
    for file in (f"{name}{saved}.safetensors", "model.safetensors"):
        assert sha(run.output / "best" / file) == sha(clean.output / "best" / file)


def test_a_validation_that_fails_costs_nothing_but_itself(
    parent: warm.Parent, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    import datasets

    splits = datasets.load_from_disk(str(data))
    encoded = splits["validation"].cast_column("image", datasets.Image(decode=False))
    broken = encoded.map(lambda row: {"image": {"bytes": b"no picture", "path": None}}, features=encoded.features)
    splits["validation"] = broken.cast_column("image", datasets.Image())
    splits.save_to_disk(str(tmp_path / "broken"))
    run = Run(parent, tiny_model, tmp_path / "broken", tmp_path)
    assert run.go(ranks=2) == [0, 0], run.said()[-3000:]
    assert "note: validation after step 2 failed, and training goes on: DataError: a picture of " in run.said()
    assert run.record()["best"] is None
    assert get(str(run.store / "model")).files["model.safetensors"]["sha256"] == sha(run.output / "model.safetensors")


def test_a_guard_ends_the_run_after_a_checkpoint_and_nobody_retries(run: Run) -> None:
    hopeless = ["--reward_funcs", "format", "--guard_patience", "3", "--save_steps", "100", "--validate_every", "0"]
    assert run.go(*hopeless, ranks=2) == [78, 78], run.said()[-3000:]
    assert "error: stopped after step 3: in all 3 rounds every completion of a question got the same" in run.said()
    assert "the newest checkpoint is step 3" in run.said()
    assert not run.store.exists()


def test_told_to_warn_a_guard_only_says_so_once(run: Run) -> None:
    hopeless = ["--reward_funcs", "format", "--guard_patience", "2", "--guards", "warn", "--save_strategy", "no"]
    assert run.go(*hopeless) == [0], run.said()[-3000:]
    assert run.said().count("note: warning after step 2: in all 2 rounds") == 1
    assert ("no_spread", 2) in [(row["guard"], row["step"]) for row in run.record()["warnings"]]


def test_weights_that_are_nan_are_in_no_checkpoint(run: Run) -> None:
    infinite = ["--reward_weights", "1e40", "--save_steps", "1", "--validate_every", "0"]
    assert run.go(*infinite) == [78], run.said()[-3000:]
    assert "stopped after step 1: reward is inf" in run.said()
    assert "there is no checkpoint" in run.said()
    assert not (run.output / "checkpoint-1").exists()


def test_sampling_from_weights_that_are_nan_is_no_reason_to_retry(run: Run) -> None:
    assert run.go("--learning_rate", "1e38", "--save_strategy", "no", "--validate_every", "0") == [78]
    assert "the weights are NaN or infinite" in run.said()


def test_a_validation_split_without_rows_is_said(
    parent: warm.Parent, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    import pyarrow as pa

    empty = shutil.copytree(data, tmp_path / "empty")
    (shard,) = (empty / "validation").glob("data-*.arrow")
    schema = pa.ipc.open_stream(shard.read_bytes()).schema
    with pa.OSFile(str(shard), "wb") as file, pa.ipc.new_stream(file, schema):
        pass  # as the data step writes a split without rows
    run = Run(parent, tiny_model, empty, tmp_path)
    assert run.go("--max_steps", "1") == [0], run.said()[-3000:]
    assert "the split validation has no rows: nothing is validated" in run.said()
