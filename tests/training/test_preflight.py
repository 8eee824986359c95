"""What is known before any GPU time: a table of checks under --preflight, and the same checks at every start."""

from __future__ import annotations

import io
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import tiny

from vqa_grpo.storage import store
from vqa_grpo.training import preflight
from vqa_grpo.training.arguments import RULES, rules

LOOKS = len(RULES) + len(preflight.CHECKS)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def look(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> Any:
    def at(*more: str) -> tuple[int, dict[str, str], str]:
        """The exit code, each line by its check's name, and the verdict."""
        out = io.StringIO()
        words = ["--model_name_or_path", str(tiny_model), "--dataset_name", str(tiny_dataset), "--preflight"]
        words += ["--output_dir", str(tmp_path / "new" / "out"), "--prompt_template", "short", *more]
        code = preflight.report(words, out)
        *lines, verdict = out.getvalue().splitlines()
        assert len(lines) == LOOKS
        return code, {line[6:26].strip(): f"{line[:4].strip()} {line[28:]}" for line in lines}, verdict

    return at


def test_a_run_that_can_start_gets_a_line_for_each_check_and_exit_code_zero(look: Any) -> None:
    code, lines, verdict = look("--reward_funcs", "format", "reasoning", "--max_completion_length", "8")
    assert (code, verdict) == (0, "preflight: ready")
    assert all(line.startswith("ok") for line in lines.values())
    assert lines["reward columns"] == "ok 16 of 16 rows looked at have reference_steps"
    assert lines["precision"] == "ok float32 on the CPU"
    assert "4 visual + 8 completion tokens" in lines["context"]
    assert "--num_generations is 8" in lines["batch"]


def test_every_refusal_is_listed_and_what_follows_from_one_is_not_repeated(look: Any, tmp_path: Path) -> None:
    code, lines, verdict = look("--dataset_name", str(tmp_path / "no"), "--per_device_train_batch_size", "11")
    assert (code, verdict) == (78, f"preflight: 2 of {LOOKS} checks refuse")
    assert "the product is 10 or 12" in lines["batch"]
    assert lines["data"].startswith("FAIL")
    assert lines["context"] == "- not checked: see above"


@pytest.mark.parametrize(
    "wrong",
    [
        ("--per_device_train_batch_size", "0"),
        ("--gradient_accumulation_steps", "0"),
        ("--save_steps", "0"),
        ("--num_train_epochs", "nan"),
        ("--num_iterations", "0"),
    ],
)
def test_a_number_that_nothing_can_be_reckoned_with_is_refused_on_one_line(look: Any, wrong: tuple[str, str]) -> None:
    code, lines, verdict = look(*wrong)
    assert (code, verdict) == (78, f"preflight: 1 of {LOOKS} checks refuse")
    assert lines["numbers"].startswith(f"FAIL {wrong[0]} ")
    assert lines["disk"] == "- not checked: see above"


def test_too_few_rows_for_one_round_are_refused(look: Any) -> None:
    code, lines, _ = look("--per_device_train_batch_size", "64", "--num_generations", "2")
    assert code == 78
    assert "has 16 rows, but one round takes 32" in lines["data"]


def test_a_column_of_empty_reference_steps_is_refused_where_reasoning_is_asked_for(look: Any, tmp_path: Path) -> None:
    import datasets

    tiny.dataset(tmp_path / "full")
    rows = datasets.load_from_disk(str(tmp_path / "full"))["train"]
    rows.map(lambda row: {"reference_steps": []}, features=rows.features).save_to_disk(str(tmp_path / "empty"))
    empty = ["--dataset_name", str(tmp_path / "empty")]
    code, lines, _ = look(*empty, "--reward_funcs", "format", "reasoning")
    assert code == 78
    assert "none of the 16 rows" in lines["reward columns"]
    assert look(*empty, "--reward_funcs", "format")[0] == 0


def test_a_prompt_and_completion_beyond_the_models_positions_are_refused_with_a_bound_that_fits(look: Any) -> None:
    big = ["--max_completion_length", "7900", "--min_pixels", "1024"]
    code, lines, _ = look(*big, "--max_pixels", "4096")
    assert code == 0
    code, lines, _ = look("--max_completion_length", "7900", "--min_pixels", "409600", "--max_pixels", "4096000")
    assert code == 78
    assert "more than the 8,192 positions" in lines["context"]
    code, lines, _ = look("--max_completion_length", "9000")
    assert code == 78
    assert "shorter prompts, or a smaller --max_completion_length" in lines["context"]


def test_the_bound_that_is_offered_fits(look: Any, tiny_dataset: Path, tmp_path: Path) -> None:
    import datasets
    from PIL import Image

    rows = datasets.load_from_disk(str(tiny_dataset))["train"]
    wide = rows.map(lambda row: {"image": Image.new("RGB", (2048, 2048))}, features=rows.features)
    wide.save_to_disk(str(tmp_path / "wide"))
    given = ["--dataset_name", str(tmp_path / "wide"), "--max_completion_length", "6000", "--min_pixels", "1024"]
    code, lines, _ = look(*given, "--max_pixels", "4194304")
    assert code == 78
    offered = lines["context"].split("--max_pixels ")[1].split(",")[0]
    assert look(*given, "--max_pixels", offered)[0] == 0


def test_a_disk_too_small_for_the_checkpoints_is_refused_with_a_limit_that_fits(
    look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = ["--save_steps", "1", "--max_steps", "100", "--max_completion_length", "8"]
    _, lines, _ = look(*saving)
    assert "a checkpoint x 100 " in lines["disk"]
    _, lines, _ = look(*saving, "--save_total_limit", "3")
    assert "a checkpoint x 4 " in lines["disk"]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 20_000_000))
    code, lines, _ = look(*saving)
    assert code == 78
    limit = lines["disk"].rsplit("--save_total_limit ", 1)[1]
    assert look(*saving, "--save_total_limit", limit)[0] == 0
    assert look(*saving, "--save_total_limit", str(int(limit) + 1))[0] == 78
    assert look("--save_strategy", "no", "--max_completion_length", "8")[0] == 0


def test_an_adapters_checkpoints_are_reckoned_without_the_base(look: Any) -> None:
    saving = ["--save_steps", "1", "--max_steps", "1", "--max_completion_length", "8"]
    _, lines, _ = look(*saving, "--use_peft", "--lora_r", "4", "--target_modules", "q_proj")
    # Two layers of 64 to 64 at rank 4, each parameter with its weight and two moments in float32.
    assert lines["adapter layers"].startswith("ok LoRA on 2 layers, 1,024 of ")
    assert lines["disk"].startswith(f"ok {1024 * 12 / 2**20:.1f} MiB a checkpoint x 1 ")
    _, whole, _ = look(*saving)
    assert not whole["disk"].startswith("ok 0.0 MiB")


def test_a_gpu_without_bfloat16_is_refused_with_what_it_can_do(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(rules, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    code, lines, _ = look("--bf16", "--max_completion_length", "8")
    assert code == 78
    assert "Old GPU does not compute in bfloat16: give --fp16" in lines["precision"]
    assert look("--fp16", "--max_completion_length", "8")[0] == 0
    assert "cannot scale" in look("--fp16", "--torch_dtype", "float16")[1]["device"]
    assert "exclude each other" in look("--fp16", "--bf16")[1]["device"]


def test_what_deepspeed_needs_at_launch_is_checked(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed import git_version_info

    code, lines, _ = look("--deepspeed", "zero2", "--max_completion_length", "8")
    assert code == 78
    assert "needs two processes" in lines["deepspeed launch"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, lines, _ = look("--deepspeed", "zero2", "--max_completion_length", "8")
    assert lines["deepspeed launch"] == "ok ZeRO-2, 2 processes"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C++ compiler" in look("--deepspeed", "zero3-offload")[1]["deepspeed launch"]
    assert look("--deepspeed", "zero3")[1]["deepspeed launch"] == "ok ZeRO-3, 2 processes"
    monkeypatch.setitem(git_version_info.installed_ops, "cpu_adam", True)  # as in an image that has no compiler
    assert look("--deepspeed", "zero3-offload")[1]["deepspeed launch"] == "ok ZeRO-3, 2 processes"


def test_storage_that_does_not_let_us_in_is_refused_before_training(
    look: Any, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["--max_completion_length", "8"]
    for option in ("--publish_uri", "--checkpoint_uri"):
        code, lines, _ = look(*short, option, f"{s3}/run")
        assert (code, lines["storage"]) == (0, f"ok {s3}/run: answers")
        code, lines, _ = look(*short, option, "s3://no-such-bucket/run")
        assert code == 78
        assert lines["storage"].startswith("FAIL no such bucket")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(store, "_client", store._client.__wrapped__)  # the cached one has its credentials
    code, lines, _ = look(*short, "--publish_uri", f"{s3}/run")
    assert code == 78
    assert lines["storage"].startswith("FAIL no S3 credentials for")


def test_the_same_checks_stop_a_start_before_any_weights_are_read(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from vqa_grpo.training import policy
    from vqa_grpo.training.__main__ import main

    monkeypatch.setattr(policy, "load", lambda *more: pytest.fail("weights were read"))
    words = ["--model_name_or_path", str(tiny_model), "--dataset_name", str(tiny_dataset), "--use_cpu"]
    assert main([*words, "--output_dir", str(tmp_path), "--max_completion_length", "9000"]) == 78
    assert "positions of" in capsys.readouterr().err


def test_the_switch_is_found_on_the_command_line_and_looked_into_once(
    look: Any, tiny_model: Path, tiny_dataset: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_grpo.training import __main__ as entry

    words = ["--model_name_or_path", str(tiny_model), "--dataset_name", str(tiny_dataset), "--preflight"]
    words += ["--max_completion_length", "8"]
    assert entry.main(words) == 0
    assert "preflight: ready" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert entry.main(words) == 0
    assert "preflight" not in capsys.readouterr().out
