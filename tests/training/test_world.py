"""Processes that train together wait for each other in the right way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vqa_grpo.training import world

BEGIN = """
import os, pathlib, sys, time
from datetime import timedelta
import torch
from vqa_grpo.training import world
rank, folder = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
def short_collectives():
    torch.distributed.barrier()
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
"""

INIT = """
torch.distributed.init_process_group("gloo")
short_collectives()
"""

SLOW_RANK = (
    INIT
    + """
world._LINE_SECONDS = 1
for slow in (0, 1):
    if rank == slow:
        time.sleep(5)  # a transfer
    world.meet("uploading")
torch.distributed.destroy_process_group()
"""
)

SLOW_FETCH = (
    INIT
    + """
world._LINE_SECONDS = 0.5
def work():
    (folder / f"begun-{rank}").touch()
    if rank == 0:
        time.sleep(2)  # a download
        (folder / "fetched").touch()
    return rank, (folder / "fetched").exists(), (folder / "begun-2").exists()
result = world.one_of_each_node_first(work, "fetching")
assert (folder / "fetched").exists()
torch.distributed.barrier()
(folder / f"result-{rank}").write_text(repr(result))
torch.distributed.destroy_process_group()
"""
)


TRAIN = """
from vqa_grpo.storage import publish
from vqa_grpo.training import __main__ as program
from vqa_grpo.training.arguments import parse

class Enough(Exception):
    pass

def fetch(uri, cache, *_):
    if not (folder / "there").exists():
        (folder / f"fetched-by-{rank}").touch()
        time.sleep(5)
        (folder / "there").touch()
    return folder

def choose(locations, output_dir, layout, gather=program.checkpoints.gather):
    if rank == 1:
        time.sleep(5)
    assert gather(rank) == [0, 1]

def enough(*_):
    torch.distributed.barrier()
    raise Enough

publish.fetch, program.checkpoints.choose, program.open_split = fetch, choose, enough
words = "--model_name_or_path m --dataset_name s3://b/d --resume_from_checkpoint true --output_dir"
arguments = parse([*words.split(), str(folder / f"out-{rank}")])
short_collectives()
try:
    program.train(arguments)
except Enough:
    torch.distributed.destroy_process_group()
"""


def run_ranks(code: str, count: int, folder: Path, local: int) -> list[str]:
    """What each rank says on stderr; all of them must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    common |= {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "LOCAL_WORLD_SIZE": str(local)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN + code, str(folder)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank % local)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * count, said
    return said


@pytest.mark.full
def test_ranks_wait_for_one_that_moves_files_longer_than_a_collective_would(tmp_path: Path) -> None:
    first, other = run_ranks(SLOW_RANK, 2, tmp_path, local=2)
    assert "1 of 2 processes are still uploading" in first
    assert "uploading" not in other


def test_one_process_of_a_node_fetches_and_no_node_goes_on_without_the_others(tmp_path: Path) -> None:
    first, _, other = run_ranks(SLOW_FETCH, 3, tmp_path, local=2)
    assert "fetching for 1 s" in first
    assert "fetching for" not in other
    results = [(tmp_path / f"result-{rank}").read_text() for rank in range(3)]
    assert results[0] == "(0, True, True)"  # the second node's first process did not wait for it
    assert results[1] == "(1, True, True)"
    assert results[2] == "(2, False, True)"


@pytest.mark.full
def test_no_collective_of_a_training_waits_for_its_checkpoint_or_its_data_set(tmp_path: Path) -> None:
    run_ranks(TRAIN, 2, tmp_path, local=2)
    assert [path.name for path in tmp_path.glob("fetched-by-*")] == ["fetched-by-0"]


def test_a_process_alone_waits_for_nobody() -> None:
    world.meet("away")
    assert world.one_of_each_node_first(lambda: "here", "away") == "here"


def test_deepspeeds_launcher_has_its_own_word_for_the_processes_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert world.processes_of_a_node() == 8
    monkeypatch.setenv("LOCAL_SIZE", "4")
    assert world.processes_of_a_node() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert world.processes_of_a_node() == 2
