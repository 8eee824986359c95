"""The command line of a training run: our options, every GRPOConfig field and every ModelConfig field.

`read` turns flags and the YAML of `--config` into one dict of settings and applies the rules of this project to
it; `parse` makes TRL's dataclasses from that. The rules work on the dict, because GRPOConfig refuses a whole
configuration as it is built (bf16 without a GPU, a batch that cannot be grouped) in words that help nobody.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.scoring import judge

if TYPE_CHECKING:
    from trl import GRPOConfig, ModelConfig, TrlParser

PRESETS = Path(__file__).parent / "deepspeed"
PIXELS_PER_TOKEN = 28 * 28
MAX_PIXELS = 1280 * PIXELS_PER_TOKEN
MAX_GENERATIONS = 8
VQA_COMPLETION_LENGTH = 768

ALIASES = {
    "target_modules": "lora_target_modules",
    "torch_dtype": "dtype",
    "use_llm_judge": "use_judge",
    "llm_judge_model": "judge_model",
    "llm_judge_base_url": "judge_url",
}
REFUSED = {
    "max_prompt_length": "TRL no longer cuts prompts, and a cut would lose image tokens: "
    "bound the picture with --max_pixels and leave long questions out of the data set",
    "trust_remote_code": "models load from transformers itself, never from code in a repository: "
    "name a model that transformers supports natively",
    "image_root": "pictures lie inside the data set: write it with save_to_disk",
    "data_file_paths": "data comes as a save_to_disk folder: give it as --dataset_name",
    "max_anyres_num": "only InternVL checkpoints with remote code use it: give --max_pixels",
}


@dataclass
class VQAArguments:
    """What this project adds to TRL's options."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Data set written by datasets.save_to_disk: a folder or a storage URI. Required."},
    )
    use_huggingface_dataset: bool = field(
        default=True,
        metadata={"help": "Always on, since every data set is a save_to_disk folder; accepted for old commands."},
    )
    task_type: str = field(default="vqa", metadata={"help": "The task. Only 'vqa'."})
    reward_funcs: list[str] = field(
        default_factory=lambda: ["format", "accuracy"],
        metadata={
            "help": "Rewards, in the order of --reward_weights: format, accuracy, reasoning (needs the column "
            "reference_steps), or a function of yours as package.module:function."
        },
    )
    reward_combination: str = field(
        default="additive",
        metadata={
            "help": "'additive' pays each reward by itself; 'gated' pays reasoning only on top of a right answer, so "
            "that a wrong one earns format alone.",
            "choices": ["additive", "gated"],
        },
    )
    format_reward: str = field(
        default="graded",
        metadata={
            "help": "'graded' gives 1 for exactly the prompt's JSON object and part marks for something near it; "
            "'binary' gives 1 for that object whatever stands around it, and 0 otherwise.",
            "choices": ["graded", "binary"],
        },
    )
    step_encoder: str = field(
        default="",
        metadata={
            "help": "What compares reasoning steps: a sentence-transformers name or folder, or 'lexical' for words "
            "alone; empty takes the packaged all-MiniLM-L6-v2."
        },
    )
    use_judge: bool = field(
        default=False,
        metadata={"help": "Ask a language model about free-text answers that the rules call wrong."},
    )
    judge_url: str = field(
        default=judge.OLLAMA,
        metadata={
            "help": "OpenAI-compatible URL of the judge; its API key comes from the variable VQA_GRPO_JUDGE_API_KEY or "
            "OPENAI_API_KEY only."
        },
    )
    judge_model: str = field(default="llama3.2", metadata={"help": "The judge's name on its server."})
    judge_timeout: float = field(default=30.0, metadata={"help": "Seconds to wait for one reply."})
    judge_retries: int = field(default=2, metadata={"help": "How often a question is asked again after a failure."})
    judge_concurrency: int = field(default=4, metadata={"help": "Questions under way at once, in each process."})
    judge_cache_dir: str = field(
        default="",
        metadata={"help": "Folder of the judge's verdicts; empty takes one in VQA_GRPO_CACHE or ~/.cache/vqa-grpo."},
    )
    prompt_template: str = field(
        default="vqa",
        metadata={"help": "A shipped prompt ('vqa', 'short') or a text file with {USER_INSTRUCTION} in it."},
    )
    max_pixels: int = field(
        default=MAX_PIXELS,
        metadata={"help": "Larger pictures are scaled down to this many pixels; 28 x 28 pixels make one visual token."},
    )
    min_pixels: int = field(default=3136, metadata={"help": "Smaller pictures are scaled up to this many pixels."})
    freeze_vision_modules: bool = field(
        default=False, metadata={"help": "Leave the vision tower as it is and train the language model only."}
    )
    train_split: str = field(
        default="train", metadata={"help": "The split to train on, where the data set has splits."}
    )
    eval_split: str = field(
        default="validation",
        metadata={"help": "The split that --validate_every and --eval_strategy score during training."},
    )
    validate_every: int = field(
        default=0,
        metadata={
            "help": "Steps between two scorings of --eval_split, greedily and by the evaluation's own rules; the "
            "weights with the best accuracy, the latest among equals, are kept in OUTPUT_DIR/best and published. 0 "
            "scores nothing and publishes the last weights."
        },
    )
    validation_sample: int = field(
        default=200, metadata={"help": "How many questions are asked each time, always the same; 0 means all."}
    )
    guards: str = field(
        default="stop",
        metadata={
            "help": "What happens when a run goes wrong (NaN, rewards without spread, a collapse of format, length or "
            "entropy, a game with the number of steps): 'stop' ends it where it is lost and warns elsewhere, 'warn' "
            "only says so, 'off' does not look.",
            "choices": ["stop", "warn", "off"],
        },
    )
    guard_patience: int = field(
        default=25, metadata={"help": "Logged rounds in a row that something must have gone wrong for."}
    )
    guard_fall: float = field(
        default=0.2, metadata={"help": "Format rate or length below this share of what it was is a collapse."}
    )
    guard_entropy_fall: float = field(
        default=0.05, metadata={"help": "Entropy below this share of what it was at first is a collapse."}
    )
    guard_steps_factor: float = field(
        default=2.0, metadata={"help": "So many times more or fewer reasoning steps than at first is suspicious."}
    )
    logging_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of TensorBoard files; the same as the variable TENSORBOARD_LOGGING_DIR."},
    )
    sample_completions_every: int = field(
        default=100,
        metadata={
            "help": "Optimizer steps after which up to 16 completions of the first rank are written with their "
            "pictures and rewards, to completions/ in the output folder and what is published; 0 writes none."
        },
    )
    checkpoint_uri: str | None = field(
        default=None,
        metadata={
            "help": "Storage URI or folder to which each checkpoint is copied while training goes on, under "
            "step-<number>; --save_total_limit holds there too, and --resume_from_checkpoint true looks there."
        },
    )
    resume_from: str | None = field(
        default=None,
        metadata={
            "help": "Start from another run's checkpoint: its --checkpoint_uri, one of the steps there, its output "
            "folder, or one checkpoint folder. With --resume_from_checkpoint true this run's own come first."
        },
    )
    publish_uri: str | None = field(
        default=None,
        metadata={"help": "Storage URI under which the final model is published once, complete or not at all."},
    )


@dataclass
class Reading:
    """Settings by name, which of them somebody gave, and what was decided for the user, in sentences."""

    values: dict[str, Any]
    given: set[str]
    notes: list[str] = field(default_factory=list)


@dataclass
class Arguments:
    vqa: VQAArguments
    grpo: GRPOConfig
    model: ModelConfig
    notes: list[str]


def parse(argv: list[str]) -> Arguments:
    """Dataclasses for a run. Raises ConfigurationError for whatever cannot work, with the reason and the fix."""
    parser = _parser()
    reading = read(argv, parser)
    _prepare_deepspeed_on_cpu(reading)
    _start_gloo(reading)
    try:
        vqa, grpo, model = parser.parse_dict(reading.values)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise ConfigurationError(" ".join(str(error).split())) from error
    return Arguments(vqa, grpo, model, reading.notes)


def read(argv: list[str], parser: TrlParser | None = None) -> Reading:
    """The checked settings, before any dataclass is built: needs no GPU, no data set and no model."""
    parser = parser or _parser()
    flags, from_file = _split_config(argv)
    tokens = [*_canonical(parser, from_file, "the configuration file"), *_canonical(parser, flags, "the command line")]
    namespace, rest = parser.parse_known_args(tokens)
    if rest:
        raise ConfigurationError(f"unexpected argument {rest[0]!r}: an option starts with --")
    actions = parser._option_string_actions
    given = {actions[name].dest for token in tokens if (name := token.split("=")[0]) in actions}
    values = {name: value for name, value in vars(namespace).items() if name != "config"}
    reading = Reading(values, given)
    for rule in RULES:
        rule(reading)
    return reading


def _parser() -> TrlParser:
    from trl import GRPOConfig, ModelConfig, TrlParser
    from trl.scripts._hf_argparser import string_to_bool

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigurationError(message)

    dataclasses: Any = (VQAArguments, GRPOConfig, ModelConfig)
    parser = Parser(
        dataclasses,
        prog="python -m vqa_grpo.training",
        description="Post-train a vision-language model on visual question answering with GRPO.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of options; the command line wins over it.")
    for action in parser._actions:
        # The parser of transformers takes a bare --bf16 only where the default is not None.
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True
        if action.dest == "report_to":  # a list or a text for TRL, of which its parser knows the text alone
            action.nargs = "+"
    return parser


def _split_config(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command line without --config, and the flags that the YAML file stands for."""
    flags: list[str] = []
    from_file: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        name, _, value = token.partition("=")
        if name != "--config":
            flags.append(token)
            continue
        path = value or next(tokens, "")
        from_file = _flags_of(path)
    return flags, from_file


def _flags_of(path: str) -> list[str]:
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ConfigurationError(f"--config {path} must hold a mapping of option to value")
    environment = settings.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise ConfigurationError(f"--config {path}: env must be a mapping of variable to value")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    flags: list[str] = []
    for name, value in settings.items():
        flags += _flag(str(name), value)
    return flags


def _flag(name: str, value: Any) -> list[str]:
    """One YAML setting as the flag it stands for, so that file and command line go through the same checks."""
    if value is None:
        return []
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)] if value else []
    return [f"--{name}={value}"]


def _canonical(parser: TrlParser, tokens: list[str], origin: str) -> list[str]:
    """Spell every option its one way, and refuse the unknown and the impossible ones."""
    known = parser._option_string_actions
    spelled = []
    for token in tokens:
        if not token.startswith("--"):
            spelled.append(token)
            continue
        raw, equals, value = token[2:].partition("=")
        name = raw.replace("-", "_")
        name = ALIASES.get(name, name)
        if name in REFUSED and value.lower() != "false":
            raise ConfigurationError(f"--{name} cannot be used: {REFUSED[name]}")
        if f"--{name}" not in known and name not in REFUSED:
            names = {option.lstrip("-").replace("-", "_") for option in known} | set(ALIASES)
            close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.6)
            hint = f"did you mean --{close[0]}?" if close else "see --help for all of them"
            raise ConfigurationError(f"unknown option --{raw} in {origin}: {hint}")
        spelled.append(f"--{name}{equals}{value}")
    return spelled


# The rules. Each looks at the settings, changes what it decides for the user and notes it, or refuses.


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
    lowered = name.rstrip("/").lower()
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
    if any(str(target).rsplit(".", 1)[-1] == "lm_head" for target in targets):
        raise ConfigurationError(
            "lm_head in --target_modules cannot be trained: TRL reads the output layer's weight directly and would "
            "miss the adapter; leave lm_head out"
        )
    if values["load_in_4bit"] and values["load_in_8bit"]:
        raise ConfigurationError("--load_in_4bit and --load_in_8bit exclude each other: give one of them")
    if (values["load_in_4bit"] or values["load_in_8bit"]) and not _installed("bitsandbytes"):
        raise ConfigurationError("--load_in_4bit and --load_in_8bit need bitsandbytes, which is not installed here")


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
    if has_cuda() and not values["use_cpu"]:
        if "dtype" not in reading.given:
            half = values["bf16"] or (values["bf16"] is None and not values["fp16"])
            values["dtype"] = "bfloat16" if half else "float32"
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


def _deepspeed(reading: Reading) -> None:
    asked = reading.values["deepspeed"]
    if not asked:
        return
    if not _installed("deepspeed"):
        raise ConfigurationError("--deepspeed needs the deepspeed package, which is not installed here")
    if not str(asked).lstrip().startswith("{"):
        reading.values["deepspeed"] = str(_deepspeed_file(str(asked), reading))


def _deepspeed_file(asked: str, reading: Reading) -> Path:
    if Path(asked).is_file():
        return Path(asked)
    match = re.fullmatch(
        r"(?:deepspeed_|ds_)?(?:config_)?(zero[123](?:_offload)?)(?:_config)?", Path(asked).stem.lower()
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
    batch, made_of = _generation_batch(values)
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
        sizes = " or ".join(map(str, _nearest_batches(batch, int(os.environ.get("WORLD_SIZE", "1")))))
        raise ConfigurationError(
            f"{batch} completions a round ({made_of}) cannot be split into groups of 2 to {MAX_GENERATIONS}: "
            f"change the batch size or --gradient_accumulation_steps so that the product is {sizes}"
        )
    values["num_generations"] = max(fitting)
    reading.notes.append(
        f"--num_generations is {max(fitting)}, the largest group up to {MAX_GENERATIONS} that divides "
        f"the {batch} completions of a round ({made_of})"
    )


def _generation_batch(values: dict[str, Any]) -> tuple[int, str]:
    world = int(os.environ.get("WORLD_SIZE", "1"))
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
    return size * world * steps, f"batch {size} x {world} processes x {steps} {name}"


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(2, number + 1) if number % divisor == 0]


def _nearest_batches(batch: int, world: int) -> list[int]:
    """The next smaller and larger multiple of the number of processes that can be grouped."""

    def usable(number: int) -> bool:
        return number % world == 0 and any(number % group == 0 for group in range(2, MAX_GENERATIONS + 1))

    below = next((number for number in range(batch - 1, 1, -1) if usable(number)), None)
    above = next(number for number in range(batch + 1, 2 * (batch + 1) * world + 1) if usable(number))
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
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)
    if local < world and "save_on_each_node" not in reading.given:
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
    batch, _ = _generation_batch(values)
    passes = batch // (values["per_device_train_batch_size"] * int(os.environ.get("WORLD_SIZE", "1")))
    micro = max(passes, 1) * values["num_iterations"]
    return micro // math.gcd(micro, accumulated)


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
    if values["guard_steps_factor"] <= 1:
        raise ConfigurationError(f"--guard_steps_factor {values['guard_steps_factor']}: give more than 1")
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


RULES = (
    _required,
    _model_without_remote_code,
    _rewards,
    _pixels,
    _lora,
    _generation,
    _device,
    _deepspeed,
    _groups,
    _checkpoints,
    _watching,
    _choosing,
    _quiet_bar,
)


def _prepare_deepspeed_on_cpu(reading: Reading) -> None:
    """Let DeepSpeed start on a host without GPU, for rehearsals and tests.

    accelerate 1.15 ignores the DeepSpeed configuration under use_cpu and trains plain DDP without a word; without
    use_cpu it counts one process. Building the process state here, and telling both to use it, avoids both. Can go
    once accelerate starts DeepSpeed on the CPU by itself.
    """
    values = reading.values
    if not values["deepspeed"] or not values["use_cpu"]:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ConfigurationError(
            "--deepspeed on the CPU needs two processes or more: use torchrun --nproc-per-node 2, or leave it out"
        )
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    from accelerate import PartialState

    PartialState(backend="gloo", timeout=timedelta(seconds=values["ddp_timeout"]))
    values["accelerator_config"] = {"use_configured_state": True}
    values["use_cpu"] = False


def _start_gloo(reading: Reading) -> None:
    """Give the CPU's process group `--ddp_timeout`: transformers 5 hands it on for GPUs alone, and gloo would wait its
    own half hour. Can go once it does so under use_cpu."""
    values = reading.values
    if values["use_cpu"] and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch

        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=values["ddp_timeout"]))


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
