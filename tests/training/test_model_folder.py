"""The folder of a finished training is a model for MLflow and for transformers alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo.contract import prompt
from vqa_grpo.training import model_folder

RECORD: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-VL-3B-Instruct",
    "dataset": "s3://bucket/data|<b>",
    "dataset_digest": "d" * 64,
    "rows": 12,
    "steps": 3,
    "prompt_digest": "p" * 64,
    "versions": {"vqa_grpo": "0.1.0", "torch": "2.13.0+cpu"},
    "arguments": {
        "vqa": {"reward_funcs": ["format", "accuracy"], "reward_combination": "gated"},
        "grpo": {"reward_weights": [0.5, 2.0], "max_completion_length": 12},
        "model": {"use_peft": True},
    },
}
# What someone runs who has MLflow and transformers, and not this package.
FOREIGN = """
import base64, json, sys
sys.modules["vqa_grpo"] = None
import mlflow, pandas
from mlflow.models import Model
folder, pictures = sys.argv[1], json.loads(sys.argv[2])
def given(path, way):
    data = open(path, "rb").read()
    text = base64.b64encode(data).decode()
    return {"bytes": data, "base64": text, "url": "data:image/png;base64," + text, "path": path}[way]
rows = [
    {"image": given(path, way), "question": question, "options": options}
    for (path, question, options), way in zip(pictures, ["bytes", "base64", "url", "path"])
]
model = mlflow.pyfunc.load_model(folder)
for row in rows:
    if not row["options"]:
        del row["options"]  # pandas puts NaN there
whole, alone = model.predict(pandas.DataFrame(rows)), model.predict(pandas.DataFrame(rows[:1]).drop(columns="options"))
try:
    model.predict(pandas.DataFrame([{**rows[0], "image": b"no picture"}]))
    refused = ""
except Exception as error:
    refused = str(error)
signature = Model.load(folder).signature.to_dict()
print(json.dumps({"rows": whole.to_dict("records"), "alone": len(alone), "refused": refused, "signature": signature}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "model"
    shutil.copytree(tiny_model, folder)
    lively(folder / "model.safetensors")
    (folder / "prompt.txt").write_text(prompt.load("short").text + "\n")
    (folder / "code" / "vqa_grpo_of_an_older_run").mkdir(parents=True)
    model_folder.write(folder, RECORD)
    return folder


def lively(file: Path) -> None:
    """Random weights as they are made say the same to every question; larger ones do not."""
    from safetensors.torch import load_file, save_file

    tensors = {name: value if "norm" in name else value * 6 for name, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def test_mlflow_answers_from_the_folder_alone_as_evaluation_does(
    folder: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    import datasets

    from vqa_grpo.evaluation.predict import predict

    rows = datasets.load_from_disk(str(tiny_dataset))["train"].select(range(4))
    offered = [["red", "blue"], [], ["yes", "no", "it's neither"], []]
    rows = rows.add_column("options", offered).add_column("id", [str(number) for number in range(4)])
    expected = predict(folder, rows, prompt.load("short"), batch_size=4, max_new_tokens=12)
    encoded = rows.cast_column("image", datasets.Image(decode=False))
    pictures = []
    for number, row in enumerate(encoded):
        path = tmp_path / f"{number}.png"
        path.write_bytes(row["image"]["bytes"])
        pictures.append((str(path), row["question"], row["options"]))
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(folder), json.dumps(pictures)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answered = json.loads(done.stdout.splitlines()[-1])
    by_id = {prediction.id: prediction for prediction in expected}
    assert [row["completion"] for row in answered["rows"]] == [by_id[str(number)].completion for number in range(4)]
    assert [row["outcome"] for row in answered["rows"]] == [by_id[str(number)].outcome for number in range(4)]
    assert len({row["completion"] for row in answered["rows"]}) > 1
    assert answered["alone"] == 1
    assert "an image cannot be read" in answered["refused"]
    assert "image" in answered["signature"]["inputs"]


def test_nothing_in_the_folder_is_a_pickle(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {"", ".json", ".jinja", ".md", ".py", ".safetensors", ".txt", ".yaml"}
    assert not [path for path in files if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")]


def test_the_code_of_another_version_has_another_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models may be loaded into one process, where the first module of a name serves both."""
    (package,) = (folder / "code").iterdir()
    monkeypatch.setattr(model_folder, "MODULES", model_folder.MODULES[:-1])
    (folder.parent / "other").mkdir()
    model_folder.write(folder.parent / "other", RECORD)
    (other,) = (folder.parent / "other" / "code").iterdir()
    assert other.name != package.name


def test_the_model_card_names_what_the_model_was_made_from(folder: Path) -> None:
    import yaml

    card = (folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == RECORD["model"]
    for part in ("d" * 64, "| format | 0.5 |", "| accuracy | 2.0 |", "2.13.0+cpu", "gated", "`adapter/`", "## Limits"):
        assert part in card
    assert "<b>" not in card
    assert "data\\|" in card
