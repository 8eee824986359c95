"""The rules. Each looks at the settings, changes what it decides for the user and notes it, or refuses.

They work on a dict, because GRPOConfig refuses a whole configuration as it is built (bf16 without a GPU, a batch that
cannot be grouped) in words that help nobody.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.storage.store import is_remote, normalise
from vqa_grpo.training import cpu, world
from vqa_grpo.training.arguments.fields import MAX_PIXELS, PIXELS_PER_TOKEN
from vqa_grpo.training.arguments.reading import Reading

PRESETS = Path(__file__).parent.parent / "deepspeed"
MAX_GENERATIONS = 8
VQA_COMPLETION_LENGTH = 768


def _required(reading: Reading) -> None:
    values = reading.values
    for name, example in (
        ("model_name_or_path", "--model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct"),
        ("dataset_name", "--dataset_name /path/to/dataset"),
    ):
        if not values[name]:
            raise ConfigurationError(f"--{name} is missing: give for example {example}")
    if not values["use_huggingface_dataset"]:
        raise ConfigurationError(
            "--use_huggingface_dataset cannot be turned off: every data set is a save_to_disk folder"
        )
    if values["task_type"] != "vqa":
        raise ConfigurationError(f"--task_type {values['task_type']} is not supported: this project trains 'vqa' only")


def _model_without_remote_code(reading: Reading) -> None:
    name = str(reading.values["model_name_or_path"])
    lowered = name.partition("@")[0].rstrip("/").lower()
    if os.path.isdir(name) or "://" in name:
        return  # a folder is judged by its own config.json when it is loaded
    if re.search(r"internvl[-_]?\d", lowered) and not lowered.endswith("-hf"):
        raise ConfigurationError(
            f"{name} runs only with code from its repository, which is never executed: "
            "use a checkpoint in transformers' own format, such as OpenGVLab/InternVL3-8B-hf"
        )
    if re.search(r"glm-4v-\d", lowered):
        raise ConfigurationError(
            f"{name} runs only with code from its repository, which is never executed: "
            "use zai-org/GLM-4.1V-9B-Thinking (formerly under THUDM), which transformers supports natively"
        )


def _numbers(reading: Reading) -> None:
    check_numbers(reading.values)


def check_numbers(values: dict[str, Any]) -> None:
    """Raises one ConfigurationError for all numbers no run can train with; NaN fails every comparison here."""
    wrong = [
        f"--{name} {value}: give {wanted}"
        for name, (fits, wanted) in NUMBERS.items()
        if (value := values[name]) is not None and not fits(value)
    ]
    if wrong:
        raise ConfigurationError("; ".join(wrong))


def _at_least_0(value: float) -> bool:
    return 0 <= value < math.inf


def _above_0(value: float) -> bool:
    return 0 < value < math.inf


def _at_least_1(value: float) -> bool:
    return 1 <= value < math.inf


def _all_finite(values: list[float]) -> bool:
    return all(map(math.isfinite, values))


NUMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (_at_least_0, "a finite number of 0 or more"),
    "temperature": (_above_0, "a finite number above 0"),
    "beta": (_at_least_0, "a finite number of 0 or more"),
    "reward_weights": (_all_finite, "finite numbers"),
    "max_steps": (lambda steps: steps != 0, "1 or more, or leave it out to train --num_train_epochs"),
    "num_train_epochs": (_above_0, "a finite number above 0"),
    "max_completion_length": (_at_least_1, "1 or more"),
    "per_device_train_batch_size": (_at_least_1, "1 or more"),
    "gradient_accumulation_steps": (_at_least_1, "1 or more"),
    "generation_batch_size": (_at_least_1, "1 or more"),
    "steps_per_generation": (_at_least_1, "1 or more"),
    "num_iterations": (_at_least_1, "1 or more"),
    "save_steps": (_above_0, "1 or more, or a share of all steps below 1"),
    "seed": (lambda seed: 0 <= seed < 2**32, "a number from 0 to 4294967295"),
}


def _rewards(reading: Reading) -> None:
    from vqa_grpo.contract import prompt
    from vqa_grpo.rewards.registry import load_rewards
    from vqa_grpo.rewards.settings import RewardSettings

    values = reading.values
    settings = RewardSettings.from_options(values)
    idle = sorted(name for name in reading.given if name.startswith("judge_"))
    if idle and not values["use_judge"]:
        raise ConfigurationError(f"--{idle[0]} has no effect without --use_judge: add --use_judge")
    load_rewards(values["reward_funcs"], settings)
    weights = values["reward_weights"]
    if weights and len(weights) != len(values["reward_funcs"]):
        raise ConfigurationError(
            f"--reward_weights has {len(weights)} numbers for {len(values['reward_funcs'])} rewards "
            f"({', '.join(values['reward_funcs'])}): give one for each, in this order"
        )
    prompt.load(values["prompt_template"])


def _pixels(reading: Reading) -> None:
    low, high = reading.values["min_pixels"], reading.values["max_pixels"]
    if not 0 < low <= high:
        raise ConfigurationError(f"--min_pixels {low} and --max_pixels {high}: need 0 < min_pixels <= max_pixels")
    if high > 4 * MAX_PIXELS:
        reading.notes.append(
            f"--max_pixels {high} lets one large picture become {high // PIXELS_PER_TOKEN:,} visual tokens, "
            f"{high / MAX_PIXELS:.0f} times the default of {MAX_PIXELS} in memory and time"
        )


def _lora(reading: Reading) -> None:
    values = reading.values
    targets = values["lora_target_modules"] or []
    if not values["use_peft"]:
        idle = sorted(
            name for name in reading.given if name.startswith("lora_") or name in ("load_in_4bit", "load_in_8bit")
        )
        if idle:
            raise ConfigurationError(f"--{idle[0]} has no effect without --use_peft: add --use_peft")
        return
    if any(_reaches(str(target), "lm_head") for target in targets):
        raise ConfigurationError(
            "lm_head in --target_modules cannot be trained: TRL reads the output layer's weight directly and would "
            "miss the adapter; leave lm_head out"
        )
    if values["load_in_4bit"] and values["load_in_8bit"]:
        raise ConfigurationError("--load_in_4bit and --load_in_8bit exclude each other: give one of them")
    if (values["load_in_4bit"] or values["load_in_8bit"]) and not _installed("bitsandbytes"):
        raise ConfigurationError(
            "--load_in_4bit and --load_in_8bit need bitsandbytes, which is not installed here: "
            "pip install 'vqa-grpo[qlora]'"
        )
    if values["lora_vision_modules"] and values["freeze_vision_modules"]:
        raise ConfigurationError(
            "--lora_vision_modules trains what --freeze_vision_modules leaves as it is: leave out one of them"
        )


def _reaches(target: str, module: str) -> bool:
    """Whether PEFT would adapt `module` for `target`: a name, the end of a path, or a pattern of the whole path."""
    if target.rsplit(".", 1)[-1] == module:
        return True
    try:
        return target != "all-linear" and re.fullmatch(target, module) is not None
    except re.error:
        return False


def _generation(reading: Reading) -> None:
    values = reading.values
    if values["use_vllm"]:
        if not _installed("vllm"):
            raise ConfigurationError(
                "--use_vllm needs vllm, which is not installed here: leave it out, or use an image with vllm"
            )
        if values["vllm_mode"] != "server":
            raise ConfigurationError(
                "--use_vllm in colocate mode can corrupt prompts when pictures differ in size (huggingface/trl#6294): "
                "give --vllm_mode server, or leave --use_vllm out"
            )
    if values["use_transformers_continuous_batching"] or values["use_transformers_paged"]:
        raise ConfigurationError("continuous batching in transformers cannot take pictures: leave the option out")
    if "max_completion_length" not in reading.given and values["prompt_template"] == "vqa":
        values["max_completion_length"] = VQA_COMPLETION_LENGTH
    # TRL would gather every picture on every rank for its table of completions, even when no table is written.
    if values["log_multimodal"] and "log_multimodal" in reading.given:
        reading.notes.append(
            "--log_multimodal is set aside: pictures are never gathered over the ranks; "
            "--sample_completions_every writes completions with theirs"
        )
    values["log_multimodal"] = False


def _device(reading: Reading) -> None:
    values = reading.values
    if values["bf16"] and values["fp16"]:
        raise ConfigurationError(
            "--bf16 and --fp16 exclude each other: give --bf16, or --fp16 on a GPU without bfloat16"
        )
    if has_cuda() and not values["use_cpu"]:
        if "dtype" not in reading.given:
            half = values["bf16"] or (values["bf16"] is None and not values["fp16"])
            values["dtype"] = "bfloat16" if half else "float32"
        if values["fp16"] and values["dtype"] == "float16" and not values["use_peft"]:
            raise ConfigurationError(
                "--fp16 cannot scale the gradients of weights in float16: add --torch_dtype float32, or train an "
                "adapter with --use_peft"
            )
        return
    asked = [name for name in ("bf16", "fp16") if values[name]]
    if not values["use_cpu"]:
        if asked:
            raise ConfigurationError(
                f"--{asked[0]} needs a GPU and this host has none: add --use_cpu to train in float32 on the CPU instead"
            )
        values["use_cpu"] = True
        reading.notes.append("no GPU on this host: training on the CPU in float32 (--use_cpu)")
    elif asked:
        reading.notes.append(f"--use_cpu sets --{asked[0]} aside: the CPU trains in float32")
    values["bf16"] = values["fp16"] = False
    if cpu.alone_among_several():
        reading.notes.append(
            "accelerate launch found no GPU and started one process, though it was asked for several: "
            "add --multi_gpu to it, or use torchrun, for several on the CPU"
        )


def _deepspeed(reading: Reading) -> None:
    asked = reading.values["deepspeed"]
    if not asked:
        return
    if not _installed("deepspeed"):
        raise ConfigurationError("--deepspeed needs the deepspeed package, which is not installed here")
    if not str(asked).lstrip().startswith("{"):
        reading.values["deepspeed"] = str(_deepspeed_file(str(asked), reading))
    quantised = [name for name in ("load_in_4bit", "load_in_8bit") if reading.values[name]]
    if quantised and zero_stage(reading.values["deepspeed"]) == 3:
        raise ConfigurationError(
            f"--{quantised[0]} needs weights that each process holds whole, and ZeRO-3 splits them: --deepspeed zero2"
        )


def zero_stage(asked: str) -> int:
    """The ZeRO stage of a DeepSpeed file or of its text."""
    return int(_zero(asked).get("stage", 0))


def offloads(asked: str) -> bool:
    """Whether the optimizer runs on the CPU, for which DeepSpeed compiles code of its own."""
    return "offload_optimizer" in _zero(asked)


def _zero(asked: str) -> dict[str, Any]:
    try:
        text = asked if asked.lstrip().startswith("{") else Path(asked).read_text(encoding="utf-8")
        return dict(json.loads(text).get("zero_optimization", {}))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"--deepspeed {asked} is no DeepSpeed configuration in JSON: {error}") from None


def _deepspeed_file(asked: str, reading: Reading) -> Path:
    if Path(asked).is_file():
        return Path(asked)
    match = re.fullmatch(
        r"(?:deepspeed_|ds_)?(?:config_)?(zero[123](?:_offload)?)(?:_config)?",
        Path(asked).stem.lower().replace("-", "_"),
    )
    preset = PRESETS / f"{match.group(1)}.json" if match else None
    if preset is None or not preset.is_file():
        names = ", ".join(sorted(path.stem for path in PRESETS.glob("*.json")))
        raise ConfigurationError(f"--deepspeed {asked}: no such file, and no shipped preset has that name ({names})")
    reading.notes.append(f"--deepspeed {asked}: no such file, using the shipped preset {preset.stem}")
    return preset


def _groups(reading: Reading) -> None:
    """GRPO compares the completions of one prompt, so the completions of a round must divide into whole groups."""
    values = reading.values
    batch, made_of = completions_a_round(values)
    asked = values["num_generations"]
    if "num_generations" in reading.given:
        if asked is None or asked < 2:
            raise ConfigurationError(
                f"--num_generations {asked}: GRPO compares completions, it needs at least 2 of each prompt"
            )
        if batch % asked:
            near = sorted(_divisors(batch), key=lambda number: (abs(number - asked), number))[:3]
            fix = f"--num_generations {' or '.join(map(str, sorted(near)))}" if near else "a larger batch"
            raise ConfigurationError(
                f"{batch} completions a round ({made_of}) cannot be split into groups of --num_generations {asked}: "
                f"use {fix}, or make the product a multiple of {asked}"
            )
        return
    fitting = [number for number in _divisors(batch) if number <= MAX_GENERATIONS]
    if not fitting:
        sizes = " or ".join(map(str, _nearest_batches(batch, world.processes())))
        raise ConfigurationError(
            f"{batch} completions a round ({made_of}) cannot be split into groups of 2 to {MAX_GENERATIONS}: "
            f"change the batch size or --gradient_accumulation_steps so that the product is {sizes}"
        )
    values["num_generations"] = max(fitting)
    reading.notes.append(
        f"--num_generations is {max(fitting)}, the largest group up to {MAX_GENERATIONS} that divides "
        f"the {batch} completions of a round ({made_of})"
    )


def completions_a_round(values: dict[str, Any]) -> tuple[int, str]:
    """How many completions one generation makes over all processes, and what the number is made of."""
    check_numbers(values)
    size = values["per_device_train_batch_size"]
    if values["generation_batch_size"]:
        if values["steps_per_generation"]:
            raise ConfigurationError(
                "--generation_batch_size and --steps_per_generation say the same thing: give one of them"
            )
        return values["generation_batch_size"], "--generation_batch_size"
    if values["steps_per_generation"]:
        steps, name = values["steps_per_generation"], "steps per generation"
    else:
        steps, name = values["gradient_accumulation_steps"], "accumulation steps"
    return size * world.processes() * steps, f"batch {size} x {world.processes()} processes x {steps} {name}"


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(2, number + 1) if number % divisor == 0]


def _nearest_batches(batch: int, processes: int) -> list[int]:
    """The next smaller and larger multiple of the number of processes that can be grouped."""

    def usable(number: int) -> bool:
        return number % processes == 0 and any(number % group == 0 for group in range(2, MAX_GENERATIONS + 1))

    below = next((number for number in range(batch - 1, 1, -1) if usable(number)), None)
    above = next(number for number in range(batch + 1, 2 * (batch + 1) * processes + 1) if usable(number))
    return [number for number in (below, above) if number]


def _checkpoints(reading: Reading) -> None:
    values = reading.values
    for name, instead in {
        "enable_jit_checkpoint": "SIGTERM already makes all ranks save at the next step",
        "save_only_model": "such a checkpoint cannot be resumed from; the final model is written in any case",
    }.items():
        if values[name]:
            raise ConfigurationError(f"--{name} cannot be used: {instead}; leave it out")
    saving = values["save_strategy"] != "no"
    if values["checkpoint_uri"] and not saving:
        raise ConfigurationError(
            f"--checkpoint_uri {values['checkpoint_uri']} has nothing to copy under --save_strategy no: "
            "give --save_strategy steps and --save_steps"
        )
    if world.processes_of_a_node() < world.processes() and "save_on_each_node" not in reading.given:
        values["save_on_each_node"] = True
        reading.notes.append("several nodes: each saves its own part of a checkpoint (--save_on_each_node)")
    if values["sync_ref_model"] and saving:
        reading.notes.append("--sync_ref_model: the moving reference is in no checkpoint, a resumed run starts it anew")
    every, step = _steps_between_generations(values), values["save_steps"]
    if values["save_strategy"] == "steps" and step >= 1 and int(step) % every:
        near = [number for number in (step // every * every, (step // every + 1) * every) if number]
        reading.notes.append(
            f"--save_steps {int(step)} falls between two generations, {every} steps apart: such checkpoints hold the "
            f"completions and pictures in use too; {' or '.join(str(int(number)) for number in near)} keeps them small"
        )


def _steps_between_generations(values: dict[str, Any]) -> int:
    """Optimizer steps after which all completions of a generation are used up."""
    accumulated = values["gradient_accumulation_steps"]
    batch, _ = completions_a_round(values)
    passes = batch // (values["per_device_train_batch_size"] * world.processes())
    micro = max(passes, 1) * values["num_iterations"]
    return micro // math.gcd(micro, accumulated)


def _places(reading: Reading) -> None:
    """Where a run writes: a place that is none would be found out only after training."""
    for name in ("output_dir", "checkpoint_uri", "publish_uri"):
        if not (given := reading.values[name]):
            continue
        try:
            place = normalise(str(given))
        except ConfigurationError as error:
            raise ConfigurationError(f"--{name}: {error}") from None
        if is_remote(place):
            if name == "output_dir":
                raise ConfigurationError(f"--{name} {given}: give a folder here, and the storage as --publish_uri")
            continue
        there = next(path for path in (Path(place), *Path(place).parents) if path.exists())
        if not there.is_dir():
            raise ConfigurationError(f"--{name} {given}: {there} is a file, where a folder must be: give another place")


def _watching(reading: Reading) -> None:
    """A tracker that is not installed is left out with a note: the model matters more than its curves."""
    values = reading.values
    if values["sample_completions_every"] < 0:
        raise ConfigurationError(
            f"--sample_completions_every {values['sample_completions_every']}: give a number of steps, or 0 for none"
        )
    asked = values["report_to"] or []
    trackers = [asked] if isinstance(asked, str) else list(asked)
    for tracker in [name for name in ("mlflow", "tensorboard") if name in trackers and not _installed(name)]:
        trackers.remove(tracker)
        reading.notes.append(f"--report_to {tracker}: {tracker} is not installed here, nothing is reported to it")
        values["report_to"] = trackers or "none"


def _choosing(reading: Reading) -> None:
    values = reading.values
    for name in ("validate_every", "validation_sample"):
        if values[name] < 0:
            raise ConfigurationError(f"--{name} {values[name]} is negative: give 0 or more")
    if values["guard_patience"] < 1:
        raise ConfigurationError(f"--guard_patience {values['guard_patience']}: give 1 or more")
    for name in ("guard_fall", "guard_entropy_fall"):
        if not 0 <= values[name] < 1:
            raise ConfigurationError(f"--{name} {values[name]}: give a share from 0 (never) to below 1")
    if not 1 < values["guard_steps_factor"] < math.inf:
        raise ConfigurationError(
            f"--guard_steps_factor {values['guard_steps_factor']}: give more than 1, as a finite number"
        )
    if values["validate_every"] and values["load_best_model_at_end"]:
        raise ConfigurationError(
            "--load_best_model_at_end and --validate_every both choose the best weights: leave the former out"
        )
    # Trainer would put a believable number in the place of a loss that is NaN, where the guards look for it.
    if "logging_nan_inf_filter" not in reading.given:
        values["logging_nan_inf_filter"] = values["guards"] == "off"


def _quiet_bar(reading: Reading) -> None:
    # A watching process reads lines; tqdm's carriage returns would only be noise between them.
    if os.environ.get("VQA_GRPO_PROGRESS") == "lines" and "disable_tqdm" not in reading.given:
        reading.values["disable_tqdm"] = True


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


RULES: dict[str, Callable[[Reading], None]] = {
    "model and data given": _required,
    "native model": _model_without_remote_code,
    "numbers": _numbers,
    "rewards": _rewards,
    "pixel bounds": _pixels,
    "adapter": _lora,
    "generation": _generation,
    "device": _device,
    "deepspeed": _deepspeed,
    "batch": _groups,
    "checkpoints": _checkpoints,
    "places": _places,
    "trackers": _watching,
    "best and guards": _choosing,
    "progress": _quiet_bar,
}
