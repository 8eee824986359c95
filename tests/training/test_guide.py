"""The guide's training commands, each as it stands there, with this project's module in place of the script's path.

A tiny model and data set stand in for the guide's. Added are --use_cpu, one step, and short completions; where several
processes start, there are two instead of four. accelerate launch starts several on the CPU only with --multi_gpu.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import warm
from warm import Rank

ROOT = Path(__file__).parents[2]
REHEARSAL = "--use_cpu --max_steps 1 --max_completion_length 8"
ALWAYS = '--model_name_or_path "MODEL" --dataset_name "DATA" --use_huggingface_dataset --task_type "vqa" '
EPOCHS = '--output_dir "OUTPUT" --num_train_epochs 3 '
LOGGED = "--logging_steps 10 --save_steps 500 "
PIXELS = "--max_pixels 12845056 --min_pixels 3136 "
THREE = '--reward_funcs "format" "accuracy" "reasoning" '
FOUR_BY_FOUR = "--per_device_train_batch_size 4 --gradient_accumulation_steps 4 --learning_rate 1e-5 "
TWO_BY_EIGHT = "--per_device_train_batch_size 2 --gradient_accumulation_steps 8 --learning_rate 1e-5 --bf16 "
ONE_BY_SIXTEEN = "--per_device_train_batch_size 1 --gradient_accumulation_steps 16 --learning_rate 1e-5 --bf16 "
LORA = (
    '--use_peft --lora_r 16 --lora_alpha 32 --lora_dropout 0.05 --target_modules "q_proj" "v_proj" "k_proj" "o_proj" '
)
# The guide's name for a command: its flags, and the variables it exports.
ALONE: dict[str, tuple[str, dict[str, str]]] = {
    "Basic VQA Training": (
        ALWAYS + '--reward_funcs "format" "accuracy" ' + EPOCHS + FOUR_BY_FOUR + LOGGED + PIXELS,
        {},
    ),
    "With Reasoning Reward": (ALWAYS + THREE + EPOCHS + FOUR_BY_FOUR + LOGGED + PIXELS, {}),
    "LoRA/QLoRA": (
        ALWAYS
        + '--reward_funcs "format" "accuracy" --output_dir "OUTPUT" '
        + LORA
        + "--num_train_epochs 3 --per_device_train_batch_size 4 --learning_rate 2e-4",
        {},
    ),
    "Enable Debug Mode": (
        ALWAYS + THREE + '--output_dir "OUTPUT"',
        {"DEBUG_MODE": "true", "LOG_PATH": "OUTPUT/logs/training_debug.txt"},
    ),
}
SEVERAL: dict[str, tuple[str, str]] = {
    "Multi-GPU Training": (
        "accelerate launch --multi_gpu --num_processes 2 -m vqa_grpo.training ",
        ALWAYS + THREE + EPOCHS + TWO_BY_EIGHT + LOGGED,
    ),
    "With DeepSpeed ZeRO-3": (
        "deepspeed --num_gpus 2 --module vqa_grpo.training ",
        ALWAYS + THREE + EPOCHS + "--deepspeed configs/deepspeed_zero3.json " + ONE_BY_SIXTEEN + LOGGED,
    ),
    "DeepSpeed from accelerate's launcher": (
        "accelerate launch --use_deepspeed --num_processes 2 -m vqa_grpo.training ",
        ALWAYS + THREE + EPOCHS + "--deepspeed zero2 " + TWO_BY_EIGHT + LOGGED,
    ),
}
SCRIPT = """#!/bin/bash
MODEL="{model}"
DATASET="{data}"
OUTPUT="{output}"
NUM_GPUS=2
export DEBUG_MODE=true
export LOG_PATH="$OUTPUT/training_debug.txt"
mkdir -p $OUTPUT
accelerate launch --multi_gpu --num_processes $NUM_GPUS \\
    -m vqa_grpo.training \\
    --model_name_or_path $MODEL \\
    --dataset_name $DATASET \\
    --use_huggingface_dataset \\
    --task_type "vqa" \\
    --reward_funcs "format" "accuracy" "reasoning" \\
    --output_dir $OUTPUT \\
    --num_train_epochs 3 \\
    --per_device_train_batch_size 2 \\
    --gradient_accumulation_steps 8 \\
    --learning_rate 1e-5 \\
    --bf16 \\
    --logging_steps 10 \\
    --save_steps 500 \\
    --save_total_limit 3 \\
    --warmup_steps 100 \\
    --max_grad_norm 1.0 \\
    --logging_dir $OUTPUT/logs \\
    --report_to "tensorboard" {rehearsal} \\
    2>&1 | tee $OUTPUT/training.log
echo "Training completed! Output saved to: $OUTPUT"
"""


@pytest.fixture
def words(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> Any:
    def filled(flags: str) -> list[str]:
        places = {"MODEL": tiny_model, "DATA": tiny_dataset, "OUTPUT": tmp_path / "out"}
        return [str(places.get(word, word)) for word in shlex.split(f"{flags} {REHEARSAL}")]

    return filled


def launched(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    own = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(command, cwd=folder, env=variables | own, capture_output=True, text=True, timeout=540)


def record(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "training.json").read_text())
    return found


@pytest.mark.parametrize("name", ALONE)
def test_a_command_of_the_guide_for_one_process_runs(
    name: str, parent: warm.Parent, words: Any, tmp_path: Path
) -> None:
    flags, exported = ALONE[name]
    output = tmp_path / "out"
    environment = {key: value.replace("OUTPUT", str(output)) for key, value in exported.items()}
    assert parent.run([Rank(words(flags), environment)], tmp_path / "log") == [0], (tmp_path / "log").read_text()
    facts = record(output)
    assert (output / "model.safetensors").is_file()
    assert (facts["steps"], facts["processes"]) == (1, 1)
    means = {
        key.split("/")[1] for entry in json.loads((output / "history.json").read_text()) for key in entry if "/" in key
    }
    assert set(facts["arguments"]["vqa"]["reward_funcs"]) <= means
    if name == "LoRA/QLoRA":
        config = json.loads((output / "adapter" / "adapter_config.json").read_text())
        assert (output / "adapter" / "adapter_model.safetensors").is_file()
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.05)
        assert set(config["target_modules"]) == {"q_proj", "v_proj", "k_proj", "o_proj"}
    if name == "Enable Debug Mode":
        for kind in ("format", "accuracy", "reasoning"):
            assert "Content: " in (output / "logs" / f"training_debug_{kind}_vqa.txt").read_text()


@pytest.mark.full
@pytest.mark.parametrize("name", SEVERAL)
def test_a_command_of_the_guide_for_several_processes_runs(name: str, words: Any, tmp_path: Path) -> None:
    launcher, flags = SEVERAL[name]
    done = launched([*launcher.split(), *words(flags)], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    output = tmp_path / "out"
    assert record(output)["processes"] == 2
    assert record(output)["distributed"] == ("DEEPSPEED" if "--deepspeed" in flags else "MULTI_CPU")
    # Only the engine writes such a folder; files of ZeRO-3 alone hold parameters split over the ranks.
    parts = list((output / "checkpoint-1").glob("global_step1/*"))
    assert bool(parts) == ("--deepspeed" in flags)
    split = [part for part in parts if part.name.startswith("zero_pp_rank_") and "model_states" in part.name]
    assert len(split) == (2 if "zero3" in flags else 0)


@pytest.mark.full
def test_the_guides_script_runs(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    text = SCRIPT.format(model=tiny_model, data=tiny_dataset, output=output, rehearsal=REHEARSAL)
    (tmp_path / "train_vqa.sh").write_text(text)
    done = launched(["bash", "-eo", "pipefail", "train_vqa.sh"], tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"Training completed! Output saved to: {output}" in done.stdout
    assert record(output)["processes"] == 2
    assert list((output / "logs").rglob("events.out.tfevents.*"))
    assert (output / "training.log").read_text()
    for kind in ("format", "accuracy", "reasoning"):
        assert list(output.glob(f"training_debug_{kind}_vqa*.txt"))


def test_one_process_instead_of_several_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate launch --num_processes 4 without a GPU starts one, and leaves a rendezvous but no world behind."""
    from vqa_grpo.training.arguments import read

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    flags = ["--model_name_or_path", "a/b", "--dataset_name", "d", "--use_cpu"]
    assert any("started one process" in note for note in read(flags).notes)
    monkeypatch.delenv("MASTER_ADDR")
    assert not any("started one process" in note for note in read(flags).notes)


@pytest.mark.full
def test_deepspeed_that_would_not_run_is_refused(words: Any, tmp_path: Path) -> None:
    flags = ALWAYS + EPOCHS + "--deepspeed zero2 --reward_funcs format"
    done = launched([sys.executable, "-m", "vqa_grpo.training", *words(flags)], tmp_path)
    assert done.returncode == 78
    assert "needs two processes" in done.stderr
