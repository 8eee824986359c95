"""What this project adds to TRL's options: one field each, described once."""

from __future__ import annotations

from dataclasses import dataclass, field

from vqa_grpo.scoring import judge

PIXELS_PER_TOKEN = 28 * 28
MAX_PIXELS = 1280 * PIXELS_PER_TOKEN


@dataclass
class VQAArguments:
    """What this project adds to TRL's options."""

    preflight: bool = field(
        default=False,
        metadata={
            "help": "Check everything that can be checked before training, one line each, and stop: exit 0 or 78."
        },
    )
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
    lora_vision_modules: bool = field(
        default=False,
        metadata={"help": "Let LoRA's target modules reach into the vision tower too, which is otherwise left out."},
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
            "folder, or one checkpoint folder. Its steps count on: --max_steps must be beyond them. With "
            "--resume_from_checkpoint true this run's own come first."
        },
    )
    publish_uri: str | None = field(
        default=None,
        metadata={"help": "Storage URI under which the final model is published once, complete or not at all."},
    )
