"""Processes that train together wait for each other in the right way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vqa_grpo.training import world

SLOW_FIRST = """
import sys, time
from datetime import timedelta
import torch
from vqa_grpo.training import world
torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=20))
torch.distributed.barrier()
if torch.distributed.get_rank() == 0:
    time.sleep(30)  # an upload
world.wait_for_first_rank()
torch.distributed.destroy_process_group()
"""


@pytest.mark.full
def test_others_wait_for_the_first_rank_longer_than_a_collective_would() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    common["PYTHONPATH"] = str(Path(__file__).parents[2] / "src")
    started = [
        subprocess.Popen([sys.executable, "-c", SLOW_FIRST], env=common | {"RANK": str(rank)}) for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]


def test_a_process_alone_waits_for_nobody() -> None:
    world.wait_for_first_rank()


def test_deepspeeds_launcher_has_its_own_word_for_the_processes_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert world.processes_of_a_node() == 8
    monkeypatch.setenv("LOCAL_SIZE", "4")
    assert world.processes_of_a_node() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert world.processes_of_a_node() == 2
