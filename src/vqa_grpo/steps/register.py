"""The step that registers a model which was decided on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from vqa_grpo.contract.layout import step_uri
from vqa_grpo.steps.shared import config_of, once, result_of
from vqa_grpo.storage import publish


def register_model(config: str, run_id: str, root: str) -> Any:
    """Register the published model by reference and move the alias; a retry returns the same version."""
    from vqa_grpo import registry

    run = config_of(config)
    decided = result_of(step_uri(root, run_id, "decide"))
    scores = result_of(step_uri(root, run_id, "evaluate"))

    def build(folder: Path) -> dict[str, Any]:
        model = publish.get(scores["model_uri"])
        registered = registry.register(
            run.registry.tracking_uri,
            run.registry.model_name,
            run.registry.alias,
            source=model.root,
            digest=model.digest,
            mlflow_run_id=decided["mlflow_run_id"],
            tags=scores["lineage"] | {"run_id": run_id},
        )
        return asdict(registered)

    result = once("register", step_uri(root, run_id, "register"), build)
    fields = ("name", "version", "alias", "digest", "uri")
    return registry.Registered(**{field: result[field] for field in fields})
