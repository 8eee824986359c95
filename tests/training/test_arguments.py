"""The command line: every command of the guide parses, and what cannot work is refused with a way out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.training import arguments
from vqa_grpo.training.arguments import parse, read, rules

BASE = ["--model_name_or_path", "Qwen/Qwen2-VL-7B-Instruct", "--dataset_name", "/data/vqa", "--output_dir", "./out"]
GUIDE = [*BASE, "--use_huggingface_dataset", "--task_type", "vqa", "--num_train_epochs", "3", "--save_steps", "500"]
PIXELS = ["--max_pixels", "12845056", "--min_pixels", "3136"]
RATE = ["--learning_rate", "1e-5", "--logging_steps", "10"]
# The guide's commands, and what each must come out as. Settings that all share are in `test_every_…`.
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "basic": (
        "--reward_funcs format accuracy --per_device_train_batch_size 4 --gradient_accumulation_steps 4",
        {"reward_funcs": ["format", "accuracy"], "num_generations": 8, "max_pixels": 12845056, "min_pixels": 3136},
    ),
    "with reasoning": (
        "--reward_funcs format accuracy reasoning --per_device_train_batch_size 4 --gradient_accumulation_steps 4",
        {"reward_funcs": ["format", "accuracy", "reasoning"], "num_generations": 8},
    ),
    "several GPUs": (
        "--reward_funcs format accuracy reasoning --per_device_train_batch_size 2 --gradient_accumulation_steps 8 "
        "--bf16",
        {"bf16": True, "dtype": "bfloat16", "num_generations": 8},
    ),
    "DeepSpeed ZeRO-3": (
        "--reward_funcs format accuracy reasoning --deepspeed configs/deepspeed_zero3.json "
        "--per_device_train_batch_size 1 --gradient_accumulation_steps 16 --bf16",
        {"deepspeed": str(arguments.PRESETS / "zero3.json"), "num_generations": 8},
    ),
    "LoRA": (
        "--reward_funcs format accuracy --use_peft --lora_r 16 --lora_alpha 32 --lora_dropout 0.05 "
        "--target_modules q_proj v_proj k_proj o_proj --per_device_train_batch_size 4 --learning_rate 2e-4",
        {
            "use_peft": True,
            "lora_target_modules": ["q_proj", "v_proj", "k_proj", "o_proj"],
            "lora_r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.05,
            "learning_rate": 2e-4,
            "num_generations": 4,
        },
    ),
    "example script": (
        "--reward_funcs format accuracy reasoning --per_device_train_batch_size 2 --gradient_accumulation_steps 8 "
        "--bf16 --save_total_limit 3 --warmup_steps 100 --max_grad_norm 1.0 --logging_dir ./out/logs "
        "--report_to tensorboard",
        {"logging_dir": "./out/logs", "warmup_steps": 100, "save_total_limit": 3, "max_grad_norm": 1.0},
    ),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "has_cuda", lambda: True)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "has_cuda", lambda: False)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_guide_parses_to_what_it_says(name: str) -> None:
    flags, expected = COMMANDS[name]
    values = read([*GUIDE, *PIXELS, *RATE, *flags.split()]).values
    shared = {"task_type": "vqa", "num_train_epochs": 3, "save_steps": 500, "logging_steps": 10, "output_dir": "./out"}
    assert {key: values[key] for key in shared | expected} == shared | expected


@pytest.mark.usefixtures("cpu")
def test_a_guide_command_becomes_the_dataclasses_on_a_host_without_gpu() -> None:
    flags, _ = COMMANDS["LoRA"]
    parsed = parse([*GUIDE, *RATE, *flags.split()])
    assert parsed.grpo.use_cpu
    assert not parsed.grpo.bf16
    assert parsed.grpo.learning_rate == 2e-4
    assert parsed.model.lora_target_modules == ["q_proj", "v_proj", "k_proj", "o_proj"]
    assert parsed.model.dtype == "float32"


@pytest.mark.usefixtures("cpu")
def test_use_cpu_sets_bf16_aside_and_says_so() -> None:
    reading = read([*BASE, "--bf16", "--use_cpu"])
    assert (reading.values["bf16"], reading.values["fp16"]) == (False, False)
    assert any("--bf16 aside" in note for note in reading.notes)


@pytest.mark.usefixtures("cpu")
def test_without_a_gpu_the_cpu_is_chosen_aloud() -> None:
    reading = read(BASE)
    assert reading.values["use_cpu"] is True
    assert any("no GPU on this host" in note for note in reading.notes)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("", "bfloat16"), ("--bf16", "bfloat16"), ("--fp16", "float32"), ("--bf16 --torch_dtype float32", "float32")],
)
def test_the_weights_type_follows_the_precision_unless_given(flags: str, dtype: str) -> None:
    assert read([*BASE, *flags.split()]).values["dtype"] == dtype


def test_the_default_prompt_gets_room_for_a_whole_answer() -> None:
    assert read(BASE).values["max_completion_length"] == 768
    assert read([*BASE, "--max_completion_length", "64"]).values["max_completion_length"] == 64
    assert read([*BASE, "--prompt_template", "short"]).values["max_completion_length"] == 512


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_a_deepspeed_preset_is_found_by_name_and_by_the_guides_missing_path(name: str) -> None:
    for asked in (name, f"configs/deepspeed_{name}.json", f"/nowhere/{name}.json"):
        path = Path(read([*BASE, "--deepspeed", asked]).values["deepspeed"])
        assert path == arguments.PRESETS / f"{name}.json"
    preset = json.loads((arguments.PRESETS / f"{name}.json").read_text())
    assert preset["zero_optimization"]["stage"] == int(name[4])
    assert preset["train_micro_batch_size_per_gpu"] == "auto"


def test_an_existing_deepspeed_file_wins_over_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/deepspeed_zero3.json").write_text("{}")
    asked = "configs/deepspeed_zero3.json"
    assert read([*BASE, "--deepspeed", asked]).values["deepspeed"] == asked


@pytest.mark.parametrize(
    ("batch", "world", "accumulation", "group"),
    [(4, 1, 4, 8), (4, 1, 1, 4), (2, 4, 8, 8), (3, 1, 3, 3), (6, 1, 1, 6), (7, 1, 1, 7), (10, 1, 1, 5), (1, 2, 1, 2)],
)
def test_an_unset_num_generations_is_the_largest_group_that_divides_the_round(
    batch: int, world: int, accumulation: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    size = ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", str(accumulation)]
    reading = read([*BASE, *size])
    assert reading.values["num_generations"] == group
    assert any(f"--num_generations is {group}" in note for note in reading.notes)


def test_yaml_options_apply_and_the_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINING_TEST_VARIABLE", raising=False)
    config = tmp_path / "run.yaml"
    config.write_text(
        "env: {TRAINING_TEST_VARIABLE: 7}\n"
        "model_name_or_path: Qwen/Qwen2-VL-2B-Instruct\ndataset_name: /data/vqa\n"
        "learning_rate: 1e-5\nuse_peft: true\ntarget_modules: [q_proj, v_proj]\ntorch_dtype: float32\n"
        "reward_funcs: [format, accuracy]\nreward_weights: [0.2, 1.0]\nmax_steps: 7\n"
        "gradient_checkpointing: false\ngeneration_kwargs: {top_k: 5}\n"
    )
    parsed = parse(["--config", str(config), "--max_steps", "9", "--target-modules", "o_proj", "k_proj", "--use_cpu"])
    assert parsed.grpo.max_steps == 9
    assert parsed.model.lora_target_modules == ["o_proj", "k_proj"]
    assert parsed.grpo.learning_rate == 1e-5
    assert parsed.grpo.reward_weights == [0.2, 1.0]
    assert parsed.grpo.gradient_checkpointing is False
    assert parsed.grpo.generation_kwargs == {"top_k": 5}
    assert parsed.model.model_name_or_path == "Qwen/Qwen2-VL-2B-Instruct"
    assert os.environ.pop("TRAINING_TEST_VARIABLE") == "7"


REFUSALS = [
    ("--num_generation 4", "did you mean --num_generations"),
    ("--target_module q_proj", "did you mean --target_modules"),
    ("--max_prompt_length 512", "--max_pixels"),
    ("--trust_remote_code", "natively"),
    ("--task_type rec", "'vqa' only"),
    ("--use_huggingface_dataset false", "save_to_disk"),
    ("--model_name_or_path OpenGVLab/InternVL2-8B", "OpenGVLab/InternVL3-8B-hf"),
    ("--model_name_or_path THUDM/glm-4v-9b", "zai-org/GLM-4.1V-9B-Thinking"),
    ("--use_peft --target_modules q_proj lm_head", "leave lm_head out"),
    ("--target_modules q_proj v_proj", "add --use_peft"),
    ("--load_in_4bit", "add --use_peft"),
    ("--reward_funcs format acuracy", "did you mean 'accuracy'"),
    ("--reward_funcs format format", "two reward functions"),
    ("--reward_weights 1.0", "give one for each"),
    ("--prompt_template nowhere.txt", "one of short, vqa"),
    ("--max_pixels 100", "min_pixels <= max_pixels"),
    ("--deepspeed configs/zero4.json", "zero1, zero2, zero3, zero3_offload"),
    ("--num_generations 6 --per_device_train_batch_size 8", "--num_generations 2 or 4 or 8"),
    ("--num_generations 1", "at least 2"),
    ("--per_device_train_batch_size 1", "product is 2"),
    ("--per_device_train_batch_size 11", "product is 10 or 12"),
    ("--use_transformers_continuous_batching", "cannot take pictures"),
    ("--learning_rate fast", "invalid float value"),
    ("--config /nowhere/run.yaml", "cannot be read"),
    ("--max_steps 3 4", "unexpected argument '4'"),
    ("--validate_every -1", "give 0 or more"),
    ("--guard_patience 0", "give 1 or more"),
    ("--guard_fall 1.5", "from 0 (never) to below 1"),
    ("--guard_steps_factor 1", "more than 1"),
    ("--guard_steps_factor nan", "more than 1"),
    ("--guard_steps_factor inf", "as a finite number"),
    ("--guard_fall nan", "from 0 (never) to below 1"),
    ("--learning_rate nan", "--learning_rate nan: give a finite number of 0 or more"),
    ("--learning_rate -0.5", "--learning_rate -0.5: give"),
    ("--temperature 0", "--temperature 0.0: give a finite number above 0"),
    ("--temperature inf", "--temperature inf: give"),
    ("--beta -1", "--beta -1.0: give a finite number of 0 or more"),
    ("--beta nan --seed -1", "--beta nan: give a finite number of 0 or more; --seed -1: give"),
    ("--reward_weights 1 nan", "--reward_weights [1.0, nan]: give finite numbers"),
    ("--max_steps 0", "leave it out to train --num_train_epochs"),
    ("--num_train_epochs 0", "--num_train_epochs 0.0: give"),
    ("--max_completion_length 0", "--max_completion_length 0: give 1 or more"),
    ("--save_steps 0", "--save_steps 0.0: give 1 or more"),
    ("--save_steps nan", "--save_steps nan: give"),
    ("--seed 4294967296", "from 0 to 4294967295"),
    ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0: give 1 or more"),
    ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0: give 1 or more"),
    ("--num_iterations 0", "--num_iterations 0: give 1 or more"),
    ("--guards loud", "invalid choice"),
    ("--publish_uri ftp://host/model", "--publish_uri: storage 'ftp://host/model': only s3://bucket/prefix and"),
    ("--checkpoint_uri s3:/bucket", "--checkpoint_uri: storage 's3:/bucket': only s3://bucket/prefix and"),
    ("--publish_uri s3://", "names no bucket"),
    ("--output_dir s3://bucket/out", "give a folder here, and the storage as --publish_uri"),
    (f"--publish_uri {__file__}", "test_arguments.py is a file, where a folder must be"),
    (f"--checkpoint_uri {__file__}/below", "test_arguments.py is a file, where a folder must be"),
    (f"--output_dir {__file__}", "test_arguments.py is a file, where a folder must be"),
    ("--validate_every 5 --load_best_model_at_end", "both choose the best weights"),
    ("--auto_find_batch_size", "lower per_device_train_batch_size"),
]


@pytest.mark.parametrize(("flags", "says"), REFUSALS, ids=[flags.replace(__file__, "FILE") for flags, _ in REFUSALS])
def test_what_cannot_work_is_refused_with_the_way_out(flags: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse([*BASE, "--use_cpu", *flags.split()])
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_without_a_gpu_names_the_switch(precision: str) -> None:
    with pytest.raises(ConfigurationError, match="--use_cpu"):
        read([*BASE, f"--{precision}"])


@pytest.mark.parametrize("name", ["model_name_or_path", "dataset_name"])
def test_a_missing_model_or_data_set_is_named(name: str) -> None:
    place = BASE.index(f"--{name}")
    with pytest.raises(ConfigurationError, match=f"--{name} is missing"):
        read([*BASE[:place], *BASE[place + 2 :]])


def test_vllm_is_refused_where_it_is_missing_or_would_corrupt_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_installed", lambda package: False)
    with pytest.raises(ConfigurationError, match="not installed"):
        read([*BASE, "--use_vllm"])
    monkeypatch.setattr(rules, "_installed", lambda package: True)
    with pytest.raises(ConfigurationError, match="--vllm_mode server"):
        read([*BASE, "--use_vllm"])
    assert read([*BASE, "--use_vllm", "--vllm_mode", "server"]).values["use_vllm"]


def test_the_guides_pixel_bound_is_taken_with_a_warning_of_its_cost() -> None:
    assert any("16,384 visual tokens" in note for note in read([*BASE, *PIXELS]).notes)
    assert not any("visual tokens" in note for note in read(BASE).notes)


def test_every_option_of_ours_has_one_description() -> None:
    import dataclasses

    assert all(field.metadata.get("help") for field in dataclasses.fields(arguments.VQAArguments))


@pytest.mark.usefixtures("cpu")
def test_the_rewards_options_reach_the_rewards() -> None:
    from vqa_grpo.rewards.settings import RewardSettings
    from vqa_grpo.scoring.judge import JudgeSettings

    flags = "--reward_combination gated --format_reward binary --per_device_train_batch_size 4 --use_llm_judge "
    flags += "--llm_judge_model tiny --judge_url http://judge:8000/v1 --judge_timeout 5 --judge_retries 1 "
    flags += "--judge_concurrency 2 --judge_cache_dir /cache"
    assert RewardSettings.from_options(read([*BASE, *flags.split()]).values) == RewardSettings(
        combination="gated",
        format_reward="binary",
        judge=JudgeSettings("http://judge:8000/v1", "tiny", 5.0, 1, 2, "/cache"),
    )
    plain = read([*BASE, "--per_device_train_batch_size", "4"]).values
    assert RewardSettings.from_options(plain) == RewardSettings()


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--reward_combination sum", "additive"),
        ("--format_reward strict", "graded"),
        ("--judge_model llama3.2", "no effect without --use_judge"),
        ("--use_judge --judge_url ftp://x", "no http"),
    ],
)
def test_rewards_options_that_cannot_work_are_refused(flags: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read([*BASE, "--per_device_train_batch_size", "4", *flags.split()])


@pytest.mark.usefixtures("cpu")
def test_a_run_configuration_becomes_the_same_rewards() -> None:
    from vqa_grpo import config
    from vqa_grpo.rewards.settings import RewardSettings
    from vqa_grpo.scoring.judge import JudgeSettings
    from vqa_grpo.steps import training_arguments

    def settings(*changes: str) -> RewardSettings:
        words = training_arguments(config.load("", changes), "/data", "/base", "/out", "/model")
        return RewardSettings.from_options(read(words).values)

    assert settings() == RewardSettings()
    assert settings("judge.url=http://judge/v1") == RewardSettings()
    assert settings("rewards.step_encoder=lexical") == RewardSettings(step_encoder="lexical")
    changes = ["rewards.combination=gated", "rewards.format_mode=binary", "judge.enabled=true", "judge.model=tiny"]
    assert settings(*changes, "judge.timeout_seconds=7", "judge.cache_dir=/cache") == RewardSettings(
        "gated", "binary", judge=JudgeSettings(model="tiny", timeout_seconds=7.0, cache_dir="/cache")
    )
    assert (
        JudgeSettings()
        == RewardSettings.from_options(
            read(training_arguments(config.load("", ["judge.enabled=true"]), "/d", "/b", "/o", "/m")).values
        ).judge
    )
    with pytest.raises(ConfigurationError, match="password") as caught:
        config.load("", ["judge.url=http://me:secret@host/v1"])
    assert "secret" not in str(caught.value)


def test_trackers_that_are_not_installed_are_left_out_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_installed", lambda package: package != "mlflow")
    reading = read([*BASE, "--report_to", "mlflow", "tensorboard"])
    assert reading.values["report_to"] == ["tensorboard"]
    assert [note for note in reading.notes if "mlflow is not installed here" in note]
    assert read([*BASE, "--report_to", "mlflow"]).values["report_to"] == "none"
    monkeypatch.setattr(rules, "_installed", lambda package: True)
    assert read([*BASE, "--report_to", "mlflow"]).values["report_to"] == ["mlflow"]


def test_pictures_are_never_gathered_even_where_completions_are_logged() -> None:
    reading = read([*BASE, "--log_completions", "--log_multimodal"])
    assert reading.values["log_multimodal"] is False
    assert [note for note in reading.notes if "--sample_completions_every" in note]
    assert not [note for note in read([*BASE, "--log_completions"]).notes if "log_multimodal" in note]


def test_samples_are_taken_every_so_many_steps_or_never() -> None:
    assert read([*BASE, "--sample_completions_every", "0"]).values["sample_completions_every"] == 0
    with pytest.raises(ConfigurationError, match="--sample_completions_every -1"):
        read([*BASE, "--sample_completions_every", "-1"])
