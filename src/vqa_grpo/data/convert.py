"""Write a source as train, validation and test in the guide's schema, with pictures' bytes untouched.

Validation comes first: its index says which rows are usable and where each goes, so that conversion reads the
source once, decodes nothing, and knows every shard before it opens one. Each row is held against the index by
digest; a source that changed since is refused. A conversion that was killed goes on in the same folder: finished
shards stay, everything else is written again. `conversion.json` comes last; without it nothing is converted.

A data set too large for one machine is converted in parts, each with the same index, and merged. The merged folder
has the digest of an unsharded conversion; its rows are those in another order, since a part's rows lie together.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vqa_grpo.contract.failure import ConfigurationError, DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.arrow_shards import (
    SHARD_BYTES,
    Shard,
    ShardWriter,
    Written,
    memory_given_back,
    part_of,
    plan_shards,
    put_in_place,
    write_split_files,
    write_text,
    written_schema,
)
from vqa_grpo.data.converted import CONVERSION, ROWS, ConvertedData, read_conversion
from vqa_grpo.data.index import content_digest, digest_column, number_column, picture_digest, text_column
from vqa_grpo.data.resize import Resize, resize_picture
from vqa_grpo.data.source import WHOLE, Part, Source
from vqa_grpo.data.splits import SPLITS, TRAIN, SplitPlan, SplitRule, plan_splits
from vqa_grpo.report.progress import Meter

PLAN = "plan.json"
WORK = ".convert"  # inside the result until it is whole: the plan's name, and the receipts of finished shards
LAYOUT = 1  # another number for another way to write a shard, so that half a conversion is not gone on with
LINES = 10_000  # of rows.parquet, read and written at a time
T = TypeVar("T")


@memory_given_back()
def convert(
    source: Source,
    index: Path,
    rule: SplitRule,
    out: Path,
    *,
    part: Part = WHOLE,
    shard_bytes: int = SHARD_BYTES,
    resize: Resize | None = None,
) -> ConvertedData:
    """Write `out` as a DatasetDict folder that `datasets.load_from_disk` reads; go on where a killed run ended.

    `index` is that of the whole source, also for a part, or of the first `part.limit` rows of each split. Unusable rows
    are left out. Raises DataError when no row is left to train on and when the source is not what the index says,
    ConfigurationError when `out` holds anything but a conversion.
    """
    plan = _name(_sha256_of(index), asdict(rule), part.limit, resize and asdict(resize))
    where = {"index": part.index, "count": part.count, "limit": part.limit}
    name = _name(plan, where, shard_bytes, LAYOUT)
    whole = plan_splits(index, rule, part.limit)
    if not (whole.target == TRAIN).any():
        raise DataError(f"no row of {source.name} is left for training: lower the fractions, or mend the data")
    if (done := _go_on(out, name)) is not None:
        return done
    job = _Job(source, index, whole.only(part), part, resize, out, shard_bytes)
    del whole
    job.write()
    facts = {
        "left_out": job.plan.unusable(),
        "held_out": job.plan.held_out(),
        "resized": int(job.resized.sum()),
        "rule": asdict(rule),
        "resize": resize and asdict(resize),
        "part": where,
        "plan": plan,
        "job": name,
    }
    rows = (batch for shard in job.shards for batch in _lines(job.receipt(shard), shard.split))
    return _finish(out, job.shards, rows, facts)


class _Job:
    """A conversion under way: what each row of the part becomes, and the shards that are open."""

    def __init__(
        self,
        source: Source,
        index: Path,
        plan: SplitPlan,
        part: Part,
        resize: Resize | None,
        out: Path,
        shard_bytes: int,
    ) -> None:
        self.source, self.plan, self.part, self.resize, self.out = source, plan, part, resize, out
        self._content = digest_column(index, "content")[plan.position]
        self._orientation = number_column(index, "orientation", np.int8)[plan.position]
        self._width, self._height = (
            number_column(index, side, np.int32)[plan.position] for side in ("width", "height")
        )
        self.resized = np.zeros(len(plan.target), bool)
        if resize:
            over = resize.concerns(self._width.astype(np.int64), self._height.astype(np.int64))
            self.resized = over & (plan.target >= TRAIN)
        sizes = number_column(index, "bytes")[plan.position]
        self.shards: list[Shard] = []
        self._shard = np.full(len(plan.target), -1, np.int32)  # into shards
        for code, split in enumerate(SPLITS):
            rows = plan.target == code
            place, shards = plan_shards(split, sizes[rows], shard_bytes)
            self._shard[rows] = place + len(self.shards)
            self.shards += shards

    def receipt(self, shard: Shard) -> Path:
        return self.out / WORK / f"{shard.split}-{shard.place:05d}.parquet"

    def write(self) -> None:
        """Bring every shard to its end that has none yet."""
        missing = [not self._is_finished(shard) for shard in self.shards]
        for shard, wanted in zip(self.shards, missing, strict=True):
            if wanted and not shard.rows:
                ShardWriter(self.out, shard, self.receipt(shard)).finish()
        pending = (self._shard >= 0) & np.array(missing)[self._shard]
        writers: dict[str, tuple[Shard, ShardWriter]] = {}
        with Meter("convert", len(pending)) as meter, ExitStack() as stack:
            for row, record, facts in _in_threads(self._rows(pending, meter), self._prepare if self.resize else None):
                shard = self.shards[self._shard[row]]
                if shard.split not in writers:
                    writers[shard.split] = shard, ShardWriter(self.out, shard, self.receipt(shard))
                    stack.callback(writers[shard.split][1].abandon)
                writer = writers[shard.split][1]
                writer.add(record, facts)
                if not writer.left:
                    writer.finish()
                    del writers[shard.split]

    def _is_finished(self, shard: Shard) -> bool:
        return self.receipt(shard).exists() and (self.out / shard.name).exists()

    def _rows(self, pending: np.ndarray, meter: Meter) -> Iterator[tuple[int, Record, Written]]:
        """The rows of unfinished shards, each found to be what the index says."""
        plan = self.plan
        for code, split in enumerate(plan.names):
            row, end = np.searchsorted(plan.split, [code, code + 1]).tolist()
            if not pending[row:end].any():
                meter.advance(end - row)
                continue
            for number, found in self.source.read(split, self.part):
                if row == end or plan.number[row] != number:
                    raise self._changed(split, number)
                if pending[row]:
                    if not isinstance(found, Record):
                        raise self._changed(split, number)
                    yield row, found, self._checked(row, split, found)
                row += 1
                meter.advance()
            if row < end:
                raise self._changed(split, int(plan.number[row]))

    def _checked(self, row: int, split: str, record: Record) -> Written:
        number, target = int(self.plan.number[row]), SPLITS[self.plan.target[row]]
        picture = picture_digest(record.image)
        content = content_digest(picture, record)
        if content != self._content[row].tobytes():
            raise self._changed(split, number)
        shown = int(self._orientation[row]), int(self._width[row]), int(self._height[row])
        return Written(target, record.id, split, number, *shown, picture, content)

    def _changed(self, split: str, number: int) -> DataError:
        return DataError(
            f"row {number} of {split} in {self.source.name} is not what was validated: the source changed since, "
            "or rows were added or taken away; validate it again"
        )

    def _prepare(self, item: tuple[int, Record, Written]) -> tuple[int, Record, Written]:
        """The row with its picture scaled down, where it has to be."""
        row, record, facts = item
        if not self.resized[row] or self.resize is None:
            return item
        width, height = self.resize.size(facts.width, facts.height)
        try:
            image = resize_picture(record.image, (width, height))
        except DataError as error:
            raise DataError(f"row {facts.number} of {facts.source_split} in {self.source.name}: {error}") from error
        picture = picture_digest(image)
        content = content_digest(picture, record)
        facts = replace(facts, orientation=1, width=width, height=height, picture=picture, content=content)
        return row, replace(record, image=image), facts


def _in_threads(items: Iterable[T], work: Any) -> Iterator[T]:
    """`work` done on each item, in order, a few items ahead on every core; None hands the items through."""
    if work is None:
        yield from items
        return
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Any] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


# --- parts ------------------------------------------------------------------------------------------------------


@memory_given_back()
def merge(parts: Sequence[Path], out: Path) -> ConvertedData:
    """Make one data set of all parts of a conversion, in any order, by linking their shards: nothing is rewritten.

    Raises DataError when parts are missing, unfinished, or of different conversions.
    """
    found = _all_parts(parts)
    results = [result for _, result in found]
    name = _name("merge", results[0].plan, [result.digest for result in results], LAYOUT)
    if (done := _go_on(out, name)) is not None:
        return done
    shards: list[Shard] = []
    for split in SPLITS:
        files = [(folder, s) for folder, result in found for s in result.shards if _split_of(s["name"]) == split]
        files = [(folder, s) for folder, s in files if s["rows"]] or files[:1]
        for place, (folder, facts) in enumerate(files):
            shards.append(Shard(split, place, len(files), facts["rows"]))
            _link(folder / facts["name"], out / shards[-1].name)
    facts = {
        "left_out": _sum(result.left_out for result in results),
        "held_out": _sum(result.held_out for result in results),
        "resized": sum(result.resized for result in results),
        "rule": results[0].rule,
        "resize": results[0].resize,
        "part": {"index": 0, "count": 1, "limit": results[0].part["limit"]},
        "plan": results[0].plan,
        "job": name,
    }
    rows = (batch for split in SPLITS for folder, _ in found for batch in _lines(folder / ROWS, split))
    return _finish(out, shards, rows, facts)


def _all_parts(folders: Sequence[Path]) -> list[tuple[Path, ConvertedData]]:
    """The parts in their order, found to be all parts of one conversion."""
    found = []
    for folder in folders:
        result = read_conversion(folder)
        if result is None:
            raise DataError(f"{folder} is not a finished part of a conversion: convert that part again")
        found.append((folder, result))
    found.sort(key=lambda one: one[1].part["index"])
    if not found:
        raise DataError("there are no parts to merge: convert with --shard 0/n, 1/n, … first")
    if len({(result.plan, result.part["count"]) for _, result in found}) > 1:
        raise DataError("these parts are of different conversions: convert all of them with one index and one rule")
    indices, count = [result.part["index"] for _, result in found], found[0][1].part["count"]
    if indices != list(range(count)):
        raise DataError(f"of the {count} parts of this conversion, these are {indices}: give each of them once")
    return found


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _split_of(name: str) -> str:
    return name.partition("/")[0]


def _link(existing: Path, path: Path) -> None:
    """The same file under another name; a copy where the two are on different disks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        os.link(existing, path)
    except OSError:
        shutil.copyfile(existing, part_of(path))
        put_in_place(path)


# --- a folder on its way to being whole -------------------------------------------------------------------------


def _go_on(out: Path, job: str) -> ConvertedData | None:
    """Make `out` ready for a job, or give its result where it is done.

    What an unfinished job of another name left is removed. Anything else that lies there is refused, not touched.
    """
    if (done := read_conversion(out)) is not None:
        if done.job != job:
            raise ConfigurationError(f"{out} holds a conversion of other data or settings: name a new folder")
        shutil.rmtree(out / WORK, ignore_errors=True)
        return done
    work = out / WORK
    if not work.is_dir() and out.exists() and any(out.iterdir()):
        raise ConfigurationError(f"{out} exists and is not a conversion that was broken off: name a new folder")
    if _job_in(work) != job:
        for path in (*(path for path in out.glob("*") if path != work), work):  # our mark goes last
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        work.mkdir(parents=True)
        write_text(work / PLAN, json.dumps({"job": job}))
    return None


def _job_in(work: Path) -> str:
    try:
        return str(json.loads((work / PLAN).read_bytes())["job"])
    except FileNotFoundError:
        return ""


def _finish(out: Path, shards: Sequence[Shard], rows: Iterable[Any], facts: dict[str, Any]) -> ConvertedData:
    """Write what stands beside the shards, conversion.json last. `rows` are batches of `Written`, in their order."""
    import pyarrow.parquet as pq

    path = out / ROWS
    with pq.ParquetWriter(part_of(path), written_schema()) as writer:
        for batch in rows:
            writer.write_batch(batch)
    put_in_place(path)
    digest, fingerprints = _digests(path)
    for split in SPLITS:
        names = [shard.name for shard in shards if shard.split == split]
        write_split_files(out / split, names, fingerprints[split])
    write_text(out / "dataset_dict.json", json.dumps({"splits": list(SPLITS)}))
    orientations = np.unique(number_column(path, "orientation", np.int8), return_counts=True)
    result = ConvertedData(
        digest=digest,
        splits={split: sum(shard.rows for shard in shards if shard.split == split) for split in SPLITS},
        orientations={str(value): int(count) for value, count in zip(*orientations, strict=True)},
        shards=[{"name": s.name, "rows": s.rows, "bytes": (out / s.name).stat().st_size} for s in shards],
        **facts,
    )
    write_text(out / CONVERSION, json.dumps(asdict(result), indent=1))
    shutil.rmtree(out / WORK)
    return result


def _digests(path: Path) -> tuple[str, dict[str, str]]:
    """The data set's digest, over the rows of each split in the order of the source; and for each split a
    fingerprint, over its rows as they lie in the folder: datasets keeps what it computed under that name."""
    content, number = digest_column(path, "content"), number_column(path, "number")
    split, splits = text_column(path, "split")
    found, _ = text_column(path, "source_split")
    order = np.lexsort((number, found))  # by name of the source's split: any order does that shards cannot change
    lines, fingerprints = [], {}
    for name in SPLITS:
        code = splits.index(name) if name in splits else -1
        whole = hashlib.sha256(content[order[split[order] == code]].tobytes())
        lines.append(f"{name} {whole.hexdigest()}")
        fingerprints[name] = hashlib.sha256(content[split == code].tobytes()).hexdigest()[:16]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest(), fingerprints


def _lines(path: Path, split: str) -> Iterator[Any]:
    """The lines of a split, batch by batch."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(LINES, use_threads=False):
            chosen = batch.filter(pc.equal(batch["split"], split))
            if len(chosen):
                yield chosen


def _name(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
