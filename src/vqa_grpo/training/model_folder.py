"""What makes a transformers folder an MLflow model too: MLmodel, the code that answers, requirements, a model card.

Written by hand, since a training image has no MLflow. The format is that of mlflow.models.Model (MLmodel,
https://mlflow.org/docs/latest/ml/model/), and a test loads the folder with MLflow itself.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vqa_grpo
from vqa_grpo.report.markdown import escape

# What answering needs of this package. Models made by different versions of it can be loaded side by side, because
# the copy's name holds a digest of its text.
MODULES = (
    "__init__.py",
    *(f"contract/{name}.py" for name in ("__init__", "completion", "failure", "picture", "prompt", "record")),
    *(f"models/{name}.py" for name in ("__init__", "greedy", "image_only", "load", "pyfunc")),
)
REQUIRED = ("mlflow", "torch", "transformers", "pillow", "pandas")
BATCH_SIZE = 8
FILES = ("MLmodel", "README.md", "conda.yaml", "python_env.yaml", "requirements.txt")
CODE = "code"


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Complete `folder`, which holds the weights, with FILES and CODE. `record` is what training.json holds."""
    package = _write_code(folder / CODE)
    requirements = [_requirement(name) for name in REQUIRED]
    python = platform.python_version()
    build = ["pip", "setuptools", "wheel"]
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": requirements}],
    }
    texts = {
        "requirements.txt": "\n".join(requirements) + "\n",
        "python_env.yaml": _yaml(
            {"python": python, "build_dependencies": build, "dependencies": ["-r requirements.txt"]}
        ),
        "conda.yaml": _yaml(conda),
        "MLmodel": _yaml(_mlmodel(package, python, record)),
        "README.md": model_card(record),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def model_card(record: Mapping[str, Any]) -> str:
    """A model card to be completed by who publishes the model: what only people know is left open."""
    arguments = record["arguments"]
    vqa = arguments["vqa"]
    weights = arguments["grpo"].get("reward_weights") or [1.0] * len(vqa["reward_funcs"])
    base = str(record["model"])
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    front["tags"] = ["visual-question-answering", "grpo", "vqa-grpo"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        front["base_model"] = base
    made = {
        "Base model": base,
        "Data": record["dataset"],
        "Data digest": record.get("dataset_digest") or "none: the data set was not published",
        "Rows": record["rows"],
        "Optimizer steps": record["steps"],
        "Prompt digest": record["prompt_digest"],
        **{f"Version of {name}": value for name, value in record["versions"].items()},
    }
    paid = dict(zip(vqa["reward_funcs"], weights, strict=True))
    adapter = "\nThe LoRA adapter that was merged into these weights lies in `adapter/`.\n"
    return f"""---
{_yaml(front)}---

# A visual question answering model, post-trained with GRPO

It takes a picture and a question, with answer options where there are some, and says one JSON object:
`{{"reasoning_steps": […], "answer": "…"}}`. The prompt that it was trained with is `prompt.txt`.

{_table(("what", "value"), made)}

{_table(("reward", "weight"), paid)}

Rewards are combined in the {escape(str(vqa["reward_combination"]))} way.
{adapter if arguments["model"].get("use_peft") else ""}
## Use

```python
mlflow.pyfunc.load_model(folder).predict(pandas.DataFrame([{{"image": "picture.png", "question": "…"}}]))
```

`transformers.AutoModelForImageTextToText.from_pretrained(folder)` loads it as well. `history.json` holds the
training's metrics, `training.json` its settings, `completions/` what it said on the way.

## Intended use

Questions like those of the data set above. Who publishes the model completes this section.

## Limits

- An answer may be wrong in well-formed words: validity of the JSON says nothing about it.
- Reasoning steps were rewarded for resembling reference steps, if at all; they need not be how the answer was found.
- The base model's limits, biases and licence stay, and so do those of the data.
- Pictures, questions and languages unlike those of the data set were not measured.
"""


def _mlmodel(package: str, python: str, record: Mapping[str, Any]) -> dict[str, Any]:
    inputs = [
        # "any" lets bytes and text through, and for options the NaN that pandas puts into rows that have none.
        {"name": "image", "type": "any", "required": True},
        {"name": "question", "type": "string", "required": True},
        {"name": "options", "type": "any", "required": False},
    ]
    outputs = [
        {"name": "answer", "type": "string", "required": False},
        {"name": "reasoning_steps", "type": "array", "items": {"type": "string"}, "required": True},
        {"name": "outcome", "type": "string", "required": True},
        {"name": "completion", "type": "string", "required": True},
    ]
    limit = record["arguments"]["grpo"].get("max_completion_length") or 768
    return {
        "flavors": {
            "python_function": {
                "loader_module": f"{package}.models.pyfunc",
                "python_version": python,
                "code": CODE,
                "config": {"max_new_tokens": limit, "batch_size": BATCH_SIZE},
                "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
            }
        },
        "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None},
        "metadata": {
            name: str(record[name]) for name in ("model", "dataset", "dataset_digest", "prompt_digest") if record[name]
        },
    }


def _write_code(folder: Path) -> str:
    """The copy of MODULES under a name of its own, which is returned; what an older run left there goes."""
    source = Path(vqa_grpo.__file__).parent
    texts = {name: (source / name).read_text(encoding="utf-8") for name in MODULES}
    package = f"vqa_grpo_{hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]}"
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in texts.items():
        path = folder / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            re.sub(r"^(\s*(?:from|import) )vqa_grpo\b", rf"\1{package}", text, flags=re.M), encoding="utf-8"
        )
    return package


def _requirement(name: str) -> str:
    """The version that is here, without the local part, such as +cpu, that only some index knows."""
    try:
        return f"{name}=={version(name).partition('+')[0]}"
    except PackageNotFoundError:
        return name


def _table(head: Sequence[str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {' | '.join(head)} |", "|:--|:--|"]
    lines += [f"| {escape(str(name))} | {escape(str(value))} |" for name, value in rows.items()]
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text
