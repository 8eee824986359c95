"""What can be known before any GPU time: each check looks at one thing and says what it found, or refuses.

Every start runs `CHECKS` before weights are loaded and stops at the first that refuses. `--preflight` runs the rules of
the command line too, all of them, and prints one line for each.
"""

from __future__ import annotations

import dataclasses
import io
import math
import shutil
import sys
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TextIO

from vqa_grpo.contract import prompt
from vqa_grpo.contract.failure import ConfigurationError, DataError, FailureReason, StepError
from vqa_grpo.models.source import check_source, local_model
from vqa_grpo.storage.store import explain_os_error, is_remote
from vqa_grpo.training import cpu, world
from vqa_grpo.training.arguments import RULES, Arguments, Reading, rules, settings

SAMPLE = 512  # rows looked at, evenly spread
TURN_TOKENS = 16  # what a chat template puts around one question
ADAM_BYTES = {"deepspeed": 12, "plain": 8}  # a parameter: two moments in float32, under DeepSpeed a master copy too
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30


class Subject:
    """A run's settings by name, and what they name, opened when a check first asks for it.

    `known` holds what the caller has open already: rows, processor, source.
    """

    def __init__(self, values: dict[str, Any], **known: Any) -> None:
        self.values = values
        vars(self).update(known)

    @cached_property
    def source(self) -> str:
        return local_model(str(self.values["model_name_or_path"]), str(self.values["model_revision"] or ""))

    @cached_property
    def rows(self) -> Any:
        from vqa_grpo.training.data import open_rows

        values = self.values
        folder = Path(_local(str(values["dataset_name"])))
        template = prompt.load(values["prompt_template"])
        return open_rows(folder, template, values["train_split"], values["reward_funcs"], str(values["dataset_name"]))

    @cached_property
    def sample(self) -> list[dict[str, Any]]:
        """Rows as they are stored, pictures still encoded."""
        stored = self.rows.with_format(None)
        step = max(1, len(stored) // SAMPLE)
        return [stored[number] for number in range(0, len(stored), step)][:SAMPLE]

    @cached_property
    def processor(self) -> Any:
        from vqa_grpo.training import policy

        values = self.values
        return policy.load_processor(self.source, values["min_pixels"], values["max_pixels"], values["model_revision"])

    @cached_property
    def outline(self) -> Any:
        """The model without weights: names and shapes only."""
        from vqa_grpo.models.load import outline

        check_source(self.source, "--model_name_or_path")
        try:
            return outline(self.source, self.values["model_revision"])
        except (OSError, ValueError) as error:
            name = self.values["model_name_or_path"]
            raise ConfigurationError(f"--model_name_or_path {name}: {' '.join(str(error).split())[:300]}") from error

    @cached_property
    def reached(self) -> list[str] | None:
        """The layers that LoRA reaches; None without LoRA."""
        from trl import ModelConfig

        from vqa_grpo.training import policy

        names = [field.name for field in dataclasses.fields(ModelConfig)]
        model = ModelConfig(**{name: self.values[name] for name in names})
        config = policy.peft_config(model, self.source, self.values["lora_vision_modules"])
        return None if config is None else policy.adapted_modules(self.outline, config)

    @property
    def weights(self) -> int:
        """Parameters of the whole model."""
        return sum(value.numel() for value in self.outline.parameters())

    @property
    def trained(self) -> int:
        """Parameters that the optimizer keeps moments for: those of the adapter, or all that are not frozen."""
        from vqa_grpo.training import policy

        if self.reached is not None:
            rank, layers = self.values["lora_r"], dict(self.outline.named_modules())
            return sum(rank * sum(layers[name].weight.shape[:2]) for name in self.reached)
        frozen = policy.vision_parameters(self.outline, self.source) if self.values["freeze_vision_modules"] else []
        return self.weights - sum(value.numel() for value in frozen)


def _local(name: str) -> str:
    from vqa_grpo.storage.publish import cache_folder, fetch, looks_published

    return str(fetch(name, cache_folder())) if looks_published(name) else name


# --- the checks -------------------------------------------------------------------------------------------------


def data(subject: Subject) -> str:
    values, rows = subject.values, subject.rows
    rules.check_numbers(values)
    batch = values["generation_batch_size"] or rules.completions_a_round(values)[0]
    prompts = batch // int(values["num_generations"] or 1)
    if len(rows) < prompts:
        raise ConfigurationError(
            f"--dataset_name {values['dataset_name']} has {len(rows)} rows, but one round takes {prompts} "
            f"({batch} completions in groups of {values['num_generations']}): make the batch smaller"
        )
    return f"{len(rows):,} rows, {prompts} of them a round"


def reward_columns(subject: Subject) -> str:
    """Where 'reasoning' is asked for, the column must also hold steps: without any the reward is 0 for ever."""
    functions = subject.values["reward_funcs"]
    if "reasoning" not in functions:
        return f"{', '.join(functions)}: nothing beside the answer is needed"
    with_steps = sum(bool(row["reference_steps"]) for row in subject.sample)
    if not with_steps:
        raise DataError(
            f"none of the {len(subject.sample)} rows looked at has reference_steps, so that 'reasoning' would never "
            "pay: fill the column, or leave 'reasoning' out of --reward_funcs"
        )
    return f"{with_steps} of {len(subject.sample)} rows looked at have reference_steps"


def context(subject: Subject) -> str:
    """The longest prompt with the costliest picture, and a whole completion, must fit the positions of the model."""
    from vqa_grpo.models.families import family_of

    values = subject.values
    limit = getattr(subject.outline.config.get_text_config(), "max_position_embeddings", None)
    text = max(map(len, subject.processor.tokenizer(_texts(subject))["input_ids"])) + TURN_TOKENS
    family = family_of(subject.source)
    if family is None or limit is None:
        return f"prompts of up to {text:,} text tokens; what a picture costs in this family is not known here"
    picture = max(family.visual_tokens(*size, values["min_pixels"], values["max_pixels"]) for size in _sizes(subject))
    completion = int(values["max_completion_length"] or 0)
    total = text + picture + completion
    sums = f"{text:,} text + {picture:,} visual + {completion:,} completion tokens = {total:,}"
    if total > limit:
        room = limit - text - completion
        pixels = (room - 2) * family.cell**2
        fix = f"--max_pixels {pixels}" if pixels >= max(values["min_pixels"], family.cell**2) else "shorter prompts"
        raise ConfigurationError(
            f"{sums}, more than the {limit:,} positions of {values['model_name_or_path']}: "
            f"give {fix}, or a smaller --max_completion_length"
        )
    return f"{sums} of {limit:,} positions, at most, in {len(subject.sample)} rows looked at"


def _texts(subject: Subject) -> list[str]:
    template = prompt.load(subject.values["prompt_template"])
    return [
        template.render(row["question"], row.get("choices") or [], row.get("options") or []) for row in subject.sample
    ]


def _sizes(subject: Subject) -> set[tuple[int, int]]:
    """Width and height of the sample's pictures, from their headers."""
    from PIL import Image

    found = set()
    for row in subject.sample:
        picture = row["image"]
        try:
            with Image.open(io.BytesIO(picture["bytes"]) if picture["bytes"] else picture["path"]) as opened:
                found.add(opened.size)
        except Exception:  # noqa: S112 - a picture that cannot be read is named, with its question, when it is trained on
            continue
    return found or {(1, 1)}


def adapter(subject: Subject) -> str:
    share = f"{_count(subject.trained)} of {_count(subject.weights)} parameters are trained"
    return f"none, {share}" if subject.reached is None else f"LoRA on {len(subject.reached)} layers, {share}"


def precision(subject: Subject) -> str:
    """Whether this device computes in what was asked for; the CPU always trains in float32."""
    import torch

    values = subject.values
    if values["use_cpu"] or not rules.has_cuda():
        return "float32 on the CPU"
    name, dtype = torch.cuda.get_device_name(), str(values["dtype"]).removeprefix("torch.")
    if (values["bf16"] or dtype == "bfloat16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigurationError(f"{name} does not compute in bfloat16: give --fp16 --torch_dtype float32 instead")
    mixed = next((kind for kind in ("bf16", "fp16") if values[kind]), "none")
    return f"weights in {dtype}, mixed precision {mixed}, on {name}"


def deepspeed(subject: Subject) -> str:
    """What DeepSpeed needs at launch: enough processes, and a compiler where it compiles its optimizer."""
    values = subject.values
    if not cpu.wants_deepspeed(values):
        return "not asked for"
    cpu.check_deepspeed(values)
    if not values["deepspeed"]:
        return "as accelerate's launcher configures it"
    stage = rules.zero_stage(values["deepspeed"])
    if rules.offloads(values["deepspeed"]) and not (_compiler() or _built_with_deepspeed("cpu_adam")):
        raise ConfigurationError(
            "--deepspeed with an offloaded optimizer compiles it at first use, and there is no C++ compiler here: "
            "install g++ and ninja, or give --deepspeed zero3"
        )
    return f"ZeRO-{stage}, {world.processes()} processes"


def _compiler() -> str | None:
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def _built_with_deepspeed(part: str) -> bool:
    """Whether DeepSpeed was installed with this part compiled (DS_BUILD_…), as in a training image."""
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(part))


def disk(subject: Subject) -> str:
    """The checkpoints that stay, one more that is being written, and the final model must fit into output_dir."""
    values = subject.values
    rules.check_numbers(values)
    item = ITEM_BYTES.get(str(values["dtype"]).removeprefix("torch."), 4)
    adam = ADAM_BYTES["deepspeed" if cpu.wants_deepspeed(values) else "plain"]
    written = subject.weights if subject.reached is None else subject.trained
    one, final = written * item + subject.trained * adam, subject.weights * item
    count = _kept(values, len(subject.rows))
    needed = final + one * count
    place = _existing(Path(str(values["output_dir"] or "trainer_output")))
    free = shutil.disk_usage(place).free
    sums = f"{_bytes(one)} a checkpoint x {count} + {_bytes(final)} for the final model = {_bytes(needed)}"
    if needed > free:
        fits = int((free - final) // one) - 1
        fix = f"give --save_total_limit {fits}" if fits >= 1 else "free some, or give another --output_dir"
        raise ConfigurationError(f"{sums}, but {place} has {_bytes(free)} free: {fix}")
    return f"{sums} of {_bytes(free)} free in {place}"


def storage(subject: Subject) -> str:
    """One small object is asked for in each place in S3, so that wrong credentials are found out before training."""
    from vqa_grpo.storage.publish import is_published

    named = [str(subject.values[name] or "") for name in ("checkpoint_uri", "publish_uri")]
    uris = list(filter(is_remote, named))
    for uri in uris:
        is_published(uri)
    return f"{', '.join(uris)}: answers" if uris else "no S3"


def _kept(values: dict[str, Any], rows: int) -> int:
    """How many checkpoints lie in output_dir at the worst moment."""
    strategy = str(getattr(values["save_strategy"], "value", values["save_strategy"]))
    if strategy == "no":
        return 0
    every, limit = float(values["save_steps"]), values["save_total_limit"]
    if strategy == "epoch":
        saves = math.ceil(values["num_train_epochs"])
    else:
        saves = math.ceil(1 / every if every < 1 else _total_steps(values, rows) / every)
    return min(saves, limit + 1) if limit else saves


def _total_steps(values: dict[str, Any], rows: int) -> int:
    if values["max_steps"] > 0:
        return int(values["max_steps"])
    size = values["per_device_train_batch_size"] * world.processes() * values["gradient_accumulation_steps"]
    return math.ceil(rows * int(values["num_generations"] or 1) * values["num_train_epochs"] / size)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _count(parameters: int) -> str:
    if parameters < 1e6:
        return f"{parameters:,}"
    return f"{parameters / 1e9:.2f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.2f} million"


def _bytes(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "storage": storage,
    "data": data,
    "reward columns": reward_columns,
    "deepspeed launch": deepspeed,
    "precision": precision,
    "adapter layers": adapter,
    "context": context,
    "disk": disk,
}


def check(arguments: Arguments, **known: Any) -> list[str]:
    """Run every check at the start of a run; returns what they found. The first that refuses raises its StepError."""
    values = {**vars(arguments.model), **vars(arguments.grpo), **vars(arguments.vqa)}
    subject = Subject(values, **known)
    return [f"{name}: {look(subject)}" for name, look in CHECKS.items()]


def report(argv: list[str], out: TextIO | None = None) -> int:
    """Print one line for each rule and check, all of them; the exit code is 0, or 78 when one refuses."""
    reading = settings(argv)
    subject = Subject(reading.values)
    looks = {name: partial(_ruled, rule, reading) for name, rule in RULES.items()}
    looks |= {name: partial(look, subject) for name, look in CHECKS.items()}
    refusals: list[str] = []
    for name, look in looks.items():
        mark, says = _found(look)
        if mark == "FAIL" and says in refusals:
            mark, says = "-", "not checked: see above"
        elif mark == "FAIL":
            refusals.append(says)
        print(f"{mark:<4}  {name:<20}  {says}".rstrip(), file=out or sys.stdout, flush=True)
    verdict = f"{len(refusals)} of {len(looks)} checks refuse" if refusals else "ready"
    print(f"preflight: {verdict}", file=out or sys.stdout, flush=True)
    return FailureReason.CONFIGURATION.exit_code if refusals else 0


def asked(argv: list[str]) -> bool:
    return bool(settings(argv).values["preflight"])


def _ruled(rule: Callable[[Reading], None], reading: Reading) -> str:
    before = len(reading.notes)
    rule(reading)
    return "; ".join(reading.notes[before:])


def _found(look: Callable[[], str]) -> tuple[str, str]:
    try:
        return "ok", look()
    except OSError as error:
        return "FAIL", str(explain_os_error(error))
    except StepError as error:
        return "FAIL", " ".join(str(error).split())
