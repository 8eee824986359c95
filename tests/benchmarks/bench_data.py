"""What validation and conversion cost, beside the guide's way and beside the floor, on the same JPEGs.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_data.py [--rows 1000 10000] [--work FOLDER] [--convert-only]

Pictures of 1024x730 with gradients, lines and text at quality 90, about 260 KB each; files in a folder, read once
before anything is measured. A hundred are drawn; the others are those with a comment of their own, which changes
their digest and not the work. Every figure is of a fresh process held to two cores: CPU is its own and its
children's, the peak of its resident memory is counted from just before the work begins, imports done.

- guide: `Dataset.from_dict` with opened pictures converted to RGB, then `save_to_disk`, on a subset; its memory is
  why it is a subset.
- floor: a JPEG's entropy decode and nothing else (simplejpeg at an eighth of the size; Pillow's draft without it).
- validate: `validate`, which writes the index. With --convert-only the benchmark writes the index itself.
- convert: `convert` with that index.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

DRAWN = 100
GUIDE_ROWS = 30
SIZE = (1024, 730)


# --- pictures ---------------------------------------------------------------------------------------------------


def draw(number: int) -> bytes:
    import numpy as np
    from PIL import Image, ImageDraw

    noise = np.random.default_rng(number)
    across, down = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]))
    planes = [(across * a + down * b + c) % 1 * 255 for a, b, c in noise.random((3, 3)) * 2]
    pixels = np.stack(planes, -1) + noise.normal(0, 7.5, (SIZE[1], SIZE[0], 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen, chance = ImageDraw.Draw(image), random.Random(number)
    for line in range(40):
        ends = [(chance.randrange(SIZE[0]), chance.randrange(SIZE[1])) for _ in range(2)]
        pen.line(ends, fill=tuple(chance.randrange(256) for _ in range(3)), width=chance.randrange(1, 5))
        pen.text(ends[0], f"label {line} of {number}", fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    drawn = [draw(number) for number in range(min(DRAWN, count))]
    for number in range(count):
        data = drawn[number % len(drawn)]
        if number >= len(drawn):
            note = f"picture {number}".encode()
            data = data[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + data[2:]
        (folder / f"{number:06d}.jpg").write_bytes(data)


def source_of(folder: Path) -> Any:
    from vqa_grpo.contract.record import Record
    from vqa_grpo.data.source import Part, Row, Source, rows_of

    files = sorted(folder.iterdir())

    def read(split: str, part: Part) -> Iterator[tuple[int, Row]]:
        def rows() -> Iterator[Row]:
            for number, file in enumerate(files):
                answer, step = str(number % 7), "Count the lines of the colour asked for."
                yield Record(file.read_bytes(), f"How many? {number}", answer, (step,), source="bench", id=file.stem)

        return rows_of(rows(), part)

    return Source(str(folder), str(len(files)), {"train": len(files)}, read)


# --- what is measured, each in a process of its own -------------------------------------------------------------


def guide(pictures: Path, work: Path) -> Callable[[], Any]:
    import datasets
    from PIL import Image

    datasets.disable_progress_bars()
    files = sorted(pictures.iterdir())[:GUIDE_ROWS]

    def run() -> Any:
        count = len(files)
        columns: dict[str, list[Any]] = {
            "image": [Image.open(file).convert("RGB") for file in files],
            "question": ["How many?"] * count,
            "answer": ["1"] * count,
            "reference_steps": [["Count the lines."]] * count,
        }
        datasets.Dataset.from_dict(columns).save_to_disk(str(work / "guide"))
        return {
            "rows": count,
            "bytes_in": sum(file.stat().st_size for file in files),
            "bytes_out": size(work / "guide"),
        }

    return run


def floor(pictures: Path, work: Path) -> Callable[[], Any]:
    files = sorted(pictures.iterdir())[:1000]
    try:
        import simplejpeg

        def decode(data: bytes) -> None:
            simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, fastupsample=True, min_factor=8)

        name = "simplejpeg at 1/8"
    except ImportError:
        from PIL import Image

        def decode(data: bytes) -> None:
            with Image.open(io.BytesIO(data)) as image:
                image.draft("L", (SIZE[0] // 8, SIZE[1] // 8))
                image.load()

        name = "Pillow's draft at 1/8"

    def run() -> Any:
        for file in files:
            decode(file.read_bytes())
        return {"rows": len(files), "what": name}

    return run


def validate(pictures: Path, work: Path) -> Callable[[], Any]:
    from vqa_grpo.data.rules import Rules
    from vqa_grpo.data.validate import validate

    source = source_of(pictures)

    def run() -> Any:
        report = validate(source, Rules(), work / "validated")
        assert report.valid == sum(source.rows.values()), report.invalid_by_code
        return {"rows": report.valid}

    return run


def index(pictures: Path, work: Path) -> Callable[[], Any]:
    """What validation would have written, without its looking."""
    from vqa_grpo.data.index import IndexWriter, RowFacts, content_digest, picture_digest
    from vqa_grpo.data.source import WHOLE

    source = source_of(pictures)

    def run() -> Any:
        (work / "validated").mkdir()
        writer = IndexWriter(work / "validated" / "index.parquet")
        for number, record in source.read("train", WHOLE):
            picture = picture_digest(record.image)
            content = content_digest(picture, record)
            facts = ["train", number, record.id, picture, content, picture, picture[:8], len(record.image), *SIZE, 1]
            writer.add(RowFacts(*facts, record.source, "number", ""))
        writer.close()
        return {"rows": sum(source.rows.values())}

    return run


def convert(pictures: Path, work: Path) -> Callable[[], Any]:
    import pyarrow.parquet  # noqa: F401 - part of the start, not of the work

    from vqa_grpo.data.convert import convert
    from vqa_grpo.data.splits import SplitRule

    source = source_of(pictures)

    def run() -> Any:
        result = convert(source, work / "validated" / "index.parquet", SplitRule(0, 0.1, 0.1), work / "converted")
        return {
            "rows": sum(result.splits.values()),
            "bytes_in": size(pictures),
            "bytes_out": size(work / "converted"),
            "digest": result.digest,
        }

    return run


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Peak:
    """The largest resident memory of this process and its children together, above what it was at the start."""

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        self._start = self.top = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.facts = {"peak_mb": (self.top - self._start) / 1e6, "start_mb": self._start / 1e6}

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.top = max(self.top, self._now())

    def _now(self) -> int:
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total


def cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


MEASURED = {one.__name__: one for one in (guide, floor, validate, index, convert)}


def child(name: str, pictures: Path, work: Path) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    run = MEASURED[name](pictures, work)
    with Peak() as peak:
        began, used = time.perf_counter(), cpu()
        facts = run()
        facts |= {"seconds": time.perf_counter() - began, "cpu_ms": (cpu() - used) * 1000 / facts["rows"]}
    print(json.dumps({"name": name, **facts, **peak.facts}))


# --- all of it --------------------------------------------------------------------------------------------------


def measure(name: str, pictures: Path, work: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, str(pictures), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--work", type=Path, help="where pictures and results lie meanwhile; a fresh folder in it")
    parser.add_argument("--convert-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, pictures, work = arguments.child
        return child(name, Path(pictures), Path(work))

    steps = ["index" if arguments.convert_only else "validate", "convert"]
    lines: list[dict[str, Any]] = []
    for count in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
            pictures, work = Path(folder) / "pictures", Path(folder) / "work"
            make_pictures(pictures, count)
            work.mkdir()
            for file in pictures.iterdir():
                file.read_bytes()
            names = [*(("guide", "floor") if count == arguments.rows[0] else ()), *steps]
            for name in names:
                lines.append(measure(name, pictures, work) | {"of": count})
                shutil.rmtree(work / name, ignore_errors=True)
    say(lines, steps)
    if arguments.json:
        print(json.dumps(lines))


def say(lines: list[dict[str, Any]], steps: list[str]) -> None:
    print(f"{'':10}{'rows':>8}{'CPU ms/image':>14}{'images/s':>10}{'peak MB':>9}{'out/in':>8}")
    for line in lines:
        ratio = f"{line['bytes_out'] / line['bytes_in']:8.4f}" if "bytes_out" in line else ""
        rate = line["rows"] / line["seconds"]
        print(f"{line['name']:10}{line['rows']:8,}{line['cpu_ms']:14.2f}{rate:10,.0f}{line['peak_mb']:9.0f}{ratio}")
    by_name = {(line["name"], line["of"]): line for line in lines}
    counts = list(dict.fromkeys(line["of"] for line in lines))
    first = {name: by_name[name, counts[0]]["cpu_ms"] for name in ("guide", "floor", "convert")}
    print(f"convert takes 1/{first['guide'] / first['convert']:.0f} of the guide's CPU")
    for count in counts:
        both = [by_name[step, count] for step in steps]
        if steps[0] == "validate":
            rate = count / sum(line["seconds"] for line in both)
            above = sum(line["cpu_ms"] for line in both) / first["floor"]
            print(f"{count:,} rows: validate and convert {rate:,.0f} images/s; {above:.1f} times the floor's CPU")
    if len(counts) > 1:
        for step in steps:
            peaks = [
                f"{line['start_mb'] + line['peak_mb']:.0f} MB, of which the start {line['start_mb']:.0f}"
                for line in (by_name[step, count] for count in counts)
            ]
            print(f"{step}: peak memory {'; '.join(peaks)}")


if __name__ == "__main__":
    main()
