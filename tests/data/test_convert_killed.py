"""A conversion killed at any instant goes on to the same files, and half of one never looks like a whole one."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).parent / "converting.py"
STARTED, ENDED = "out/train", "out/conversion.json"


class Whole(NamedTuple):
    digest: str
    files: dict[str, bytes]
    index: Path
    seconds: float  # from the start of writing to the end


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> float:
    while not path.exists() and process.poll() is None:
        time.sleep(0.0005)
    return time.monotonic()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder)
    began = wait_for(folder / STARTED, process)
    seconds = wait_for(folder / ENDED, process) - began
    digest = process.communicate()[0]
    assert process.returncode == 0
    return Whole(digest, files(folder / "out"), folder / "index.parquet", seconds)


def killed(folder: Path, whole: Whole, share: float) -> Path:
    """A folder whose conversion was killed when about this share of it was written; never one that was finished."""
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(whole.index, folder)
        process = start(folder)
        wait_for(folder / STARTED, process)
        time.sleep(share * whole.seconds)
        process.kill()
        process.communicate()
        if not (folder / ENDED).exists():
            return folder / "out"
        share *= 0.7  # the machine was quicker than the first time


def finished(out: Path) -> Iterator[str]:
    """The shards that have a receipt, by name."""
    for receipt in (out / ".convert").glob("*.parquet"):
        split, _, place = receipt.stem.rpartition("-")
        (shard,) = (out / split).glob(f"data-{place}-of-?????.arrow")
        yield str(shard.relative_to(out))


def check(folder: Path, whole: Whole, instants: int, seed: int) -> None:
    chance, seen = random.Random(seed), []
    for number in range(instants):
        out = killed(folder / str(number), whole, chance.random())
        done = list(finished(out))
        seen.append(len(done))
        print(f"killed with {len(done)} shards finished")
        assert all((out / name).read_bytes() == whole.files[name] for name in done)
        assert {str(path.relative_to(out)) for path in out.rglob("*.arrow")} <= set(whole.files)
        shards = [name for name in whole.files if name.endswith(".arrow")]
        assert len(done) == len(shards) or not (out / "dataset_dict.json").exists()
        times = {name: (out / name).stat().st_mtime_ns for name in done}
        process = start(folder / str(number))
        assert process.communicate()[0] == whole.digest
        assert process.returncode == 0
        assert {name: (out / name).stat().st_mtime_ns for name in done} == times
        assert files(out) == whole.files
        shutil.rmtree(folder / str(number))
    assert len(set(seen)) > 2, f"the kills landed at the same few shards: {seen}"


def test_a_conversion_killed_anywhere_goes_on_to_the_same_files(whole: Whole, tmp_path: Path) -> None:
    check(tmp_path, whole, 8, seed=8)


@pytest.mark.full
def test_a_conversion_killed_at_fifty_instants_goes_on_to_the_same_files(whole: Whole, tmp_path: Path) -> None:
    check(tmp_path, whole, 50, seed=50)


def test_a_conversion_killed_twice_still_ends_the_same(whole: Whole, tmp_path: Path) -> None:
    out = killed(tmp_path / "x", whole, 0.3)
    before = set(finished(out))
    process = start(tmp_path / "x")
    time.sleep(0.1)  # whatever it is doing then
    process.kill()
    process.communicate()
    assert before <= set(finished(out)) or (tmp_path / "x" / ENDED).exists()
    process = start(tmp_path / "x")
    assert process.communicate()[0] == whole.digest
    assert files(out) == whole.files
