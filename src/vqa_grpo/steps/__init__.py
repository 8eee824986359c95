"""The pipeline's steps as plain functions: strings and numbers in, a dataclass out, no Kubeflow.

A step's result is a folder published once, with a `result.json` of its figures. A step that finds its result
published returns it, so that a retried step, a resumed run and a second run all do only what is missing.
Results that depend on their inputs alone (the converted data, the embedded base model) are keyed on those inputs.
"""

from vqa_grpo.steps.data import Converted, Validated, convert_dataset, validate_dataset
from vqa_grpo.steps.data_parts import conclude_validation, convert_part, list_parts, merge_parts, scan_part
from vqa_grpo.steps.data_plan import DataPlan, open_source
from vqa_grpo.steps.decide import Decided, decide_promotion, needs_training
from vqa_grpo.steps.evaluate import Evaluated, evaluate_models, evaluation_job
from vqa_grpo.steps.finish import finish_run
from vqa_grpo.steps.guard import guarded
from vqa_grpo.steps.model import Prepared, prepare_model
from vqa_grpo.steps.register import register_model
from vqa_grpo.steps.resolve import Resolved, checked, code_digest, resolve, run_folder
from vqa_grpo.steps.train import Trained, train_model, training_arguments, training_job

__all__ = [
    "Converted",
    "DataPlan",
    "Decided",
    "Evaluated",
    "Prepared",
    "Resolved",
    "Trained",
    "Validated",
    "checked",
    "code_digest",
    "conclude_validation",
    "convert_dataset",
    "convert_part",
    "decide_promotion",
    "evaluate_models",
    "evaluation_job",
    "finish_run",
    "guarded",
    "list_parts",
    "merge_parts",
    "needs_training",
    "open_source",
    "prepare_model",
    "register_model",
    "resolve",
    "run_folder",
    "scan_part",
    "train_model",
    "training_arguments",
    "training_job",
    "validate_dataset",
]
