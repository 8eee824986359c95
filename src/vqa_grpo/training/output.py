"""What a finished run leaves beside the weights, and how it is published."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vqa_grpo
from vqa_grpo.contract.prompt import PromptTemplate
from vqa_grpo.report.progress import transferring
from vqa_grpo.training import model_folder, samples

if TYPE_CHECKING:
    from vqa_grpo.training.arguments import Arguments

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "deepspeed", "vllm")
# A pickle of the arguments that Trainer writes: training.json says the same and is safe to open.
UNPUBLISHED = ("training_args.bin",)
INDEX = "model.safetensors.index.json"


def write_records(
    folder: Path, arguments: Arguments, template: PromptTemplate, history: list[dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write prompt.txt, history.json, training.json and what makes the folder an MLflow model.

    Returns what training.json says of the run.
    """
    record = {
        **facts,
        "prompt_digest": template.digest,
        "versions": versions(),
        "notes": arguments.notes,
        "arguments": {
            "vqa": asdict(arguments.vqa),
            "grpo": arguments.grpo.to_dict(),  # masks tokens
            "model": asdict(arguments.model),
        },
    }
    (folder / "prompt.txt").write_text(template.text + "\n", encoding="utf-8")
    (folder / "history.json").write_text(json.dumps(finite(history), indent=1), encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
    model_folder.write(folder, record)
    return record


def finite(value: Any) -> Any:
    """NaN and the infinities as None: JSON has no word for them. A reward that applied to no row has a NaN mean.

    >>> finite([{"rewards/reasoning/mean": float("nan"), "step": 1}])
    [{'rewards/reasoning/mean': None, 'step': 1}]
    """
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    found = {"vqa_grpo": vqa_grpo.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def publish(uri: str, folder: Path, record: dict[str, Any], output_dir: Path) -> None:
    """Publish a model with the samples in `output_dir`: checkpoints and logs may lie in the same folder, and stay."""
    from vqa_grpo.storage.publish import publish_folder

    metadata = {key: record[key] for key in ("kind", "model", "dataset", "steps", "prompt_digest", "versions")}
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=folder) as staging:
        own = [*folder.iterdir(), *folder.glob("adapter/*"), *folder.glob(f"{model_folder.CODE}/**/*.py")]
        sampled = output_dir.glob(f"{samples.FOLDER}/step-*")
        for path, root in [*((path, folder) for path in own), *((path, output_dir) for path in sampled)]:
            if path.is_file() and _belongs(path):
                target = Path(staging) / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                link(path, target)
        with transferring("upload") as progress:
            publish_folder(uri, Path(staging), metadata, progress=progress)


def _belongs(path: Path) -> bool:
    """Whether a file is part of the model: not a pickle, not a debug log with gold answers, not an old run's shard."""
    if path.name in UNPUBLISHED or "_debug" in path.name:
        return False
    index = path.with_name(INDEX)
    if path.name.startswith("model") and path.suffix == ".safetensors":
        shards = _shards(index)
        return not shards or path.name in shards
    return path.name != INDEX or bool(_shards(index))


def _shards(index: Path) -> set[str]:
    """The files that an index names; nothing when one of them is missing, since a later save in one file removed it."""
    if not index.is_file():
        return set()
    named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return named if all(index.with_name(name).is_file() for name in named) else set()


def link(path: Path | str, target: Path | str) -> None:
    """A second name for the same bytes, where the file system has hard links."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)
