"""The data steps: look at every row of the source, and convert it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqa_grpo import config as configuration
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.layout import key_of, step_uri
from vqa_grpo.steps.shared import EASY_VQA, once
from vqa_grpo.storage.store import open_store


@dataclass(frozen=True)
class Validated:
    report_uri: str
    rows: int
    invalid: int
    markdown: str


def validate_dataset(data_config: str, checks: str, fingerprint: str, root: str, code: str) -> Validated:
    """Check every row of the source; DataError when too many are unusable."""
    from vqa_grpo.data import validate

    data, wanted = configuration.Data(**json.loads(data_config)), json.loads(checks)

    def build(folder: Path) -> dict[str, Any]:
        source = _unchanged_source(data.source, fingerprint)
        report = validate.validate(source, wanted["wants_steps"], data.limit, folder / "quarantine.jsonl")
        validate.write_report(report, folder)
        return {"rows": report.total, "invalid": report.invalid, "by_code": report.by_code}

    uri = validation_uri(_data_uri(data_config, fingerprint, root, code), wanted["wants_steps"])
    result = once("validate", uri, build)
    validate.refuse_if_bad(_read_report(result["root"]), wanted["max_invalid_fraction"])
    markdown = (open_store(result["root"]).read("report.md") or b"").decode()
    return Validated(uri, result["rows"], result["invalid"], markdown)


@dataclass(frozen=True)
class Converted:
    dataset_uri: str
    digest: str
    splits: dict[str, int]


def convert_dataset(data_config: str, fingerprint: str, root: str, code: str) -> Converted:
    """Write the source as train, validation and test in the guide's schema."""
    from vqa_grpo.data import convert

    data = configuration.Data(**json.loads(data_config))

    def build(folder: Path) -> dict[str, Any]:
        source = _unchanged_source(data.source, fingerprint)
        rule = convert.SplitRule(data.split_seed, data.validation_fraction, data.test_fraction)
        return asdict(convert.convert(source, rule, folder, data.limit))

    uri = f"{_data_uri(data_config, fingerprint, root, code)}/convert"
    result = once("convert", uri, build)
    return Converted(uri, result["digest"], result["splits"])


def _data_uri(data_config: str, fingerprint: str, root: str, code: str) -> str:
    """The folder of what depends on the data alone."""
    return step_uri(root, "data-" + key_of(json.loads(data_config), fingerprint, code), "").rstrip("/")


def validation_uri(data_uri: str, wants_steps: bool) -> str:
    return f"{data_uri}/{'validate-with-steps' if wants_steps else 'validate'}"


def _unchanged_source(name: str, fingerprint: str) -> Any:
    source = open_source(name)
    if source.fingerprint != fingerprint:
        raise ConfigurationError(f"{name} changed since this run looked at it: start the run again")
    return source


def _read_report(root: str) -> Any:
    from vqa_grpo.data.validate import DataReport

    return DataReport(**json.loads(open_store(root).read("report.json") or b"{}"))


def open_source(name: str) -> Any:
    from vqa_grpo.data.sources import Source, open_folder

    if name == EASY_VQA:
        from vqa_grpo.quickstart import easy_vqa

        return Source(name, easy_vqa.fingerprint(), dict(easy_vqa.ROWS), easy_vqa.records)  # type: ignore[arg-type]
    if name.startswith("builtin:"):
        raise ConfigurationError(f"data.source {name!r} is not built in: the one that is, is {EASY_VQA}")
    return open_folder(name)
