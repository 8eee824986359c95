"""The verbs validate and convert: one data set checked or converted into a folder, whole or in parts."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.config import load
from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.data.source import Part
from vqa_grpo.steps.data_plan import DataPlan, open_source
from vqa_grpo.storage.store import normalise

if TYPE_CHECKING:
    from vqa_grpo.data.convert import ConvertedData
    from vqa_grpo.data.source import Source
    from vqa_grpo.report.data import DataReport

REPORT_FOLDER = "report"  # not "validation", which is a split
MADE_OF = "made_of.json"


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
    out = out and _here(out)
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return checks.validate(open_source(plan.data), plan.rules, Path(folder), plan.data.limit)
    _check_apart(plan, out)
    source = open_source(plan.data)
    if shard:
        part = part_of(shard)
        with _alone(_part_folder(out, part)) as folder:
            scan(source, plan.rules, folder, Part(part.index, part.count, plan.data.limit))
        return None
    with _alone(out):
        if merge:
            return checks.conclude(source.name, _part_folders(out, merge), plan.rules, out)
        return checks.validate(source, plan.rules, out, plan.data.limit)


def convert(plan: DataPlan, out: Path, shard: str, merge: int, report: Path | None) -> tuple[ConvertedData, DataReport]:
    """Validate and convert into `out`, which holds the validation's files too; goes on where a killed run ended.

    A part needs the `report` folder of the whole source's validation. Raises DataError where the rules refuse the
    data, before anything is converted.
    """
    from vqa_grpo.data.convert import merge as merge_parts
    from vqa_grpo.data.scan import INDEX
    from vqa_grpo.data.splits import shares
    from vqa_grpo.data.validate import HTML, REPORT, refusal
    from vqa_grpo.report.data import DataReport

    if (shard or merge) and report is None:
        raise ConfigurationError("--shard and --merge need --report, the folder of the whole source's validation")
    out = _here(out)
    _check_free(out)
    _check_apart(plan, out)
    part = part_of(shard) if shard else Part()
    source = open_source(plan.data)
    shares(plan.split_rule, [split for split, rows in source.rows.items() if rows])  # refused before the long work
    with (
        _alone(_part_folder(out, part) if shard else out) as folder,
        _validation(plan, source, out, report) as checked,
    ):
        found = DataReport.from_dict(json.loads((checked / REPORT).read_text(encoding="utf-8")))
        if refused := refusal(found, plan.rules):
            raise DataError(f"{refused}; all of it stands in {checked / HTML}")
        if merge:
            made = merge_parts(_part_folders(out, merge), out)
        else:
            made = plan.convert(source, checked / INDEX, folder, part)
    return made, found


def figures(made: ConvertedData, found: DataReport) -> dict[str, Any]:
    """What --json prints of a conversion: the report's figures, with the digest and splits of what came out."""
    facts = asdict(made)
    return found.figures() | {name: facts[name] for name in ("digest", "splits", "left_out", "held_out", "resized")}


def _here(out: Path) -> Path:
    """The folder's whole name: Arrow takes a name like run:1 for an address, and "." has no neighbours."""
    if str(out).startswith(("s3:", "minio:", "file:")):
        raise ConfigurationError(f"{out}: give a folder of this machine to write into, and upload that")
    if not str(out).isprintable():
        raise ConfigurationError(f"{str(out)!r}: give a folder whose name can be written in UTF-8")
    return Path(os.path.abspath(out))


def _check_free(out: Path) -> None:
    """Refuse a folder that holds anything but a conversion of ours, whole or broken off."""
    from vqa_grpo.data.convert import WORK
    from vqa_grpo.data.converted import CONVERSION

    ours = (out / WORK).is_dir() or (out / CONVERSION).is_file()
    if not ours and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigurationError(f"{out} exists already: name a new folder")


def _check_apart(plan: DataPlan, out: Path) -> None:
    """Refuse to write where a source would take it for its own, or where a source would be swept away."""
    from vqa_grpo.data.sources import BUILT_IN, hub

    places = {Path(os.path.realpath(place)) for place in (out, _beside(out, REPORT_FOLDER), _beside(out, "parts"))}
    for name in [part.source for part in plan.data.mix] or [plan.data.source]:
        folder = name if name.startswith((BUILT_IN, hub.PREFIX)) else normalise(name)
        if not os.path.isdir(folder):
            continue
        source = Path(os.path.realpath(folder))
        for place in places:
            swept = place.name != out.name and source.is_relative_to(place)
            if place.is_relative_to(source) or swept:
                raise ConfigurationError(f"{out} would be written into the source {name}: name a folder outside of it")


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """The folder, made where it is missing, with nobody else writing into it; if we made it, it does not stay empty.

    Raises ConfigurationError while another process is at it. The lock goes with the process, however that ends.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigurationError(f"another process writes into {folder}: wait for it, or name another") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield folder
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()
        os.close(handle)


@contextmanager
def _validation(plan: DataPlan, source: Source, out: Path, report: Path | None) -> Iterator[Path]:
    """The folder of the validation: the one given, or one made beside `out` that goes into it at the end.

    What it was made of stays in it, so that whoever asks again for the same conversion is given it.
    """
    from vqa_grpo.data.converted import CONVERSION
    from vqa_grpo.data.validate import REPORT, validate

    if report is not None:
        if not (report / REPORT).is_file():
            raise ConfigurationError(f"--report {report} holds no {REPORT}: validate the source with --out {report}")
        yield report
        return
    beside, kept = _beside(out, REPORT_FOLDER), out / REPORT_FOLDER
    made_of = json.dumps([plan.data_config, plan.checks, source.fingerprint])
    if (out / CONVERSION).is_file() and not beside.exists():
        if not _is_made_of(kept, made_of):
            raise ConfigurationError(f"{out} is a converted data set already: name a new folder")
        yield kept
        return
    if not _is_made_of(beside, made_of):
        shutil.rmtree(beside, ignore_errors=True)
        try:
            validate(source, plan.rules, beside, plan.data.limit)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        (beside / MADE_OF).write_text(made_of, encoding="utf-8")
    yield beside
    shutil.rmtree(kept, ignore_errors=True)
    shutil.move(beside, kept)  # out may be a disk of its own, to which nothing can be renamed


def _is_made_of(folder: Path, made_of: str) -> bool:
    return (folder / MADE_OF).is_file() and (folder / MADE_OF).read_text(encoding="utf-8") == made_of


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}.{ending}")


def _part_folder(out: Path, part: Part) -> Path:
    return _beside(out, "parts") / f"{part.index}-of-{part.count}"


def _part_folders(out: Path, count: int) -> list[Path]:
    return [_part_folder(out, Part(index, count)) for index in range(count)]
