"""The data steps: look at every row of the source, then write it as train, validation and test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.data.source import WHOLE, Part
from vqa_grpo.steps.data_plan import DataPlan, broken_off, data_uri, figures, unchanged, validation_uri
from vqa_grpo.steps.shared import once
from vqa_grpo.storage import publish
from vqa_grpo.storage.store import open_store


@dataclass(frozen=True)
class Validated:
    report_uri: str
    rows: int
    invalid: int
    markdown: str
    html: str


def validate_dataset(data_config: str, checks: str, fingerprint: str, root: str, code: str) -> Validated:
    """Check every row of the source; DataError when too many are unusable."""
    from vqa_grpo.data.validate import validate

    plan = DataPlan(data_config, checks)

    def build(folder: Path) -> dict[str, Any]:
        return validate(unchanged(plan, fingerprint), plan.rules, folder, plan.data.limit).figures()

    return validated(
        "validate", validation_uri(data_uri(plan, fingerprint, root, code), plan.rules.wants_steps), plan, build
    )


@dataclass(frozen=True)
class Converted:
    dataset_uri: str
    digest: str
    splits: dict[str, int]


def convert_dataset(data_config: str, fingerprint: str, root: str, code: str, report_uri: str) -> Converted:
    """Write the source as train, validation and test in the guide's schema, by the index that validation published.

    A conversion that was killed on this machine goes on where it was.
    """
    plan = DataPlan(data_config, "")
    uri = f"{data_uri(plan, fingerprint, root, code)}/convert"
    result = once("convert", uri, lambda folder: converted(plan, fingerprint, report_uri, uri, WHOLE, folder))
    return Converted(uri, result["digest"], result["splits"])


def converted(plan: DataPlan, fingerprint: str, report_uri: str, uri: str, part: Part, folder: Path) -> dict[str, Any]:
    """Convert a part of the source into `folder`; the figures for its result."""
    from vqa_grpo.data.scan import INDEX

    index = publish.fetch(report_uri, publish.cache_folder()) / INDEX
    with broken_off(uri) as unfinished:
        facts = plan.convert(unchanged(plan, fingerprint), index, unfinished, part)
        unfinished.rename(folder)  # in the place of an empty one, all at once: half a result would be gone on with
    return figures(facts)


def validated(step: str, uri: str, plan: DataPlan, build: Callable[[Path], dict[str, Any]]) -> Validated:
    from vqa_grpo.data.validate import HTML, MARKDOWN, REPORT, check_codes, refuse_if_bad
    from vqa_grpo.report.data import DataReport

    check_codes(plan.rules)
    result = once(step, uri, build)
    store = open_store(result["root"])
    report = DataReport.from_dict(json.loads(store.read(REPORT) or b"{}"))
    refuse_if_bad(report, plan.rules)
    markdown, html = ((store.read(name) or b"").decode() for name in (MARKDOWN, HTML))
    return Validated(uri, report.total, report.invalid, markdown, html)
