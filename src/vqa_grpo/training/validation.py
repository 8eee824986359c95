"""Held-out questions, asked greedily every so many steps: the curve of a run, and what its best step is chosen by."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vqa_grpo.contract import vitals
from vqa_grpo.contract.completion import Outcome, parse
from vqa_grpo.contract.record import offered
from vqa_grpo.models import greedy
from vqa_grpo.scoring.answer import grade
from vqa_grpo.training import best, guards
from vqa_grpo.training.checkpoints import gather, say_aloud

SCORE = "eval_accuracy"


class Tally(NamedTuple):
    """Counts over answered questions; `tokens` and `steps` are sums."""

    asked: int = 0
    right: int = 0
    valid: int = 0
    clipped: int = 0
    tokens: int = 0
    steps: int = 0


def total(tallies: Iterable[Tally]) -> Tally:
    """
    >>> total([Tally(1, 1, 1, 0, 9, 2), Tally(1, 0, 1, 0, 5, 1)])
    Tally(asked=2, right=1, valid=2, clipped=0, tokens=14, steps=3)
    """
    return Tally(*map(sum, zip(Tally(), *tallies, strict=True)))


def rates(tally: Tally) -> dict[str, float]:
    """A row of the history. Accuracy is strict: an answer that cannot be read is wrong."""
    names = {SCORE: "right", "eval_format_rate": "valid", "eval_clipped_ratio": "clipped"}
    names |= {"eval_mean_length": "tokens", "eval_steps": "steps"}
    found = {name: getattr(tally, count) / tally.asked for name, count in names.items()}
    return found | {"eval_questions": float(tally.asked)}


def sample(count: int, size: int) -> list[int]:
    """Which of `count` rows are asked: the same ones every time and in every run; all where `size` is 0."""
    return sorted(random.Random(0).sample(range(count), size)) if 0 < size < count else list(range(count))


def share(indices: Sequence[int], rank: int, ranks: int) -> list[tuple[int, bool]]:
    """This rank's rows, and whether they count. All ranks get as many, since ZeRO-3 may need them all for each token.

    >>> [share([3, 5, 8], rank, 2) for rank in range(2)]
    [[(3, True), (8, True)], [(5, True), (3, False)]]
    """
    own = [(index, True) for index in indices[rank::ranks]]
    return own + [(indices[0], False)] * (-(-len(indices) // ranks) - len(own))


def judge(row: Mapping[str, Any], text: str, tokens: int, clipped: bool) -> Tally:
    """One completion, graded as rewards and evaluation do."""
    completion = parse(text)
    golds = [row["answer"]] if isinstance(row["answer"], str) else list(row["answer"])
    verdict = grade(completion.answer, golds, offered(row["choices"], row["options"]), row["source"] or "")
    valid = completion.outcome == Outcome.VALID
    return Tally(1, int(verdict.correct), int(valid), int(clipped), tokens, len(completion.steps))


def ask(trainer: Any, model: Any, rows: Any, own: Sequence[tuple[int, bool]]) -> Tally:
    """Ask this rank's rows, in batches as large as those of training's own generation."""
    from vqa_grpo.training.trainer import is_adapted

    args, processor = trainer.args, trainer.processing_class
    model = model.get_base_model() if is_adapted(model) else model  # the adapter's layers lie in it
    size = max(1, args.generation_batch_size // args.world_size)
    # With the weights gathered no rank needs another one for its tokens; split, all must go on until the last is done.
    together = None if not args.ds3_gather_for_generation else False
    tallies = []
    with greedy.decoding(model, processor.tokenizer, trainer.max_completion_length) as ends:
        for start in range(0, len(own), size):
            vitals.still(f"validating, {start} of {len(own)} questions")
            batch = [(rows[index], counts) for index, counts in own[start : start + size]]
            asked = [greedy.question(row["image"].convert("RGB"), row["prompt"][0]["content"]) for row, _ in batch]
            for (row, counts), tokens in zip(
                batch, greedy.complete(model, processor, asked, synced_gpus=together), strict=True
            ):
                length = greedy.length(tokens, ends)
                said = tokens if length is None else tokens[:length]
                text = processor.tokenizer.decode(said, skip_special_tokens=True)
                if counts:
                    tallies.append(judge(row, text, len(said), length is None))
    vitals.still("validated")
    return total(tallies)


def validate(trainer: Any, rows: Any, indices: Sequence[int]) -> Tally | str:
    """All ranks' counts together, or what went wrong on one of them; the same on every rank, which all call this."""
    from trl.models.utils import unwrap_model_for_generation

    args = trainer.args
    own = share(indices, args.process_index, args.world_size)
    mode = trainer.model.training
    trainer.model.eval()
    try:
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model:
            # An exception must not pass through TRL's block: it would leave a model that cannot be trained any more.
            outcome: Tally | str
            try:
                outcome = ask(trainer, model, rows, own)
            except Exception as error:
                outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        trainer.model.train(mode)
    outcomes = gather(outcome)
    problems = [found for found in outcomes if isinstance(found, str)]
    return problems[0] if problems else total(outcomes)


def newest_score(history: Sequence[Mapping[str, Any]]) -> float | None:
    return next((row[SCORE] for row in reversed(history) if SCORE in row), None)


class Validation(TrainerCallback):
    """Scores the sample before the first step, every `every` steps and after the last, and keeps the best weights.

    Nothing that goes wrong with it ends a run. The base itself, scored before the first step, is never the best.
    """

    def __init__(self, trainer: Any, rows: Any, indices: Sequence[int], every: int, adapted: bool) -> None:
        self._trainer, self._rows, self._indices, self._every = trainer, rows, list(indices), every
        self._adapted = adapted
        self._output_dir = Path(trainer.args.output_dir)
        self.best: best.Best | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Rank 0's word counts: the nodes' folders are their own.
        self.best = gather(best.read(self._output_dir))[0]
        # A run that was stopped between a step and its validation has that still to do.
        scored = any(SCORE in row and row.get("step") == state.global_step for row in state.log_history)
        if self._due(state) and not scored:
            self._validate(state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # On SIGTERM there may be little time left: whoever goes on from here validates first.
        if self._due(state) and not self._trainer.leave.requested:
            self._validate(state, control)

    def _due(self, state: TrainerState) -> bool:
        return state.global_step % self._every == 0 or state.global_step >= state.max_steps

    def _validate(self, state: TrainerState, control: TrainerControl) -> None:
        began = time.monotonic()
        outcome = validate(self._trainer, self._rows, self._indices)
        if isinstance(outcome, str):
            self._say(state, f"validation after step {state.global_step} failed, and training goes on: {outcome}")
            return
        row = rates(outcome) | {"eval_seconds": round(time.monotonic() - began, 3)}
        should_log = control.should_log  # logging anything takes the wish back
        mode = self._trainer.model.training
        # In eval mode, or TRL would put the training figures since the last row into this one.
        self._trainer.model.eval()
        try:
            self._trainer.log(row)
        finally:
            self._trainer.model.train(mode)
            control.should_log = should_log
        score = row[SCORE]
        if state.global_step > 0 and (self.best is None or self.best.beaten_by(score)):
            found = best.Best(state.global_step, score)
            if problem := best.keep(self._trainer, self._output_dir, found, self._adapted):
                self._say(state, f"the weights of step {found.step} could not be kept, training goes on: {problem}")
                self.best = gather(best.read(self._output_dir))[0]
            else:
                self.best = found

    def _say(self, state: TrainerState, text: str) -> None:
        if state.is_world_process_zero:
            say_aloud(text)


class Guards(TrainerCallback):
    """Runs the guards over the history whenever a row comes in. A warning is printed and put into the history, once.

    `stop` is set when the run has to end; there is a checkpoint of that step then, unless its weights are worthless.
    """

    def __init__(self, limits: guards.Limits, may_stop: bool) -> None:
        self._limits, self._may_stop = limits, may_stop
        self.stop: guards.Finding | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or not {"loss", SCORE} & logs.keys() or self.stop:
            return
        # Rank 0's word counts, or ranks that disagree would part ways.
        for finding in gather(guards.examine(state.log_history, self._limits))[0]:
            if finding.stop and self._may_stop:
                self.stop = finding
                self._record(state, finding)
                control.should_training_stop = True
                control.should_save = finding.usable and args.save_strategy != "no"
                return
            if not any(row.get("guard") == finding.guard for row in state.log_history):
                self._record(state, finding)
                if state.is_world_process_zero:
                    say_aloud(f"warning after step {state.global_step}: {finding.sentence}")

    def _record(self, state: TrainerState, finding: guards.Finding) -> None:
        history: list[dict[str, Any]] = state.log_history
        history.append({"step": state.global_step, "guard": finding.guard, "warning": finding.sentence})
