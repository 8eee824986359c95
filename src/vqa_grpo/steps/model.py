"""The step that sees to the base model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.config import RunConfig
from vqa_grpo.contract import prompt as prompts
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.layout import key_of, step_uri
from vqa_grpo.models.source import pinned, plain_copy
from vqa_grpo.report.progress import announce
from vqa_grpo.steps.data_plan import builtin_source
from vqa_grpo.steps.shared import EASY_VQA, TINY, config_of, dataset_folder, once, result_of, stages
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import is_remote


@dataclass(frozen=True)
class Prepared:
    """The base model as training and evaluation name it: a published URI, a folder, or a hub name."""

    base: str


def prepare_model(config: str, dataset_uri: str, root: str) -> Prepared:
    """Make sure that there is a base model; `builtin:tiny` is built here, from the training split alone."""
    run = config_of(config)
    base = run.model.base
    if base == TINY:
        return _build_tiny(run, dataset_uri, root)
    if base.startswith("builtin:"):
        raise ConfigurationError(f"model.base {base!r} is not built in: the one that is, is {TINY}")
    announce("prepare", "started")
    note = ""
    if is_remote(base) and not publish.is_published(base):
        base, note = plain_copy(base)
    elif publish.looks_published(base):
        base = publish.get(base).uri
    elif Path(base).expanduser().is_dir():
        base = str(Path(base).expanduser().absolute())
    else:
        base, note = pinned(base)
    if note:
        announce("prepare", "note", why=note)
    announce("prepare", "finished", base=base)
    return Prepared(base)


def _build_tiny(run: RunConfig, dataset_uri: str, root: str) -> Prepared:
    """The embedded base model, built once for each set of rows, recipe, prompt and seed.

    It knows the world of easy-VQA only: on other data it is a stand-in that shows the pipeline at work.
    """
    from vqa_grpo.quickstart.recipes import RECIPES, recipe_key

    recipe, template = RECIPES[run.model.recipe], prompts.load(run.model.prompt)
    own_rows = run.data.source == EASY_VQA
    rows_key = result_of(dataset_uri)["digest"] if own_rows else builtin_source(EASY_VQA).fingerprint

    def build(folder: Path) -> dict[str, Any]:
        from vqa_grpo.data.converted import read_records
        from vqa_grpo.quickstart.base import build_base

        # The converted split, because its validation pictures must stay unseen.
        found = (
            read_records(dataset_folder(dataset_uri), "train")
            if own_rows
            else builtin_source(EASY_VQA).records("train")
        )
        return build_base(list(found), folder, recipe, template, run.seed, stages("prepare"))

    uri = step_uri(root, "base-" + key_of(recipe_key(recipe, template, run.seed), rows_key), "model")
    once("prepare", uri, build)
    return Prepared(uri)
