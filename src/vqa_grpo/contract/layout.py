"""Where things lie in storage: `ROOT/<run id>/<step>/…`.

Results that depend only on their inputs (a converted data set, the embedded base model) lie under a run id
made from those inputs, so that any run finds them: `ROOT/data-<key>/convert/`, `ROOT/base-<key>/model/`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Below a run: where the pods of each of its jobs, and their launcher, leave word of how they ended.
TRAINING_STATUS, EVALUATION_STATUS = "status", "status-evaluate"

# How a training finds the pipeline's run in MLflow, to be its child: the run's id in the environment and in a tag.
RUN_VARIABLE = "VQA_GRPO_RUN_ID"
MLFLOW_RUN_TAG = "vqa_grpo.run_id"


def step_uri(root: str, run_id: str, step: str) -> str:
    return f"{root.rstrip('/')}/{run_id}/{step}"


def key_of(*parts: Any) -> str:
    """A short, stable name for a combination of JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
