"""The processes that train together: how many, as their launcher says in the environment, and how they wait."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

_LONGEST = timedelta(days=1)


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)


def processes_of_a_node() -> int:
    """torchrun and accelerate say it by one name, DeepSpeed's launcher by another."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or processes())


def in_group() -> bool:
    torch = sys.modules.get("torch")  # where nobody imported it there is no group
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def wait_for_first_rank() -> None:
    """The other ranks wait here until the first one comes, once in a run; a launcher ends them if it fails.

    Not in a collective: its timeout is made for training steps, and publishing a large model may take longer.
    """
    if not in_group():
        return
    import torch

    store = torch.distributed.distributed_c10d._get_default_store()
    if torch.distributed.get_rank() == 0:
        store.set("vqa_grpo/first_rank_is_done", "")
    else:
        store.wait(["vqa_grpo/first_rank_is_done"], _LONGEST)
    torch.distributed.barrier()  # the first may own the store, and must not leave with it too soon
