"""A run that was stopped anywhere and goes on ends bit for bit where the uninterrupted one does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm
from warm import Rank

from vqa_grpo.jobs.supervisor import GRACE_SECONDS

STEPS = 8  # two in the second epoch of one process, two in the third of two
TWO = ["--save_steps", "2", "--max_steps", str(STEPS)]


class Run:
    """One output folder with its journal and log; `go` may be called again and again."""

    def __init__(self, parent: warm.Parent, place: Path, folder: Path, ranks: int, more: list[str]) -> None:
        self._parent, self._ranks = parent, ranks
        self.output, self.journal, self.log = folder / "run", folder / "journal", folder / "log"
        self.argv = warm.options(place / "model", place / "data", self.output, *more)

    def go(self, *more: str, argv: list[Any] | None = None, **how: Any) -> list[int]:
        ranks = {} if argv else {"ranks": self._ranks}
        return self._parent.run(argv or [*self.argv, *more], self.log, journal=self.journal, **ranks, **how)

    def steps(self) -> dict[tuple[int, int], set[tuple[str, str]]]:
        return warm.lines(self.journal)

    def weights(self) -> str:
        return hashlib.sha256((self.output / "model.safetensors").read_bytes()).hexdigest()

    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def start(parent: warm.Parent, place: Path, tmp_path: Path) -> Callable[..., Run]:
    made: list[Run] = []

    def new(*more: str, ranks: int = 1) -> Run:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Run(parent, place, folder, ranks, [*TWO, *more]))
        return made[-1]

    return new


@pytest.fixture(scope="module")
def uninterrupted(parent: warm.Parent, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """The run that nothing happens to, made once for each combination of options."""
    made: dict[tuple[Any, ...], Run] = {}

    def run(*more: str, ranks: int = 1) -> Run:
        if (ranks, *more) not in made:
            whole = Run(parent, place, tmp_path_factory.mktemp("whole"), ranks, [*TWO, *more])
            assert whole.go() == [0] * ranks, whole.said()[-3000:]
            made[(ranks, *more)] = whole
        return made[(ranks, *more)]

    return run


def same_to_the_end(run: Run, whole: Run) -> None:
    """Every step ever taken, replayed ones included, and the final model are those of the uninterrupted run."""
    assert run.steps() == whole.steps()
    assert run.weights() == whole.weights()


# Mid-epoch, on both sides of an epoch's end, and inside a save, the last one included.
KILLS = [("in_seal", 4), ("step_end", 6), ("optimizer_saved", 6), ("generating", 7), ("after_seal", 8)]


@pytest.mark.parametrize(("ranks", "kills"), [(1, KILLS), (2, KILLS[1:3])])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    start: Callable[..., Run], uninterrupted: Callable[..., Run], ranks: int, kills: list[tuple[str, int]]
) -> None:
    """One run, killed again and again: each time from its newest whole checkpoint. tests/drills kills at every step."""
    run = start("--resume_from_checkpoint", "true", "--save_total_limit", "2", ranks=ranks)
    for moment, step in sorted(kills, key=lambda kill: kill[1]):
        # Only the first rank seals.
        assert -9 in run.go(kill=(moment, step), killed_rank=0 if "seal" in moment else ranks - 1), run.said()[-3000:]
    assert run.go() == [0] * ranks, run.said()[-3000:]
    same_to_the_end(run, uninterrupted(ranks=ranks))
    assert "starting from the beginning" in run.said()
    assert "passed over" in run.said()


LORA = ["--use_peft", "--lora_dropout", "0.1", "--lora_target_modules", "q_proj", "v_proj"]
PATHS = [
    pytest.param([], 1, id="plain"),
    pytest.param(LORA, 1, id="lora"),
    pytest.param(
        ["--steps_per_generation", "2", "--num_iterations", "2", "--beta", "0.1"], 1, id="between-generations"
    ),
    pytest.param(["--deepspeed", "zero2"], 2, id="zero2", marks=pytest.mark.full),
    pytest.param(["--deepspeed", "zero3"], 2, id="zero3", marks=pytest.mark.full),
    pytest.param(["--deepspeed", "zero2", *LORA], 2, id="zero2-lora", marks=pytest.mark.full),
    pytest.param(["--deepspeed", "zero3", *LORA], 2, id="zero3-lora", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("more", "ranks"), PATHS)
def test_every_parameter_is_as_it_was_saved_and_the_rest_of_the_run_too(
    start: Callable[..., Run], uninterrupted: Callable[..., Run], more: list[str], ranks: int
) -> None:
    more = [*more, "--save_steps", "3"]
    whole = uninterrupted(*more, ranks=ranks)
    run = start(*more, "--resume_from", str(whole.output / "checkpoint-3"), ranks=ranks)
    assert run.go() == [0] * ranks, run.said()[-3000:]
    for rank in range(ranks):
        ((saved, _),) = whole.steps()[rank, 3]
        assert warm.reloaded(run.journal)[rank, 3] == json.loads(saved)
    assert json.loads(saved) != warm.reloaded(whole.journal)[0, 0]  # three steps moved them
    assert run.steps() == {key: value for key, value in whole.steps().items() if key[1] > 3}
    assert run.weights() == whole.weights()


def test_nodes_that_share_nothing_but_storage_go_on_on_other_machines(
    start: Callable[..., Run], uninterrupted: Callable[..., Run], tmp_path: Path
) -> None:
    swapped_nodes(start(ranks=2), uninterrupted(ranks=2), tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("more", [["zero2"], ["zero3"], ["zero3", *LORA]], ids=["zero2", "zero3", "zero3-lora"])
def test_split_optimizers_go_on_on_other_machines(
    start: Callable[..., Run], uninterrupted: Callable[..., Run], tmp_path: Path, more: list[str]
) -> None:
    swapped_nodes(start("--deepspeed", *more, ranks=2), uninterrupted("--deepspeed", *more, ranks=2), tmp_path)


def swapped_nodes(run: Run, whole: Run, tmp_path: Path) -> None:
    """Two nodes of one process each; one is lost, the other becomes the other's number, a new one joins."""
    common = [*run.argv, "--resume_from_checkpoint", "true", "--checkpoint_uri", str(tmp_path / "store")]

    def nodes(*machines: str) -> list[Rank]:
        return [
            Rank([*common, "--output_dir", str(tmp_path / name)], {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
            for name in machines
        ]

    assert -9 in run.go(argv=nodes("a", "b"), kill=("step_end", 5)), run.said()[-3000:]
    assert not (tmp_path / "a" / "checkpoint-4" / "rng_state_1.pth").exists()  # b's own, on b's disk alone
    assert run.go(argv=nodes("c", "a")) == [0, 0], run.said()[-3000:]
    assert f"going on from {tmp_path / 'c' / 'checkpoint-4'}" in run.said()
    assert run.steps() == whole.steps()
    final = hashlib.sha256((tmp_path / "c" / "model.safetensors").read_bytes()).hexdigest()
    assert final == whole.weights()


@pytest.mark.parametrize(("ranks", "sent"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)])
def test_sigterm_or_ctrl_c_to_one_rank_makes_all_save_at_the_next_step_and_ask_for_another_attempt(
    start: Callable[..., Run], uninterrupted: Callable[..., Run], tmp_path: Path, ranks: int, sent: signal.Signals
) -> None:
    """Between two saves: what is lost of the run is nothing."""
    uri = str(tmp_path / "store")
    run = start("--save_steps", "100", "--resume_from_checkpoint", "true", "--checkpoint_uri", uri, ranks=ranks)
    assert run.go(term=(ranks - 1, 2), sent=sent) == [75] * ranks, run.said()[-3000:]
    assert run.said().count(f"stopped by {sent.name} at step") == ranks
    last = max(step for _, step in run.steps())
    assert last < STEPS
    shutil.rmtree(run.output)  # the node is gone; the upload was finished
    assert run.go() == [0] * ranks, run.said()[-3000:]
    assert f"going on from {run.output}/checkpoint-{last}" in run.said()
    same_to_the_end(run, uninterrupted(ranks=ranks))


def test_sigterm_when_a_peer_is_gone_leaves_the_last_whole_checkpoint_and_says_so_within_the_grace(
    start: Callable[..., Run], uninterrupted: Callable[..., Run]
) -> None:
    """The ranks cannot agree on one more checkpoint any more: whoever is left must not wait for that."""
    run = start("--resume_from_checkpoint", "true", ranks=2)
    assert run.go(term=(0, 5), gone=1, limit=GRACE_SECONDS) == [75, -9], run.said()[-3000:]
    assert "error: stopped by SIGTERM and then RuntimeError: " in run.said()
    assert "the newest checkpoint is step 4: start again with --resume_from_checkpoint true" in run.said()
    assert run.go() == [0, 0], run.said()[-3000:]
    assert f"going on from {run.output}/checkpoint-4" in run.said()
    same_to_the_end(run, uninterrupted(ranks=2))


def test_without_checkpoints_sigterm_is_a_cancelled_run(start: Callable[..., Run]) -> None:
    run = start("--save_strategy", "no")
    assert run.go(term=(0, 2)) == [143], run.said()[-3000:]


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    from vqa_grpo.training.trainer import LeaveOnSignal

    pid = os.fork()
    if not pid:
        try:
            leave: Any = LeaveOnSignal()
            leave.on_train_begin(None, None, None)
            os.kill(os.getpid(), signal.SIGINT)
            if leave.received == signal.SIGINT:
                os.kill(os.getpid(), signal.SIGINT)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGINT


def test_ctrl_c_before_training_is_a_cancelled_run_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vqa_grpo.training import __main__ as entry

    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "preflight_report", interrupted)
    assert entry.main([]) == 143
    assert capsys.readouterr().err == "error: stopped by SIGINT\n"


def test_a_checkpoint_that_was_named_and_is_not_whole_is_refused(
    start: Callable[..., Run], uninterrupted: Callable[..., Run], tmp_path: Path
) -> None:
    damaged = shutil.copytree(uninterrupted().output / "checkpoint-4", tmp_path / "checkpoint-4")
    (damaged / "optimizer.pt").unlink()
    for option in ("--resume_from", "--resume_from_checkpoint"):
        run = start(option, str(damaged))
        assert run.go() == [65]
        assert "lacks optimizer.pt" in run.said()


def test_a_new_run_from_anothers_checkpoint_counts_its_steps_on_and_needs_some_left(
    start: Callable[..., Run], uninterrupted: Callable[..., Run]
) -> None:
    run = start("--resume_from", str(uninterrupted().output))
    assert run.go() == [78]
    assert f"is at step {STEPS}, from where the steps count on" in run.said()
    assert f"give --max_steps {2 * STEPS} for {STEPS} more" in run.said()
    assert run.go("--max_steps", str(STEPS + 1)) == [0], run.said()[-3000:]
    assert {step for _, step in run.steps()} == {STEPS + 1}


def test_another_number_of_processes_is_refused(start: Callable[..., Run], uninterrupted: Callable[..., Run]) -> None:
    run = start("--resume_from", str(uninterrupted().output), ranks=2)
    assert run.go() == [78, 78]
    assert "was written by 1 processes" in run.said()


def test_each_epoch_has_an_order_of_its_own_that_a_new_process_finds_again() -> None:
    from trl.trainer.utils import RepeatSampler

    from vqa_grpo.training.trainer import EpochSampler

    def order(epoch: int) -> list[int]:
        return list(EpochSampler(RepeatSampler(range(30), 1, seed=5), lambda: epoch))

    assert order(0) == list(RepeatSampler(range(30), 1, seed=5))
    assert order(0) != order(1) != order(2)
    assert order(1) == order(1)
    assert sorted(order(1)) == sorted(order(0))


# --- every family ---------------------------------------------------------------------------------------------------

TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 300}
TEXT |= {"num_key_value_heads": 2}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
PATCH = {"image_size": 28, "patch_size": 14}
QWEN = {"depth": 1, "hidden_size": 64, "num_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2VL": {"text_config": TEXT | ROPE, "vision_config": {**QWEN, "embed_dim": 32}},
    "Qwen2_5_VL": {
        "text_config": TEXT | ROPE,
        "vision_config": {**QWEN, "out_hidden_size": 64, "intermediate_size": 64, "fullatt_block_indexes": [0]},
    },
    "Qwen3VL": {
        "text_config": TEXT | ROPE | {"head_dim": 16},
        "vision_config": {**QWEN, "out_hidden_size": 64, "intermediate_size": 64, "deepstack_visual_indexes": [0]},
    },
    "SmolVLM": {
        "text_config": TEXT | {"model_type": "llama", "pad_token_id": 0},
        "vision_config": VISION | PATCH,
        "pad_token_id": 0,
    },
    "Gemma3": {"text_config": TEXT | {"head_dim": 16}, "vision_config": VISION | PATCH},
    "Llava": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": VISION | PATCH | {"model_type": "clip_vision_model"},
    },
    "InternVL": {
        "text_config": TEXT | {"model_type": "qwen2"},
        "vision_config": VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
    },
}


def made(family: str, seed: int) -> Any:
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    return getattr(transformers, f"{family}ForConditionalGeneration")(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_weights_all_come_back(family: str, tied: bool, tmp_path: Path, monkeypatch: Any) -> None:
    from vqa_grpo.training.trainer import restore_weights

    monkeypatch.setitem(FAMILIES, family, FAMILIES[family] | {"tie_word_embeddings": tied})
    saved, other = made(family, 1), made(family, 2)
    saved.save_pretrained(tmp_path)
    assert warm.digests(saved) != warm.digests(other)
    restore_weights(other, tmp_path)
    assert warm.digests(saved) == warm.digests(other)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from vqa_grpo.contract.failure import DataError
    from vqa_grpo.training.trainer import restore_weights

    made("Qwen2_5_VL", 1).save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    name = next(name for name in whole if "q_proj.weight" in name)
    for spoilt in ({key: value for key, value in whole.items() if key != name}, whole | {"more": whole[name].clone()}):
        save_file(spoilt, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(DataError, match="does not fit the model"):
            restore_weights(made("Qwen2_5_VL", 2), tmp_path)


def test_an_adapter_that_was_not_restored_is_noticed(tmp_path: Path) -> None:
    """PEFT's own loader only warns."""
    import torch
    from peft import LoraConfig, get_peft_model

    from vqa_grpo.contract.failure import DataError
    from vqa_grpo.training.trainer import check_adapter

    model = get_peft_model(made("Qwen2_5_VL", 1), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    check_adapter(model, tmp_path)
    with torch.no_grad():
        next(value for value in model.parameters() if value.requires_grad).add_(1)
    with pytest.raises(DataError, match="was not restored"):
        check_adapter(model, tmp_path)
