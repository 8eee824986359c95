"""The data steps in parts that run side by side, for a data set that outgrows one machine.

What the last of them publishes lies where `validate_dataset` and `convert_dataset` would have put it, so that a run
on the same data finds both done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.data.source import Part
from vqa_grpo.steps.data import Converted, Validated, converted, validated
from vqa_grpo.steps.data_plan import DataPlan, data_uri, figures, unchanged, validation_uri
from vqa_grpo.steps.shared import once
from vqa_grpo.storage import publish


def list_parts(parts: int) -> list[int]:
    """The numbers of the parts, for a loop over them."""
    if parts < 1:
        raise ConfigurationError(f"parts {parts}: give at least 1")
    return list(range(parts))


def scan_part(data_config: str, checks: str, fingerprint: str, root: str, code: str, part: int, parts: int) -> str:
    """Look at the rows of one part; the URI of what was found."""
    from vqa_grpo.data.scan import scan

    plan = DataPlan(data_config, checks)
    uri = _part_uri(validation_uri(data_uri(plan, fingerprint, root, code), plan.rules.wants_steps), part, parts)

    def build(folder: Path) -> dict[str, Any]:
        scan(unchanged(plan, fingerprint), plan.rules, folder, _part(part, parts, plan.data.limit))
        return {"part": part, "parts": parts}

    once("validate", uri, build)
    return uri


def conclude_validation(data_config: str, checks: str, fingerprint: str, root: str, code: str, parts: int) -> Validated:
    """Put the looks at all parts together, where `validate_dataset` would have put its result."""
    from vqa_grpo.data.validate import conclude

    plan = DataPlan(data_config, checks)
    uri = validation_uri(data_uri(plan, fingerprint, root, code), plan.rules.wants_steps)

    def build(folder: Path) -> dict[str, Any]:
        source = unchanged(plan, fingerprint)
        return conclude(source.name, _fetched_parts(uri, parts), plan.rules, folder).figures()

    return validated("validate", uri, plan, build)


def convert_part(
    data_config: str, fingerprint: str, root: str, code: str, report_uri: str, part: int, parts: int
) -> str:
    """Convert the rows of one part; the URI of the result."""
    plan = DataPlan(data_config, "")
    uri = _part_uri(f"{data_uri(plan, fingerprint, root, code)}/convert", part, parts)
    rows = _part(part, parts)
    once("convert", uri, lambda folder: converted(plan, fingerprint, report_uri, uri, rows, folder))
    return uri


def merge_parts(data_config: str, fingerprint: str, root: str, code: str, parts: int) -> Converted:
    """Publish one data set made of all parts, where `convert_dataset` would have put it."""
    from vqa_grpo.data.convert import merge

    uri = f"{data_uri(DataPlan(data_config, ''), fingerprint, root, code)}/convert"

    def build(folder: Path) -> dict[str, Any]:
        return figures(merge(_fetched_parts(uri, parts), folder))

    result = once("convert", uri, build)
    return Converted(uri, result["digest"], result["splits"])


def _part_uri(uri: str, part: int, parts: int) -> str:
    return f"{uri}-parts/{part}-of-{parts}"


def _part(part: int, parts: int, limit: int = 0) -> Part:
    if not 0 <= part < parts:
        raise ConfigurationError(f"part {part} of {parts}: parts are counted from 0 to {parts - 1}")
    return Part(part, parts, limit)


def _fetched_parts(uri: str, parts: int) -> list[Path]:
    cache = publish.cache_folder()
    return [publish.fetch(_part_uri(uri, part, parts), cache) for part in range(parts)]
