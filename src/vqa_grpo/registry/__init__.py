"""MLflow: record a run, register a model once, move aliases."""

from vqa_grpo.registry.mlflow_registry import (
    Registered,
    end_run,
    is_configured,
    models,
    open_run,
    promote,
    record_run,
    register,
    rollback,
)

__all__ = [
    "Registered",
    "end_run",
    "is_configured",
    "models",
    "open_run",
    "promote",
    "record_run",
    "register",
    "rollback",
]
