"""Write a source as train, validation and test, in the guide's schema, with pictures' bytes untouched.

Splits are by picture, so that none stands in two of them: a picture's own digest, mixed with the split seed,
decides where it goes, whatever the order of rows. A picture that the source itself holds out, for validation or
for test, is never trained on, and one in its test split is in no other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from vqa_grpo.contract.failure import DataError
from vqa_grpo.contract.record import Record
from vqa_grpo.data.checks import problems
from vqa_grpo.data.sources import Source
from vqa_grpo.data.validate import PictureJudge, limited
from vqa_grpo.report.progress import Meter

SPLITS = ("train", "validation", "test")
BATCH_ROWS = 500


@dataclass
class ConvertedData:
    """What came out: rows per split, rows left out, and the digest of all pictures and texts in order."""

    digest: str = ""
    splits: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    moved_from_train: int = 0


@dataclass(frozen=True)
class SplitRule:
    seed: int
    validation: float
    test: float  # used only where the source has no test split of its own

    def split_of(self, picture: str) -> str:
        """Where a training picture goes, by its digest: `share` is uniform in [0, 1)."""
        mixed = hashlib.sha256(f"{self.seed}/{picture}".encode()).digest()
        share = int.from_bytes(mixed[:8], "big") / 2**64
        if share < self.validation:
            return "validation"
        return "test" if share < self.validation + self.test else "train"


def convert(source: Source, rule: SplitRule, out: Path, limit: int = 0) -> ConvertedData:
    """Write `out` as a DatasetDict folder that `datasets.load_from_disk` reads. Unusable rows are left out.

    Raises DataError when the training split ends up empty.
    """
    result = ConvertedData()
    judge = PictureJudge()
    held_out = {split: _pictures(source, split, limit) for split in ("validation", "test") if split in source.rows}
    # Test keeps all of its pictures, validation yields to test, and every other split to both.
    yields_to = {"test": set[str](), "validation": held_out.get("test", set())}
    to_both = set[str]().union(*held_out.values())
    if held_out.get("test"):
        rule = SplitRule(rule.seed, rule.validation, 0.0)
    with _Writers(out) as writers, Meter("convert", _total(source, limit)) as meter:
        for split in source.rows:
            for record in limited(source.records(split), limit):
                meter.advance()
                picture, picture_problem = judge.judge(record.image)
                if any(problem.fatal for problem in problems(record, picture_problem, False)):
                    result.left_out += 1
                    continue
                target = split if split in yields_to else rule.split_of(picture)
                if picture in yields_to.get(split, to_both):
                    result.moved_from_train += 1
                    continue
                writers[target].add(record, picture)
        result.splits = {split: writers[split].rows for split in SPLITS}
        result.digest = writers.digest()
    if not result.splits["train"]:
        raise DataError(f"no row of {source.name} is left for training: lower the fractions, or mend the data")
    (out / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}))
    (out / "conversion.json").write_text(json.dumps(asdict(result) | {"split_seed": rule.seed}, indent=1))
    return result


def _total(source: Source, limit: int) -> int:
    return sum(min(limit, rows) if limit else rows for rows in source.rows.values())


def _pictures(source: Source, split: str, limit: int) -> set[str]:
    return {hashlib.sha256(record.image).hexdigest() for record in limited(source.records(split), limit)}


class _Writers:
    """One Arrow stream for each split; closed together."""

    def __init__(self, out: Path) -> None:
        self._splits = {split: _SplitWriter(out / split) for split in SPLITS}

    def __getitem__(self, split: str) -> _SplitWriter:
        return self._splits[split]

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for writer in self._splits.values():
            writer.close()

    def digest(self) -> str:
        lines = [f"{split} {self._splits[split].hash.hexdigest()}" for split in SPLITS]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _SplitWriter:
    """Streams records into the folder layout of `Dataset.save_to_disk`, in batches, so that memory stays flat."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        folder.mkdir(parents=True)
        self._folder, self._features = folder, _features()
        self._schema = self._features.arrow_schema
        self._sink = (folder / "data-00000-of-00001.arrow").open("wb")
        self._stream = pa.ipc.new_stream(self._sink, self._schema)
        self._batch: list[dict[str, Any]] = []
        self.rows = 0
        self.hash = hashlib.sha256()

    def add(self, record: Record, picture: str) -> None:
        row = asdict(record) | {"image": {"bytes": record.image, "path": None}}
        self._batch.append(row)
        self.rows += 1
        texts = [record.id, picture, record.question, record.answer, record.source]
        lists = [record.reference_steps, record.choices, record.options]
        self.hash.update(json.dumps([texts, lists]).encode() + b"\n")
        if len(self._batch) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._batch:
            self._stream.write_batch(pa.RecordBatch.from_pylist(self._batch, schema=self._schema))
            self._batch = []

    def close(self) -> None:
        self._flush()
        self._stream.close()
        self._sink.close()
        info = {"features": self._features.to_dict(), "description": "", "citation": "", "homepage": "", "license": ""}
        state: dict[str, object] = {
            "_data_files": [{"filename": "data-00000-of-00001.arrow"}],
            "_fingerprint": self.hash.hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self._folder / "dataset_info.json").write_text(json.dumps(info))
        (self._folder / "state.json").write_text(json.dumps(state))


def _features() -> Any:
    from datasets import Features, Image, List, Value

    text, texts = Value("string"), List(Value("string"))
    return Features(
        image=Image(),
        question=text,
        answer=text,
        reference_steps=texts,
        choices=texts,
        options=texts,
        source=text,
        id=text,
    )


def read_records(folder: Path, split: str) -> Iterator[Record]:
    """The records of a converted split, pictures still encoded."""
    from vqa_grpo.data.sources import open_folder

    return open_folder(str(folder)).records(split)
