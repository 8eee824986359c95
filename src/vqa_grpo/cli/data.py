"""The verbs validate and convert: one data set checked or converted into a folder, whole or in parts."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.config import load
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.data.source import Part
from vqa_grpo.steps.data_plan import DataPlan, open_source

if TYPE_CHECKING:
    from vqa_grpo.data.convert import ConvertedData
    from vqa_grpo.data.source import Source
    from vqa_grpo.report.data import DataReport

REPORT_FOLDER = "report"  # not "validation", which is a split


def plan_of(source: str, config: str, settings: list[str], wants_steps: bool = True) -> DataPlan:
    """What a configuration and the command line say of the data; `source` wins over the configuration's."""
    if source:
        settings = [f"data.source={json.dumps(source)}", "data.mix=[]", *settings]
    if wants_steps:
        # Whoever looks at data by hand wants to know what is missing for every reward.
        settings = ["rewards.functions=[format, accuracy, reasoning]", "rewards.weights=[]", *settings]
    return DataPlan.of(load(config, settings))


def part_of(text: str) -> Part:
    """
    >>> part_of("1/4")
    Part(index=1, count=4, limit=0)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigurationError(f"--shard {text!r}: write it as i/n with i from 0 to n-1, such as 0/4")
    return Part(int(match[1]), int(match[2]))


def validate(plan: DataPlan, out: Path | None, shard: str, merge: int) -> DataReport | None:
    """Check a data set, a part of it, or conclude from the parts in `out`; None after a part alone.

    Raises as `refuse_if_bad` only after everything is written: the caller shows the report first.
    """
    from vqa_grpo.data import validate as checks
    from vqa_grpo.data.scan import scan

    checks.check_codes(plan.rules)
    if (shard or merge) and out is None:
        raise ConfigurationError("--shard and --merge need --out, the folder that all parts share")
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return checks.validate(open_source(plan.data), plan.rules, Path(folder), plan.data.limit)
    source = open_source(plan.data)
    if shard:
        part = part_of(shard)
        scan(source, plan.rules, _part_folder(out, part), Part(part.index, part.count, plan.data.limit))
        return None
    if merge:
        return checks.conclude(source.name, _part_folders(out, merge), plan.rules, out)
    return checks.validate(source, plan.rules, out, plan.data.limit)


def convert(plan: DataPlan, out: Path, shard: str, merge: int, report: Path | None) -> tuple[ConvertedData, DataReport]:
    """Validate and convert into `out`, which holds the validation's files too; goes on where a killed run ended.

    A part needs the `report` folder of the whole source's validation. Raises DataError where the rules refuse the
    data, before anything is converted.
    """
    from vqa_grpo.data.convert import WORK
    from vqa_grpo.data.converted import CONVERSION
    from vqa_grpo.data.scan import INDEX
    from vqa_grpo.data.validate import refuse_if_bad
    from vqa_grpo.report.data import DataReport

    if (shard or merge) and report is None:
        raise ConfigurationError("--shard and --merge need --report, the folder of the whole source's validation")
    if (out / CONVERSION).exists():
        raise ConfigurationError(f"{out} is a converted data set already: name a new folder")
    if out.exists() and not (out.is_dir() and ((out / WORK).is_dir() or not any(out.iterdir()))):
        raise ConfigurationError(f"{out} exists already: name a new folder")
    source = open_source(plan.data)
    with _validation(plan, source, out, report) as checked:
        found = DataReport.from_dict(json.loads((checked / "report.json").read_text(encoding="utf-8")))
        refuse_if_bad(found, plan.rules)
        if merge:
            from vqa_grpo.data.convert import merge as merge_parts

            made = merge_parts(_part_folders(out, merge), out)
        else:
            part = part_of(shard) if shard else Part()
            made = plan.convert(source, checked / INDEX, _part_folder(out, part) if shard else out, part)
    return made, found


def figures(made: ConvertedData, found: DataReport) -> dict[str, Any]:
    """What --json prints of a conversion: the report's figures, with the digest and splits of what came out."""
    facts = asdict(made)
    return found.figures() | {name: facts[name] for name in ("digest", "splits", "left_out", "held_out", "resized")}


@contextmanager
def _validation(plan: DataPlan, source: Source, out: Path, report: Path | None) -> Iterator[Path]:
    """The folder of the validation: the one given, or one made beside `out` that goes into it at the end."""
    from vqa_grpo.data.validate import REPORT, validate

    if report is not None:
        if not (report / REPORT).is_file():
            raise ConfigurationError(f"--report {report} holds no {REPORT}: validate the source with --out {report}")
        yield report
        return
    beside = out.with_name(f"{out.name}.{REPORT_FOLDER}")
    made_of = json.dumps([plan.data_config, plan.checks, source.fingerprint])
    mark = beside / "made_of.json"
    if not (mark.is_file() and mark.read_text(encoding="utf-8") == made_of):
        shutil.rmtree(beside, ignore_errors=True)
        validate(source, plan.rules, beside, plan.data.limit)
        mark.write_text(made_of, encoding="utf-8")
    yield beside
    mark.unlink()
    beside.rename(out / REPORT_FOLDER)


def _part_folder(out: Path, part: Part) -> Path:
    return out.with_name(f"{out.name}.parts") / f"{part.index}-of-{part.count}"


def _part_folders(out: Path, count: int) -> list[Path]:
    return [_part_folder(out, Part(index, count)) for index in range(count)]
