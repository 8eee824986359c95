"""The processes that train together: how many, as their launcher says in the environment, and how they wait."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from vqa_grpo.contract.failure import RetryError

_LONGEST_SECONDS = 24 * 3600.0
_LINE_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_meetings = itertools.count()
T = TypeVar("T")


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)


def processes_of_a_node() -> int:
    """torchrun and accelerate say it by one name, DeepSpeed's launcher by another."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or processes())


def in_group() -> bool:
    torch = sys.modules.get("torch")  # where nobody imported it there is no group
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def meet(what: str) -> None:
    """Every rank waits here for all others, who may be `what` for hours; a launcher ends them if one fails.

    Not in a collective: its timeout is made for training steps, and moving a large model or data set may take longer.
    The first rank says every minute that it waits, lest the job count as stalled. Raises RetryError after a day.
    """
    if not in_group():
        return
    import torch

    store = torch.distributed.distributed_c10d._get_default_store()
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    key = f"vqa_grpo/meeting-{next(_meetings)}"
    here = store.add(key, 1)
    began = said = time.monotonic()
    pause = 0.01
    while here < count:
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_SECONDS)
        here = store.add(key, 0)
        now = time.monotonic()
        if now - began > _LONGEST_SECONDS:
            raise RetryError(f"{count - here} of {count} processes were {what} for a day: see in their logs why")
        if rank == 0 and now - said >= _LINE_SECONDS:
            said = now
            print(f"{count - here} of {count} processes are still {what}", file=sys.stderr, flush=True)
    torch.distributed.barrier()  # the first may own the store, and must not leave with it too soon


@contextmanager
def said_aloud(what: str) -> Iterator[None]:
    """The first rank says every minute that it is `what`: a job whose log stands still for long counts as stalled."""
    ended, began = threading.Event(), time.monotonic()

    def say() -> None:
        while not ended.wait(_LINE_SECONDS):
            print(f"{what} for {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    if int(os.environ.get("RANK") or 0) == 0:
        threading.Thread(target=say, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def one_of_each_node_first(work: Callable[[], T], what: str) -> T:
    """What `work` gives: done by the first process of each node, and then, once all of these are done, by the others.

    For what is fetched to a node's disk: who comes later finds it there. No rank goes on before every node has it,
    so that none of them waits in a collective for a slower node's download.
    """
    first = not in_group() or int(os.environ.get("RANK") or 0) % processes_of_a_node() == 0
    if first:
        with said_aloud(what):
            result = work()
    meet(what)
    return result if first else work()
