"""TRL's GRPOTrainer, made exactly restartable. Each override says why it is there and when it can go."""

from __future__ import annotations

import contextlib
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import DistributedType
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler, strip_images_from_messages

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.training import best
from vqa_grpo.training.checkpoints import PICKLED_ARGUMENTS, Keeper, Layout, clear, gather
from vqa_grpo.training.samples import Samples

_MISFITS = ("missing_keys", "unexpected_keys", "mismatched_keys")


class VQATrainer(GRPOTrainer):
    """GRPO whose checkpoints restore everything: weights, optimizer, data order, random numbers and rollouts.

    `keeper` seals and uploads the checkpoints of this node; only the process that leads it uses it. `samples` gets
    what the first rank generates; None on other ranks, and where nobody wants samples.
    """

    def __init__(
        self, *args: Any, keeper: Keeper, layout: Layout, samples: Samples | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.keeper = keeper
        self.layout = layout
        self.samples = samples
        # transformers 5.23 writes weights on rank 0 alone, whatever save_on_each_node says, and so leaves the other
        # nodes' checkpoints without any. Can go once `save_pretrained(is_main_process=True)` writes on every rank.
        model: Any = self.model
        if layout.nodes > 1 and hasattr(model, "should_save_on_this_rank"):
            model.should_save_on_this_rank = lambda is_main_process: is_main_process
        self.validated = False  # whether the best weights so far belong into each checkpoint
        self.leave = LeaveOnSignal()
        self.add_callback(self.leave)
        if self.args.deepspeed_plugin is not None:
            check_deepspeed(self)
            self.add_callback(EngineRuns(self))

    # RepeatSampler of trl 1.16 draws each epoch's order from one generator that a new process starts afresh, so a
    # run resumed in a later epoch repeats the first one's order. Can go once it has a `set_epoch`.
    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        made: Any = super()._get_train_sampler(dataset)
        return EpochSampler(made, lambda: int(self.state.epoch or 0))

    # transformers 5.23 saves Qwen2-VL, Qwen2.5-VL, LLaVA, InternVL and Gemma 3 under their hub's key names and loads
    # them here with strict=False under the model's own, which leaves nearly all weights as they are, with a warning
    # (QwenLM/Qwen3-VL#1763). Can go once a plain resume of the tiny Qwen2.5-VL of our tests restores every tensor.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model if model is None else model
        if is_adapted(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            check_adapter(model, Path(resume_from_checkpoint))
        else:
            restore_weights(model, Path(resume_from_checkpoint))

    # After the rewards, all that TRL 1.16 does with `prompts` is to gather them on every rank for its table of
    # completions, with the pictures inside and whether or not a table is wanted: gigabytes each round on many ranks.
    # Emptied here of pictures, in place. Can go once it gathers `strip_images_from_messages(prompt)`.
    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        prompts[:] = [strip_images_from_messages(prompt) for prompt in prompts]
        model: Any = self.model
        if self.samples and model.training:
            own = rewards[: len(inputs)].tolist()  # the first rank's rows come first in what was gathered
            self.samples.note(self.state.global_step, inputs, completions, self.reward_func_names, own)
        return rewards

    # The last thing to be loaded, under DeepSpeed too. TRL keeps the completions that several optimizer steps share
    # in memory only, so that a run resumed between two generations would generate anew. Can go once it saves them.
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.is_deepspeed_enabled and is_adapted(self.model):
            # DeepSpeed loads a part of the weights, so not strictly. Under ZeRO-3 only the first rank wrote a whole
            # adapter, so that the folders of other nodes hold none to compare with.
            check_adapter(self.model, Path(checkpoint), compare=self.is_world_process_zero())
        file = Path(checkpoint) / self._rollouts_name
        if file.is_file():
            saved = torch.load(file, map_location=self.args.device, weights_only=True)
            self._step, self._buffered_inputs = saved["step"], saved["inputs"]

    # Trainer knows no whole checkpoint: it deletes old ones before the new one is finished, keeps what an earlier
    # attempt left in the folder, and pickles the arguments, tokens included. Can go once it writes a marker last.
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.keeper.wait()
        step = self.state.global_step
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{step}"
        if self.layout.leads:
            clear(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        grpo: Any = self.args
        if self._step % (grpo.steps_per_generation * self.num_iterations):
            torch.save({"step": self._step, "inputs": self._buffered_inputs}, folder / self._rollouts_name)
        save_id = gather(uuid.uuid4().hex)[0]
        self.accelerator.wait_for_everyone()  # every rank's files are there
        if self.layout.leads:
            (folder / PICKLED_ARGUMENTS).unlink(missing_ok=True)
            # DeepSpeed 0.19 names the part to load on rank 0's disk only. Can go once its engine writes `latest` on
            # each node under use_node_local_storage, as it does with the parts themselves.
            for part in folder.glob("global_step*"):
                (folder / "latest").write_text(part.name)
            if self.validated:
                best.attach(Path(str(self.args.output_dir)), folder)
            chosen = self.state.best_global_step
            self.keeper.take(folder, save_id, step, [chosen] if chosen else [])

    # transformers 5.23 trains one step too many when the checkpoint it resumes from is that of the last step. Can go
    # once `_run_epoch` looks at max_steps before its first batch.
    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    @property
    def _rollouts_name(self) -> str:
        return f"rollouts_{self.args.process_index}.pth"


class EpochSampler(RepeatSampler):
    """TRL's sampler whose order depends on seed and epoch alone. The first epoch's order is TRL's own."""

    def __init__(self, made: RepeatSampler, epoch: Callable[[], int]) -> None:
        vars(self).update(vars(made))
        self._epoch = epoch

    def __iter__(self) -> Any:
        if self.shuffle:
            # A step that small seeds do not bridge, within the 32 bits that torch's generator heeds.
            self.generator.manual_seed(((self.seed or 0) + self._epoch() * 1_000_003) % 2**32)
        return super().__iter__()


class LeaveOnSignal(TrainerCallback):
    """After SIGTERM or Ctrl-C to any rank, all ranks save at the next step boundary and leave the training loop.

    `received` is the signal that this rank got, `requested` the one that all of them left for before the last step; 0
    for none. A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self.requested = 0
        self.received = 0
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        number = self._anyones(args)
        if not number or state.global_step >= state.max_steps:
            return
        self.requested = number
        control.should_save = control.should_save or args.save_strategy != "no"
        control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    def _anyones(self, args: TrainingArguments) -> int:
        if args.world_size == 1:
            return self.received
        numbers = torch.tensor([self.received], device=args.device)
        torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX)
        return int(numbers.item())


class EngineRuns(TrainerCallback):
    """Refuses to train without the DeepSpeed engine that was asked for, once everything is prepared."""

    def __init__(self, trainer: VQATrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer.deepspeed is None:
            raise ConfigurationError(
                "DeepSpeed was asked for, but its engine does not hold the model: start with torchrun, "
                "accelerate launch or deepspeed, or leave --deepspeed out"
            )


def check_deepspeed(trainer: GRPOTrainer) -> None:
    """accelerate can take a DeepSpeed configuration and train plain DDP without a word: say so instead."""
    found = trainer.accelerator.distributed_type
    if found != DistributedType.DEEPSPEED:
        raise ConfigurationError(
            f"DeepSpeed was asked for, but this run would train as {found.value}: start it with torchrun, "
            "accelerate launch or deepspeed, or leave --deepspeed out"
        )


def is_adapted(model: Any) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def restore_weights(model: Any, folder: Path) -> None:
    """Load every tensor of `folder` into `model`, by way of the family's own loader.

    Raises DataError when a tensor is missing, left over or of another shape.
    """
    saved, report = type(model).from_pretrained(
        folder, dtype=model.dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    wrong = {kind: sorted(map(str, report.get(kind) or ())) for kind in _MISFITS}
    if any(wrong.values()):
        kind, names = next((kind, names) for kind, names in wrong.items() if names)
        raise DataError(f"{folder} does not fit the model: {len(names)} {kind.replace('_', ' ')}, first {names[0]}")
    model.load_state_dict(saved.state_dict(), strict=True)


def check_adapter(model: Any, folder: Path, compare: bool = True) -> None:
    """Hold the adapter in memory against the saved one; DataError unless every tensor is there and equal.

    Every rank calls this, since it takes all to put together what ZeRO-3 split.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    with whole_parameters([value for value in model.parameters() if value.requires_grad]):
        held = {name: value.detach().cpu() for name, value in get_peft_model_state_dict(model).items()}
    if not compare:
        return
    saved = load_file(folder / "adapter_model.safetensors")
    if odd := sorted(held.keys() ^ saved.keys()):
        raise DataError(f"the adapter of {folder} does not fit the model: {len(odd)} tensors differ, first {odd[0]}")
    for name, value in held.items():
        if not torch.equal(value.to(saved[name].dtype), saved[name]):
            raise DataError(f"the adapter of {folder} was not restored: {name} differs from what was saved")


@contextlib.contextmanager
def whole_parameters(parameters: list[Any]) -> Iterator[None]:
    """Parameters that ZeRO-3 split over the ranks are whole within this block; others always are."""
    split = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not split:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(split):
        yield
