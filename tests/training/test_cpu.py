"""DeepSpeed on the CPU starts as DeepSpeed or not at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.training import cpu

PROBE = """
import os
os.environ |= {"WORLD_SIZE": "2", "RANK": str(RANK), "LOCAL_RANK": str(RANK)}
from vqa_grpo.training import cpu
values = {"use_cpu": True, "deepspeed": DEEPSPEED, "ddp_timeout": 77}
cpu.start(values)
import torch
group = torch.distributed.group.WORLD
print(values["use_cpu"], torch.distributed.get_backend(), group._get_backend(torch.device("cpu")).options._timeout)
torch.distributed.destroy_process_group()
"""


def settings(**more: Any) -> dict[str, Any]:
    return {"use_cpu": True, "deepspeed": None, "ddp_timeout": 1800, **more}


@pytest.mark.parametrize("deepspeed", [pytest.param("zero2", marks=pytest.mark.full), None])
def test_two_processes_meet_over_gloo_with_the_timeout_that_was_given(deepspeed: str | None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    source = str(Path(__file__).parents[2] / "src")
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": source}
    code = PROBE.replace("DEEPSPEED", repr(deepspeed))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code.replace("RANK)", f"{rank})")],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert said.splitlines()[-1] == f"{not deepspeed} gloo 0:01:17"


@pytest.mark.parametrize(("asked", "variable"), [("zero2", ""), (None, "true")])
def test_deepspeed_in_one_process_on_the_cpu_is_refused(
    asked: str | None, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", variable)
    with pytest.raises(ConfigurationError, match="two processes or more"):
        cpu.start(settings(deepspeed=asked))


def test_one_process_without_deepspeed_starts_nothing() -> None:
    import torch

    values = settings()
    cpu.start(values)
    assert values == settings()
    assert not torch.distributed.is_initialized()


def test_a_run_that_would_train_otherwise_than_under_deepspeed_is_refused() -> None:
    from accelerate import DistributedType

    from vqa_grpo.training.trainer import EngineRuns, check_deepspeed

    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))
    with pytest.raises(ConfigurationError, match="would train as MULTI_CPU"):
        check_deepspeed(trainer)
    trainer.accelerator.distributed_type = DistributedType.DEEPSPEED
    check_deepspeed(trainer)
    trainer.deepspeed = None
    nothing: Any = None
    with pytest.raises(ConfigurationError, match="engine does not hold the model"):
        EngineRuns(trainer).on_train_begin(nothing, nothing, nothing)
    trainer.deepspeed = object()
    EngineRuns(trainer).on_train_begin(nothing, nothing, nothing)
