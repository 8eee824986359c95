"""Reading holds a few rows at a time, however large the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WRITE = """
import json, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
folder, form, batches = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
texts = pa.list_(pa.string())
schema = pa.schema({"image": pa.binary(), "question": pa.string(), "answer": pa.string(), "reference_steps": texts})
if form == "parquet":
    writer = pq.ParquetWriter(folder / "x.parquet", schema, compression="none")
else:
    writer = pa.ipc.new_stream(str(folder / "x.arrow"), schema)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "x.arrow"}]}))
for batch in range(batches):
    rows = [[bytes([batch, n]) * 50_000 for n in range(100)], ["what?"] * 100, ["red"] * 100, [["s"]] * 100]
    writer.write(pa.table(rows, schema=schema))
writer.close()
"""
READ = """
import resource, sys
from vqa_grpo.data.sources import open_place
source = open_place(sys.argv[1])
rows = source.records("train")
next(rows)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = 1 + sum(1 for _ in rows)
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def run(code: str, *arguments: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_three_hundred_megabytes_are_read_within_a_fraction_of_them(tmp_path: Path, form: str) -> None:
    run(WRITE, str(tmp_path), form, "30")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 299_000_000
    rows, kilobytes = run(READ, str(tmp_path))
    assert rows == 3000
    assert kilobytes < 60_000  # a batch of ten megabytes, its rows as Python objects, and what malloc keeps
