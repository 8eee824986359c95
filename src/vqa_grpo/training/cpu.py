"""Start processes that train on the CPU, so that any command can be rehearsed on a host without a GPU."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.training import world


def start(values: dict[str, Any]) -> None:
    """Build the process group that `values` (the settings by name) need on the CPU; nothing where there is a GPU.

    DeepSpeed: under use_cpu accelerate 1.15 does not start DeepSpeed's own process group, so that ZeRO-3 counts one
    process and refuses the batch sizes. Building the process state here, and telling both to use it, avoids that. Can
    go once the two ZeRO-3 tests on the CPU pass without it.

    DDP: transformers 5 hands `--ddp_timeout` on for GPUs alone, and gloo would wait its own half hour. Can go once it
    does so under use_cpu.
    """
    if not values["use_cpu"]:
        return
    check_deepspeed(values)
    timeout = timedelta(seconds=values["ddp_timeout"])
    if wants_deepspeed(values):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        from accelerate import PartialState

        PartialState(backend="gloo", timeout=timeout)
        values["accelerator_config"] = {"use_configured_state": True}
        values["use_cpu"] = False
    elif world.processes() > 1:
        import torch

        torch.distributed.init_process_group("gloo", timeout=timeout)


def wants_deepspeed(values: dict[str, Any]) -> bool:
    """By `--deepspeed`, or by `accelerate launch --use_deepspeed`, which says so in the environment."""
    return bool(values["deepspeed"]) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true", "yes")


def check_deepspeed(values: dict[str, Any]) -> None:
    """ConfigurationError where DeepSpeed cannot start on the CPU: with one process, it would be left out in silence."""
    if values["use_cpu"] and wants_deepspeed(values) and world.processes() < 2:
        raise ConfigurationError(
            "--deepspeed on the CPU needs two processes or more: use torchrun --nproc-per-node 2, or leave it out"
        )


def alone_among_several() -> bool:
    """Whether `accelerate launch` was asked for several processes and started one, as it does where it finds no GPU.

    It names a rendezvous then, and no world (accelerate 1.15, `simple_launcher`).
    """
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
