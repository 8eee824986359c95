"""What a job of the tests runs: all ranks meet and add up their numbers, then say where they are."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch

from vqa_grpo.storage.store import open_store


def main() -> None:
    Path("/tmp/mine").touch(exist_ok=False)  # noqa: S108 - the container's own
    torch.distributed.init_process_group("gloo")
    total = torch.tensor(2.0 ** torch.distributed.get_rank())
    torch.distributed.all_reduce(total)
    root = os.environ["ROOT_URI"]
    open_store(root).write(f"{socket.gethostname()}.txt", f"{total.item():g} {os.environ['HOME']}".encode())
    torch.distributed.barrier()  # once the first pod has succeeded, the operator ends the others
    print(f"rank {torch.distributed.get_rank()}: the sum is {total.item():g}", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
