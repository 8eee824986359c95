"""Real runs of two steps on the CPU, in a process of their own as the pipeline starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command], env=variables | environment, capture_output=True, text=True, timeout=540
    )


def options(model: Path, dataset: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--model_name_or_path", str(model), "--dataset_name", str(dataset), "--output_dir", str(output)),
        *("--prompt_template", "short", "--max_completion_length", "8", "--max_steps", "2", "--logging_steps", "1"),
        *("--per_device_train_batch_size", "8", "--num_generations", "4", "--learning_rate", "1e-3"),
        *("--reward_funcs", "format", "accuracy", "reasoning", "--save_strategy", "no", *more),
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_dataset: Path) -> tuple[Path, str]:
    """One run that several tests look at, with debug logs and progress lines on."""
    output = tmp_path_factory.mktemp("plain")
    done = run(
        *("-m", "vqa_grpo.training", *options(tiny_model, tiny_dataset, output)),
        VQA_GRPO_PROGRESS="lines",
        DEBUG_MODE="true",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return output, done.stdout


def test_a_run_leaves_a_model_that_loads_with_its_processor_and_records(plain: tuple[Path, str]) -> None:
    from vqa_grpo.models.load import load_model, load_processor

    output, _ = plain
    load_model(str(output))
    assert load_processor(str(output)).image_processor is not None
    history = json.loads((output / "history.json").read_text())
    assert [entry["step"] for entry in history if "reward" in entry] == [1, 2]
    assert all(f"rewards/{name}/mean" in history[0] for name in ("format", "accuracy", "reasoning"))
    record = json.loads((output / "training.json").read_text())
    assert record["steps"] == 2
    assert record["arguments"]["vqa"]["reward_funcs"] == ["format", "accuracy", "reasoning"]
    assert "{USER_INSTRUCTION}" in (output / "prompt.txt").read_text()


def test_progress_is_one_json_line_per_logged_step(plain: tuple[Path, str]) -> None:
    lines = [line for line in plain[1].splitlines() if line.startswith("@progress ")]
    records = [json.loads(line.removeprefix("@progress ")) for line in lines]
    assert [(record["task"], record["done"], record["total"]) for record in records] == [
        ("train", 0, 2),
        ("train", 1, 2),
        ("train", 2, 2),
    ]
    assert records[-1]["note"].startswith("reward ")
    assert "accuracy" in records[-1]["note"]


def test_debug_mode_writes_the_guides_three_files(plain: tuple[Path, str]) -> None:
    for name in ("format", "accuracy", "reasoning"):
        assert "Content: " in (plain[0] / f"training_debug_{name}_vqa.txt").read_text()
