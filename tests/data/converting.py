"""A conversion in a process of its own, for tests that kill it: `python converting.py FOLDER` writes FOLDER/out."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from indexing import index_of, source_of

from vqa_grpo.contract.record import Record
from vqa_grpo.data.convert import convert
from vqa_grpo.data.splits import SplitRule


def rows() -> list[Record]:
    """Six hundred pictures, the same in every process; nothing here decodes, so noise will do."""
    noise = random.Random(4)
    pictures = [noise.randbytes(noise.randrange(1_000, 60_000)) for _ in range(600)]
    return [Record(data, f"{number}?", "red", id=str(number)) for number, data in enumerate(pictures)]


if __name__ == "__main__":
    folder, train = Path(sys.argv[1]), rows()
    index = folder / "index.parquet"
    if not index.exists():
        index_of(index, train=train)
    result = convert(source_of(train=train), index, SplitRule(0, 0.1, 0.1), folder / "out", shard_bytes=300_000)
    print(result.digest)
