"""Real runs of two steps on the CPU, in a process of their own as the pipeline starts them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vqa_grpo.contract.failure import DataError, RetryError

ROOT = Path(__file__).parents[2]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests" / "training")])
    variables = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command], env=variables | environment, capture_output=True, text=True, timeout=1500
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
        *("-m", "vqa_grpo.training", *options(tiny_model, tiny_dataset, output, "--reward_combination", "gated")),
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
    assert {"reasoning/gate_open", "format/outcome/no_json", "accuracy/type/yes_no"} <= set(history[0])
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


@pytest.mark.full
def test_a_run_takes_and_publishes_what_lies_in_storage(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the pipeline does: data set and base by URI, the final model alone published for the next step."""
    from vqa_grpo.models.load import load_model
    from vqa_grpo.storage.publish import fetch, get, publish_folder

    publish_folder(str(tmp_path / "store" / "data"), tiny_dataset)
    publish_folder(str(tmp_path / "store" / "base"), tiny_model)
    target = str(tmp_path / "store" / "model")
    output = tmp_path / "output"
    argv = options(tmp_path / "store" / "base", tmp_path / "store" / "data", output, "--publish_uri", target)
    done = run("-m", "vqa_grpo.training", *argv, *("--save_strategy", "steps", "--save_steps", "1"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert (output / "checkpoint-2").is_dir()
    published = get(target)
    assert {"config.json", "model.safetensors", "prompt.txt", "history.json", "training.json"} <= set(published.files)
    assert {"MLmodel", "README.md", "requirements.txt", "completions/step-000000.html"} <= set(published.files)
    data = get(str(tmp_path / "store" / "data")).digest
    assert data in (Path(published.root) / "README.md").read_text()
    assert not [name for name in published.files if "checkpoint" in name or name.endswith(".bin")]
    assert published.metadata["steps"] == 2
    load_model(str(fetch(target, tmp_path / "cache")))
    assert not list(output.glob(".publish-*"))


def test_a_mistake_is_one_line_and_the_exit_code_of_its_reason(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vqa_grpo.training.__main__ import main

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "internvl_chat", "auto_map": {}}')
    few = ["--per_device_train_batch_size", "64", "--num_generations", "2"]
    mistakes = {
        "unknown option --bog": options(tiny_model, tiny_dataset, tmp_path, "--bog", "1"),
        "no such folder": options(tiny_model, tmp_path / "nothing", tmp_path),
        "no model folder": options(tiny_dataset, tiny_dataset, tmp_path),
        "model_type 'internvl_chat'": options(foreign, tiny_dataset, tmp_path),
        "has 16 rows, but one round takes 32": options(tiny_model, tiny_dataset, tmp_path, *few),
    }
    for says, argv in mistakes.items():
        capsys.readouterr()
        assert main(argv) == 78
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert says in errors[0]


@pytest.mark.parametrize(
    ("error", "code"),
    [(DataError("x"), 65), (RetryError("x"), 75), (MemoryError(), 137), (RuntimeError("x"), 70)],
)
def test_an_error_during_training_keeps_its_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vqa_grpo.training import __main__ as entry

    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(entry, "train", fail)
    assert entry.main(["--model_name_or_path", "a/b", "--dataset_name", "d", "--use_cpu"]) == code
    assert "error: " in capsys.readouterr().err


@pytest.mark.full
def test_lora_trains_an_adapter_and_leaves_the_merged_model(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    lora = ["--use_peft", "--target_modules", "q_proj", "v_proj", "k_proj", "o_proj", "--freeze_vision_modules"]
    done = run("-m", "vqa_grpo.training", *options(tiny_model, tiny_dataset, tmp_path, *lora, *WELL_PAID))
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert changed(tiny_model, tmp_path) == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.full
def test_lora_under_zero3_is_merged_into_whole_weights(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """While ZeRO-3 is on, transformers loads every model empty; the base for the merge must come whole."""
    lora = ["--use_peft", "--target_modules", "q_proj", "v_proj", "--deepspeed", "zero3"]
    done = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vqa_grpo.training"),
        *options(tiny_model, tiny_dataset, tmp_path, *lora, *WELL_PAID),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert changed(tiny_model, tmp_path) == {"q_proj", "v_proj"}


@pytest.mark.full
def test_a_run_can_score_a_split_as_it_goes(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    evaluated = ["--eval_strategy", "steps", "--eval_steps", "2", "--eval_split", "train"]
    done = run("-m", "vqa_grpo.training", *options(tiny_model, tiny_dataset, tmp_path, *evaluated))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "eval_rewards/accuracy/mean" in (tmp_path / "history.json").read_text()


@pytest.mark.full
def test_a_frozen_vision_tower_stays_as_it_was(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    frozen = ["--freeze_vision_modules", *WELL_PAID]
    done = run("-m", "vqa_grpo.training", *options(tiny_model, tiny_dataset, tmp_path, *frozen))
    assert done.returncode == 0, done.stderr[-4000:]
    names = changed(tiny_model, tmp_path, whole=True)
    assert names
    assert not [name for name in names if "visual" in name]


@pytest.mark.full
@pytest.mark.parametrize("deepspeed", [None, "zero1", "zero2", "zero3", "zero3_offload"])
def test_two_processes_train_as_one(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, deepspeed: str | None
) -> None:
    more = ["--deepspeed", f"configs/deepspeed_{deepspeed}.json"] if deepspeed else []
    environment = {}
    if deepspeed == "zero3_offload":
        if not shutil.which("g++"):
            pytest.skip("DeepSpeed compiles its optimizer for the CPU: needs g++")
        # Its own folder: a compiler that was killed leaves a lock there, and who comes next waits for ever.
        environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    done = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vqa_grpo.training"),
        *options(
            tiny_model, tiny_dataset, tmp_path, *more, *WELL_PAID, *("--save_strategy", "steps", "--save_steps", "2")
        ),
        **environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["processes"] == 2
    assert record["distributed"] == ("DEEPSPEED" if deepspeed else "MULTI_CPU")
    assert changed(tiny_model, tmp_path)
    # Only DeepSpeed's engine writes such a folder: accelerate may report DEEPSPEED and train plain DDP.
    assert bool(list((tmp_path / "checkpoint-2").glob("global_step*"))) == bool(deepspeed)


@pytest.mark.full
def test_a_rank_that_fails_keeps_its_exit_code_and_stops_the_others(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    import datasets

    rows = datasets.load_from_disk(str(tiny_dataset))["train"].cast_column("image", datasets.Image(decode=False))
    broken = rows.map(lambda row: {"image": {"bytes": b"no picture", "path": None}}, features=rows.features)
    broken.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "broken"))
    done = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vqa_grpo.training"),
        *options(tiny_model, tmp_path / "broken", tmp_path / "output"),
    )
    assert done.returncode == 1
    assert "error: a picture of " in done.stderr
    assert "exitcode  : 65" in done.stderr


# A random model's completions all score 0, which gives no gradient; this reward tells any two of them apart.
WELL_PAID = ["--reward_funcs", "length_reward:ids"]


def changed(before: Path, after: Path, whole: bool = False) -> set[str]:
    """The names of the weights that training moved: the layer's own name, or the whole path."""
    from safetensors.torch import load_file

    from vqa_grpo.models.load import load_model

    old = load_model(str(before)).state_dict()
    new = load_model(str(after)).state_dict()
    assert load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    moved = {name for name in old if not old[name].equal(new[name])}
    return moved if whole else {name.split(".")[-2] for name in moved}
