"""What is published of a training's folder: the model, and nothing that only lies beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vqa_grpo.storage.publish import get
from vqa_grpo.training.output import publish

RECORD = dict.fromkeys(("kind", "model", "dataset", "steps", "prompt_digest", "versions"), "x")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

WITH_IT = ("adapter/adapter_model.safetensors", "code/package/models/pyfunc.py", "completions/step-000002.html")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which two trainings have ended, the last one into two shards."""
    folder = tmp_path / "output"
    stale = ("model.safetensors", "model-00003-of-00003.safetensors")
    beside = ("training_args.bin", "training_debug_accuracy_vqa.txt", "checkpoint-2/model.safetensors")
    beside += ("adapter/training_args.bin", "code/package/models/__pycache__/pyfunc.pyc", "runs/events.out.tfevents.1")
    for name in (*SHARDS, *stale, *beside, "config.json", *WITH_IT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def published(folder: Path) -> set[str]:
    publish(str(folder.parent / "published"), folder, RECORD, folder)
    return set(get(str(folder.parent / "published")).files)


def test_debug_logs_pickles_checkpoints_and_an_older_run_s_shards_stay_behind(folder: Path) -> None:
    """Debug logs hold gold answers; a shard that no index names would be read by who looks for the usual name."""
    assert published(folder) == {
        *SHARDS,
        "model.safetensors.index.json",
        "config.json",
        *WITH_IT,
    }


@pytest.mark.parametrize("index", ["gone", "left by an older run"])
def test_a_model_in_one_file_is_published_whole(folder: Path, index: str) -> None:
    """Saving in one file removes the shards of before and forgets their index."""
    for name in (*SHARDS, "model-00003-of-00003.safetensors"):
        (folder / name).unlink()
    if index == "gone":
        (folder / "model.safetensors.index.json").unlink()
    assert published(folder) == {"model.safetensors", "config.json", *WITH_IT}
