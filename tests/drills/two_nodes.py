"""Two nodes in two network namespaces lose one, go on on fresh machines, and end equal to the run nothing happened to.

    python tests/drills/two_nodes.py --out DIR [--stages zero2 zero3]      (needs root and Linux: `ip netns`)

Each node has its own address, data, model, cache and output folder and the variables that a PyTorchJob sets; all
they share is an S3. After the loss both start again with empty folders and swapped numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "training"), str(ROOT / "tests" / "cluster")]

import tiny  # noqa: E402
import warm  # noqa: E402
from network import ADDRESSES, Network, two_nodes  # noqa: E402

from vqa_grpo.storage import embedded  # noqa: E402
from vqa_grpo.training import checkpoints  # noqa: E402

STEPS, SAVE_STEPS, LOST_AFTER = 48, 3, 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stages", nargs="+", default=["zero2", "zero3"])
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "model").is_dir():
        tiny.model(out / "model")
        tiny.dataset(out / "data", 12)
    with embedded.serve(out / "s3") as environment:
        os.environ.update(environment)
        port = int(environment["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
        with two_nodes(out, [port]) as network:
            bad = sum(drill(out, network, stage) for stage in asked.stages)
    return 1 if bad else 0


def drill(out: Path, network: Network, stage: str) -> int:
    place = out / stage
    shutil.rmtree(place, ignore_errors=True)
    root = f"s3://{embedded.BUCKET}/{place.name}-{time.time_ns()}"
    whole = [start(out, network, place / f"whole{node}", node, node, f"{root}/whole", stage) for node in (0, 1)]
    codes = [process.wait() for process in whole]
    print(f"{stage}: uninterrupted, exit codes {codes}", flush=True)
    uri = f"{root}/lost"
    nodes = [start(out, network, place / f"first{node}", node, node, uri, stage) for node in (0, 1)]
    while not any(step >= LOST_AFTER and len(parts) == 2 for step, parts in checkpoints.published_parts(uri).items()):
        if nodes[1].poll() is not None:
            raise SystemExit(f"node 1 ended by itself: see {place}")
        time.sleep(0.05)
    for pid in network.processes(1):
        os.kill(pid, signal.SIGKILL)
    codes = [process.wait() for process in nodes]
    print(f"{stage}: node 1 lost once step {LOST_AFTER} or a later one was whole, exit codes {codes}", flush=True)
    again = [start(out, network, place / f"second{node}", node, 1 - node, uri, stage) for node in (0, 1)]
    codes = [process.wait() for process in again]
    said = [line for line in (place / "second0.log").read_text().splitlines() if "going on from" in line]
    same = weights(place / "second0") == weights(place / "whole0")
    print(f"{stage}: on fresh machines, exit codes {codes}; {said}; final weights {'equal' if same else 'DIFFER'}")
    return int(not same or any(codes) or not said)


def start(
    out: Path, network: Network, home: Path, node: int, place: int, uri: str, stage: str
) -> subprocess.Popen[bytes]:
    """One node under torchrun, as a PyTorchJob's pod runs it, with everything below a folder of its own. `node` is its
    number in the job, `place` the namespace that it runs in."""
    home.mkdir(parents=True)
    shutil.copytree(out / "model", home / "model")
    shutil.copytree(out / "data", home / "data")
    device = network.device(place)
    # The master is whoever is number 0 now.
    master = ADDRESSES[place if node == 0 else 1 - place]
    job = {"MASTER_ADDR": master, "MASTER_PORT": "29400", "WORLD_SIZE": "2", "RANK": str(node)}
    job |= {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": str(node), "PET_MASTER_ADDR": master}
    job |= {"PET_MASTER_PORT": "29400", "PET_RDZV_BACKEND": "static", "GLOO_SOCKET_IFNAME": device}
    job |= {"TP_SOCKET_IFNAME": device, "VQA_GRPO_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    job |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path[:2])}
    more = ["--deepspeed", stage, "--max_steps", str(STEPS), "--save_steps", str(SAVE_STEPS), "--save_total_limit", "2"]
    more += ["--resume_from_checkpoint", "true", "--checkpoint_uri", uri]
    argv = [word for word in warm.options(home / "model", home / "data", home / "run", *more) if word != "--use_cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "-m", "vqa_grpo.training"]
    with Path(f"{home}.log").open("ab") as log:
        return subprocess.Popen(
            [*network.inside(place), *torchrun, *argv], env=os.environ | job, stdout=log, stderr=log
        )


def weights(home: Path) -> str:
    return hashlib.sha256((home / "run" / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
