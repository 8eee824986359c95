"""Train: `python -m vqa_grpo.training --model_name_or_path … --dataset_name …`, or the same under torchrun.

One process per device; `--help` lists every option. The exit code says why a run stopped (`contract.failure`).
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
import traceback
import uuid
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from vqa_grpo.contract import prompt, vitals
from vqa_grpo.contract.failure import (
    ConfigurationError,
    DataError,
    FailureReason,
    JobError,
    RetryError,
    StepError,
)
from vqa_grpo.models.source import check_source, local_model
from vqa_grpo.report.progress import transferring
from vqa_grpo.storage.store import explain_os_error
from vqa_grpo.training import checkpoints, world
from vqa_grpo.training.arguments import Arguments, parse

if TYPE_CHECKING:
    from trl import GRPOConfig

    from vqa_grpo.training.best import Best
    from vqa_grpo.training.mlflow_run import MLflowRun
    from vqa_grpo.training.samples import Samples
    from vqa_grpo.training.trainer import VQATrainer
    from vqa_grpo.training.validation import Guards, Validation


def train(arguments: Arguments) -> Path:
    """One run from arguments to a model folder, in the order in which things can go wrong cheaply."""
    began = time.monotonic()
    vqa, grpo = arguments.vqa, arguments.grpo
    set_variables(arguments)
    layout = layout_of(grpo)
    start, own = starting_point(arguments, layout)

    template = prompt.load(vqa.prompt_template)
    dataset_folder = world.one_of_each_node_first(lambda: local_data(str(vqa.dataset_name)), "fetching the data set")
    rows = open_split(dataset_folder, template, vqa.train_split, arguments)
    evaluated = open_split(dataset_folder, template, vqa.eval_split, arguments) if grpo.eval_strategy != "no" else None
    questions = held_out(dataset_folder, template, arguments) if vqa.validate_every else None

    from vqa_grpo.rewards.registry import load_rewards
    from vqa_grpo.rewards.settings import RewardSettings

    rewards = load_rewards(vqa.reward_funcs, RewardSettings.from_options(vars(vqa)))

    from vqa_grpo.training import policy, preflight

    source = world.one_of_each_node_first(lambda: base_model(arguments), "fetching the model")
    check_source(source, "--model_name_or_path")
    processor = policy.load_processor(source, vqa.min_pixels, vqa.max_pixels, arguments.model.model_revision)
    preflight.check(arguments, source=source, rows=rows, processor=processor)
    model = policy.load(source, arguments)

    from vqa_grpo.training import best, signs
    from vqa_grpo.training.trainer import VQATrainer

    mlflow_run = watch_with_mlflow(arguments, start if own else None)  # before the trainer reads --report_to
    trainer = VQATrainer(
        model=model,
        reward_funcs=[signs.watched(reward) for reward in rewards],
        args=grpo,
        train_dataset=rows,
        eval_dataset=evaluated,
        processing_class=processor,
        peft_config=policy.peft_config(arguments.model, source, vqa.lora_vision_modules),
        keeper=checkpoints.Keeper(Path(str(grpo.output_dir)), vqa.checkpoint_uri, grpo.save_total_limit, layout),
        layout=layout,
        samples=sampling(arguments, fresh=start is None),
    )
    watch = watch_over(trainer, arguments, questions, start, mlflow_run)
    learn(trainer, start, watch)

    last = policy.save(trainer, processor, source, arguments)
    found = watch.scores.best if watch.scores else None
    folder = last.joinpath(best.FOLDER) if found else last
    if found:
        policy.merge(trainer, folder, processor, source, arguments)
    if trainer.is_world_process_zero():
        deliver(trainer, arguments, template, folder, found, time.monotonic() - began)
    world.meet("publishing the model")
    return folder


def set_variables(arguments: Arguments) -> None:
    """Options that libraries and rewards know as environment variables."""
    if arguments.vqa.logging_dir:
        os.environ["TENSORBOARD_LOGGING_DIR"] = arguments.vqa.logging_dir
    if os.environ.get("DEBUG_MODE", "").lower() == "true":
        os.environ.setdefault("LOG_PATH", str(Path(str(arguments.grpo.output_dir)) / "training_debug.txt"))


def sampling(arguments: Arguments, fresh: bool) -> Samples | None:
    """What keeps completions of the first rank; None on other ranks, and where nobody wants any."""
    from vqa_grpo.training.samples import Samples

    grpo, every = arguments.grpo, arguments.vqa.sample_completions_every
    if not every or grpo.process_index != 0:
        return None
    apart = -(-int(grpo.steps_per_generation or 1) * grpo.num_iterations // grpo.gradient_accumulation_steps)
    samples = Samples(Path(str(grpo.output_dir)), every, apart)
    if fresh:
        samples.forget_earlier_run()
    return samples


class Watch(NamedTuple):
    """What looks on while a run trains; `scores` where something is held out, `mlflow_run` where MLflow is told."""

    guards: Guards
    scores: Validation | None
    mlflow_run: MLflowRun | None


def watch_over(
    trainer: VQATrainer, arguments: Arguments, questions: Any | None, start: Path | None, mlflow_run: MLflowRun | None
) -> Watch:
    """Add the callbacks, in the order in which they are called after each step."""
    from transformers import PrinterCallback

    from vqa_grpo.report.progress import emit
    from vqa_grpo.training import best, guards, progress, signs, validation

    vqa, grpo = arguments.vqa, arguments.grpo
    trainer.add_callback(signs.Signs())
    if progress.lines_wanted():
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(progress.ProgressLines(emit))
    if mlflow_run:
        trainer.add_callback(mlflow_run)
    limits = guards.Limits(
        vqa.guard_patience, vqa.guard_fall, vqa.guard_entropy_fall, vqa.guard_steps_factor, grpo.fp16
    )
    watch = Watch(validation.Guards(limits, may_stop=vqa.guards == "stop"), None, mlflow_run)
    if vqa.guards != "off":
        trainer.add_callback(watch.guards)
    if questions is None:
        return watch
    if trainer.layout.leads:
        best.restore(start, trainer.keeper.output_dir)
    trainer.accelerator.wait_for_everyone()
    trainer.validated = True
    chosen = validation.sample(len(questions), vqa.validation_sample)
    scores = validation.Validation(trainer, questions, chosen, vqa.validate_every, arguments.model.use_peft)
    trainer.add_callback(scores)
    return watch._replace(scores=scores)


def learn(trainer: VQATrainer, start: Path | None, watch: Watch) -> None:
    """Train to the last step. Whatever ends a run earlier is raised, with what a person can do about it."""
    keeper, leave = trainer.keeper, trainer.leave
    status = "FAILED"
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        status = "KILLED" if leave.requested else "FAILED" if watch.guards.stop else "FINISHED"
    except Exception as error:
        with world.said_aloud("keeping the last checkpoint"):
            keeper.wait()  # for the one that is being sealed: it is the one to go on from
        newest = checkpoints.newest_sealed(keeper.output_dir)
        if leave.received:
            status = "KILLED"
            raise stopped(
                leave.received, newest, f"and then {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from error
        if "probability tensor contains" in str(error):  # torch, about sampling from NaN
            from vqa_grpo.training.guards import LESS

            raise ended(f"the weights are NaN or infinite: {LESS}", trainer.state.global_step, newest) from error
        raise
    finally:
        with world.said_aloud("uploading the last checkpoint"):
            keeper.finish()
        if watch.mlflow_run:
            watch.mlflow_run.finish(status)
    world.meet("uploading a checkpoint")
    newest = checkpoints.newest_sealed(keeper.output_dir)
    if leave.requested:
        steps = [step for leads, step in checkpoints.gather((trainer.layout.leads, newest)) if leads]
        where = f"at step {trainer.state.global_step} of {trainer.state.max_steps}"
        raise stopped(leave.requested, None if None in steps else min(steps), where)
    if watch.guards.stop:
        raise ended(watch.guards.stop.sentence, trainer.state.global_step, newest)


def deliver(
    trainer: VQATrainer,
    arguments: Arguments,
    template: prompt.PromptTemplate,
    folder: Path,
    found: Best | None,
    seconds: float,
) -> None:
    """Put the records beside the weights in `folder`, `found` where they are the best ones, and publish it.

    The last weights get their own records, and a place beside it in storage where they are others.
    """
    from vqa_grpo.training import output, validation

    vqa, last, steps = arguments.vqa, trainer.keeper.output_dir, trainer.state.global_step
    rows: Any = trainer.train_dataset
    history = trainer.state.log_history
    facts: dict[str, Any] = {
        "kind": "model",
        "model": arguments.model.model_name_or_path,
        "dataset": vqa.dataset_name,
        "dataset_digest": published_digest(str(vqa.dataset_name)),
        "rows": len(rows),
        "steps": steps,
        "processes": trainer.accelerator.num_processes,
        "distributed": trainer.accelerator.distributed_type.value,
        "seconds": round(seconds, 1),
        "weights_step": steps,
        "best": asdict(found) if found else None,
        "last": {"step": steps, "score": validation.newest_score(history)},
        "warnings": [row for row in history if "guard" in row],
    }
    beside = f"{vqa.publish_uri.rstrip('/')}-last" if vqa.publish_uri and found and found.step != steps else ""
    if beside:
        facts["last"] |= {"uri": beside}
    record = output.write_records(last, arguments, template, history, facts)
    if beside:  # first, since whoever waits for the run waits for publish_uri
        output.publish(beside, last, record, last)
    if found:
        record = output.write_records(folder, arguments, template, history, facts | {"weights_step": found.step})
    if vqa.publish_uri:
        output.publish(vqa.publish_uri, folder, record, last)


def local_data(name: str) -> str:
    """A local path for anything that is published in storage; any other name stays as it is."""
    from vqa_grpo.storage.publish import cache_folder, fetch, looks_published

    if not looks_published(name):
        return name
    with transferring("download") as progress:
        return str(fetch(name, cache_folder(), progress))


def base_model(arguments: Arguments) -> str:
    """The folder of the model that training starts from."""
    name, revision = str(arguments.model.model_name_or_path), arguments.model.model_revision or ""
    with transferring("download") as progress:
        return local_model(name, revision, progress)


def published_digest(name: str) -> str:
    """The digest of a data set that is published; empty for a folder that just lies there."""
    from vqa_grpo.storage.publish import get, looks_published

    return get(name).digest if looks_published(name) else ""


def watch_with_mlflow(arguments: Arguments, continues: Path | None) -> MLflowRun | None:
    """The callback in place of transformers' own, where --report_to names MLflow. `continues` is a checkpoint of the
    same training; a fresh start, and one from another training's checkpoint, make a new run."""
    grpo = arguments.grpo
    trackers = list(grpo.report_to or [])
    if "mlflow" not in trackers:
        return None
    from vqa_grpo.training.mlflow_run import MLflowRun, continued

    grpo.report_to = [name for name in trackers if name != "mlflow"]
    training = (continued(continues) if continues else None) or uuid.uuid4().hex
    params = {**vars(arguments.model), **grpo.to_dict(), **vars(arguments.vqa)}  # to_dict masks tokens
    return MLflowRun(checkpoints.gather(training)[0], params, reports=grpo.process_index == 0)


def layout_of(grpo: GRPOConfig) -> checkpoints.Layout:
    """Who writes which part of a checkpoint. Without save_on_each_node all nodes share a disk and count as one."""
    processes, rank = grpo.world_size, grpo.process_index
    local = world.processes_of_a_node()
    if not grpo.save_on_each_node or local >= processes:
        return checkpoints.Layout(0, 1, processes, tuple(range(processes)), leads=rank == 0)
    first = rank - rank % local
    ranks = tuple(range(first, first + local))
    return checkpoints.Layout(rank // local, processes // local, processes, ranks, leads=rank == first)


def starting_point(arguments: Arguments, layout: checkpoints.Layout) -> tuple[Path | None, bool]:
    """The checkpoint to start from, agreed on by all ranks, and whether it is this run's own; None starts afresh."""
    vqa, grpo = arguments.vqa, arguments.grpo
    asked = str(grpo.resume_from_checkpoint or "")
    own = asked.lower() == "true"
    output_dir = Path(str(grpo.output_dir))

    def chosen(locations: list[str]) -> Path | None:
        with world.said_aloud("looking for a checkpoint to go on from"):
            found = checkpoints.choose(locations, output_dir, layout, gather_after_downloads)
        if found and grpo.process_index == 0:
            checkpoints.say_aloud(f"going on from {found}")
        return found

    if own and (found := chosen([str(output_dir), *filter(None, [vqa.checkpoint_uri])])):
        return found, True
    named = asked if asked and not own and asked.lower() != "false" else vqa.resume_from
    if named:
        if found := chosen([named]):
            if named != asked:
                check_steps_left(checkpoints.read_marker(found).step, arguments)
            return found, named == asked
        option = "--resume_from" if named == vqa.resume_from else "--resume_from_checkpoint"
        raise DataError(f"{option} {named}: there is no whole checkpoint; name another, or leave the option out")
    if own and grpo.process_index == 0:
        checkpoints.say_aloud("no checkpoint to go on from: starting from the beginning")
    return None, False


def gather_after_downloads(own: Any) -> list[Any]:
    """`checkpoints.gather`, entered once every rank is there: a checkpoint's download outlasts a collective."""
    world.meet("fetching a checkpoint")
    return checkpoints.gather(own)


def check_steps_left(begun: int, arguments: Arguments) -> None:
    """Refuse --max_steps that another run, whose steps count on here, has already taken."""
    limit = arguments.grpo.max_steps
    if 0 < limit <= begun:
        raise ConfigurationError(
            f"--resume_from {arguments.vqa.resume_from} is at step {begun}, from where the steps count on, so that "
            f"--max_steps {limit} leaves none: give --max_steps {begun + limit} for {limit} more"
        )


def stopped(number: int, newest: int | None, where: str) -> StepError:
    """Why a run that a signal asked to stop stopped: another attempt can go on where there is a checkpoint."""
    name = signal.Signals(number).name
    if newest is None:
        return JobError(f"stopped by {name} {where}, with no checkpoint to go on from", FailureReason.CANCELLED)
    return RetryError(
        f"stopped by {name} {where}; the newest checkpoint is step {newest}: "
        "start again with --resume_from_checkpoint true"
    )


def ended(why: str, step: int, newest: int | None) -> ConfigurationError:
    """The end that a guard made: the same run again would come to it again, so nobody is asked to retry."""
    left = f"the newest checkpoint is step {newest}" if newest is not None else "there is no checkpoint"
    return ConfigurationError(f"stopped after step {step}: {why} ({left}; --guards warn trains on regardless)")


def held_out(folder: str, template: prompt.PromptTemplate, arguments: Arguments) -> Any | None:
    """The questions that the best weights are chosen by; None, said aloud, where the data set has none of them."""
    if not (Path(folder) / "dataset_dict.json").is_file():
        raise ConfigurationError(
            f"--validate_every needs held-out questions, and {arguments.vqa.dataset_name} has no splits: "
            "save a DatasetDict with a split validation, or leave --validate_every out"
        )
    rows = open_split(folder, template, arguments.vqa.eval_split, arguments)
    if len(rows):
        return rows
    if arguments.grpo.process_index == 0:
        name = arguments.vqa.eval_split
        checkpoints.say_aloud(f"the split {name} has no rows: nothing is validated, and the last weights count")
    return None


def open_split(folder: str, template: prompt.PromptTemplate, split: str, arguments: Arguments) -> Any:
    from vqa_grpo.training.data import open_rows

    return open_rows(Path(folder), template, split, arguments.vqa.reward_funcs, str(arguments.vqa.dataset_name))


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code; whatever goes wrong ends in one line on stderr."""
    # TRL sets this field by itself, so that nobody who reads the warning can act on it.
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        words = sys.argv[1:] if argv is None else argv
        if (report := preflight_report(words)) is not None:
            return report
        arguments = parse(words)
        if vitals.rank() == 0:
            for note in arguments.notes:
                print(f"note: {note}", file=sys.stderr, flush=True)
        train(arguments)
    except (Exception, KeyboardInterrupt) as raised:
        error = explain_os_error(raised) if isinstance(raised, OSError) and raised.errno else raised
        if isinstance(raised, KeyboardInterrupt):  # before the training loop or after it, which has its own handler
            error = JobError("stopped by SIGINT", FailureReason.CANCELLED)
        vitals.fail(error)
        reason = vitals.reason_for(error)
        if reason in (FailureReason.INTERNAL, FailureReason.OUT_OF_MEMORY):
            traceback.print_exc()
        where = f" (rank {vitals.rank()})" if vitals.rank() else ""
        text = " ".join(str(error).split()) or type(error).__name__
        print(
            f"error: {text if isinstance(error, StepError) else f'{type(error).__name__}: {text}'}{where}",
            file=sys.stderr,
        )
        return reason.exit_code
    leave_group()
    return 0


def preflight_report(words: list[str]) -> int | None:
    """The exit code of `--preflight`, which one process of a run looks into; None where it was not asked for."""
    from vqa_grpo.training import preflight

    if not preflight.asked(words):
        return None
    return preflight.report(words) if vitals.rank() == 0 else 0


def leave_group() -> None:
    """Without this a finished DDP run ends with SIGABRT, which reads as a crash."""
    if world.in_group():
        import torch

        torch.distributed.destroy_process_group()


def end(code: int) -> NoReturn:
    """Leave the process with `code`. One that trained among others leaves at once, past the interpreter's own end."""
    if distributed():
        # After a failure other ranks may wait in a collective: taking leave of them could block, and tearing the group
        # down would abort and lose the exit code. After a success gloo's threads now and then outlive their group, and
        # the C++ runtime aborts on them (torch 2.13, under accelerate launch). Trackers still close their runs.
        if code == 0:
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def distributed() -> bool:
    return world.processes() > 1 and "torch" in sys.modules


if __name__ == "__main__":
    end(main())
