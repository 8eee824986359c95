"""Trainer runs in forked children of a process that has imported everything, so that each costs a second or three.

A child can be told to end itself with SIGKILL at a named moment of a step, and it notes a digest of the weights and
of the completions after every step, so that two runs can be compared step by step.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The moments at which a process can be killed. The last six lie inside a save.
TRAINING = ("generating", "backward", "before_optimizer", "after_optimizer", "step_end")
SAVING = ("weights_saved", "optimizer_saved", "random_saved", "before_seal", "in_seal", "after_seal")


@dataclass(frozen=True)
class Rank:
    """One process of a run. `node` and `local` differ from `rank` where a test plays several machines."""

    argv: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)


def preload() -> None:
    """Import all that a run needs. Nothing here may start a thread pool, since the children are forks."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    import trl  # noqa: F401
    from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: F401
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl, processing_qwen2_5_vl  # noqa: F401
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl  # noqa: F401

    import vqa_grpo.rewards.registry
    import vqa_grpo.training.__main__
    import vqa_grpo.training.policy
    import vqa_grpo.training.trainer
    import vqa_grpo.training.validation  # noqa: F401

    torch.set_num_threads(1)


def options(model: Path, dataset: Path, output: Path, *more: str) -> list[str]:
    """Four completions in groups of two each step: six steps to an epoch of twelve rows."""
    return [
        *("--model_name_or_path", str(model), "--dataset_name", str(dataset), "--output_dir", str(output)),
        *("--prompt_template", "short", "--max_completion_length", "6", "--logging_steps", "1", "--seed", "3"),
        *("--per_device_train_batch_size", "4", "--num_generations", "2", "--learning_rate", "1e-3"),
        *("--reward_funcs", "length_reward:ids", "--save_strategy", "steps", "--max_pixels", "4096", "--use_cpu"),
        *("--gradient_checkpointing", "false", "--disable_tqdm", "true", "--report_to", "none", *more),
    ]


def run(
    argv: Sequence[str] | Sequence[Rank],
    log: Path,
    ranks: int = 1,
    kill: tuple[str, int] | None = None,
    killed_rank: int | None = None,
    journal: Path | None = None,
    term: tuple[int, int] | None = None,
    gone: int | None = None,
    limit: float = 540.0,
    sent: int = signal.SIGTERM,
) -> list[int]:
    """Run the trainer in `ranks` forked processes; their exit codes, -9 for a killed one.

    `kill` is a moment and a step, `term` a rank that gets the signal `sent` once the journal has a step. When one
    process dies from a signal the others are killed too, as a launcher would. `gone` is a rank that is lost at the
    moment of the signal, as with a machine: the others are left to themselves.
    """
    processes = [rank for rank in argv if isinstance(rank, Rank)] or [Rank([str(word) for word in argv])] * ranks
    port = _free_port()
    victim = len(processes) - 1 if killed_rank is None else killed_rank
    children: list[int] = []
    for number, process in enumerate(processes):
        environment = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(len(processes))}
        environment |= {"LOCAL_WORLD_SIZE": str(len(processes)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        pid = os.fork()
        if not pid:
            _child(process, environment if len(processes) > 1 else {}, log, kill if number == victim else None, journal)
        children.append(pid)
    if term and journal:
        while not any(step >= term[1] for _, step in lines(journal)) and not _ended(children[0]):
            time.sleep(0.005)
        if gone is not None:
            os.kill(children[gone], signal.SIGSTOP)  # not dead yet, so that the others still wait for it
        os.kill(children[term[0]], sent)
        if gone is not None:
            time.sleep(0.5)
            os.kill(children[gone], signal.SIGKILL)
    return _wait(children, limit, gone)


class Parent:
    """The warm process, for tests: what they themselves started (threads, servers) would not survive a fork."""

    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(root / "src"), str(Path(__file__).parent)])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, argv: Sequence[Any], log: Path, **more: Any) -> list[int]:
        """`run` in the warm process; its exit codes."""
        words = [vars(part) if isinstance(part, Rank) else str(part) for part in argv]
        request = {"argv": words, "log": str(log), **{key: _plain(value) for key, value in more.items()}}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        for text in self._process.stdout:
            if text.startswith("codes "):
                codes: list[int] = json.loads(text.removeprefix("codes "))
                return codes
        raise AssertionError("the warm process ended")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve() -> None:
    preload()
    for text in sys.stdin:
        request = json.loads(text)
        argv = [Rank(**part) if isinstance(part, dict) else part for part in request.pop("argv")]
        paths = {key: Path(request.pop(key)) for key in ("log", "journal") if request.get(key)}
        print("codes", json.dumps(run(argv, **paths, **request)), flush=True)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def lines(journal: Path) -> dict[tuple[int, int], set[tuple[str, str]]]:
    """(rank, step) → the digests that were noted there; more than one where a replayed step came out otherwise."""
    found: dict[tuple[int, int], set[tuple[str, str]]] = {}
    for note in notes(journal):
        if "completions" in note:
            digests = (json.dumps(note["weights"], sort_keys=True), note["completions"])
            found.setdefault((note["rank"], note["step"]), set()).add(digests)
    return found


def reloaded(journal: Path) -> dict[tuple[int, int], dict[str, str]]:
    """(rank, step) → digest by parameter, as a run found its weights before its first step."""
    return {(note["rank"], note["step"]): note["weights"] for note in notes(journal) if "completions" not in note}


def notes(journal: Path) -> list[dict[str, Any]]:
    found = []
    for text in journal.read_text().splitlines() if journal.is_file() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue  # the writer was killed in the middle
    return found


def digests(model: Any) -> dict[str, str]:
    """A digest for each parameter, split ones gathered."""
    from vqa_grpo.training.trainer import whole_parameters

    with whole_parameters(list(model.parameters())):
        return {
            name: hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
            for name, value in model.named_parameters()
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(
    process: Rank, environment: dict[str, str], log: Path, kill: tuple[str, int] | None, journal: Path | None
) -> None:
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment | process.environment)
        sys.path.insert(0, str(Path(__file__).parent))
        from vqa_grpo.training import __main__ as entry

        _watch(kill, journal)
        code = entry.main(list(process.argv))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(children: list[int], limit: float, gone: int | None = None) -> list[int]:
    codes: dict[int, int] = {}
    deadline = time.monotonic() + limit
    while len(codes) < len(children):
        for pid in children:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        fallen = [pid for pid, code in codes.items() if code < 0 and (gone is None or pid != children[gone])]
        if time.monotonic() > deadline or fallen:
            for pid in children:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
                    codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.005)
    return [codes[pid] for pid in children]


def _watch(kill: tuple[str, int] | None, journal: Path | None) -> None:
    """Patch the trainer of this process: note each step, and die where the test says."""
    from transformers import TrainerCallback

    from vqa_grpo.training import checkpoints, validation
    from vqa_grpo.training.trainer import VQATrainer

    moment, step = kill or ("", -1)
    rank = int(os.environ.get("RANK", "0"))
    now: dict[str, Any] = {}

    def die(here: str, at: int) -> None:
        if here == moment and at == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(**note: Any) -> None:
        if journal:
            with journal.open("a") as file:
                file.write(json.dumps({"rank": rank, **note}) + "\n")

    class Spy(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            write(step=state.global_step, weights=digests(model))

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            die("before_optimizer", state.global_step + 1)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            die("after_optimizer", state.global_step + 1)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            total = hashlib.sha256()
            for batch in now["trainer"]._buffered_inputs:
                total.update(batch["completion_ids"].cpu().numpy().tobytes())
            write(step=state.global_step, weights=digests(model), completions=total.hexdigest())
            die("step_end", state.global_step)

    def after(name: str, here: str) -> None:
        original = getattr(VQATrainer, name)

        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if "saved" not in here or self.is_in_train:
                die(here, self.state.global_step + ("saved" not in here))
            return result

        setattr(VQATrainer, name, wrapped)

    if scripted := json.loads(os.environ.get("SCORES", "null")):
        # Held-out scores by step, in tenths: what a model of random weights says is always wrong.
        judge = validation.judge

        def scored(*args: Any) -> Any:
            tenths = scripted[str(now["trainer"].state.global_step)]
            return judge(*args)._replace(asked=10, right=tenths)

        validation.judge = scored

    begin, generate = VQATrainer.__init__, VQATrainer._generate_and_score_completions

    def started(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        now["trainer"] = self
        self.add_callback(Spy())

    def generated(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = generate(self, *args, **kwargs)
        die("generating", self.state.global_step + 1)
        return result

    VQATrainer.__init__, VQATrainer._generate_and_score_completions = started, generated  # type: ignore[method-assign]
    after("training_step", "backward")
    after("save_model", "weights_saved")
    after("_save_optimizer_and_scheduler", "optimizer_saved")
    after("_save_rng_state", "random_saved")
    take, complete = checkpoints.Keeper.take, checkpoints._check_complete

    def taken(self: Any, folder: Path, save_id: str, at: int, *more: Any) -> None:
        die("before_seal", at)
        take(self, folder, save_id, at, *more)
        if moment == "after_seal":
            self.wait()
        die("after_seal", at)

    def completed(folder: Path, marker: Any) -> None:
        die("in_seal", marker.step)
        complete(folder, marker)

    checkpoints.Keeper.take, checkpoints._check_complete = taken, completed  # type: ignore[method-assign]


if __name__ == "__main__":
    serve()
