"""Two nodes in two network namespaces lose one, go on on fresh machines, and end equal to the run nothing happened to.

    python tests/drills/two_nodes.py --out DIR [--stages zero2 zero3]      (needs root and Linux: `ip netns`)

Each node has its own address, data, model, cache and output folder and the variables that a PyTorchJob sets; all
they share is an S3. After the loss both start again with empty folders and swapped numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "training")]

import tiny  # noqa: E402
import warm  # noqa: E402

from vqa_grpo.storage import embedded  # noqa: E402
from vqa_grpo.training import checkpoints  # noqa: E402

SPACES, ADDRESSES = ("vqa-node0", "vqa-node1"), ("10.77.0.1", "10.77.0.2")
STEPS, SAVE_STEPS, LOST_AFTER = 48, 3, 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stages", nargs="+", default=["zero2", "zero3"])
    parser.add_argument("--forward", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.forward:
        asyncio.run(forward(*asked.forward))
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "model").is_dir():
        tiny.model(out / "model")
        tiny.dataset(out / "data", 12)
    bad = 0
    with embedded.serve(out / "s3") as environment:
        os.environ.update(environment)
        port, tunnel = environment["AWS_ENDPOINT_URL"].rsplit(":", 1)[1], out / "s3.sock"
        helpers = [start_forward(f"unix:{tunnel}", f"tcp:{port}")]
        try:
            make_network()
            helpers += [start_forward(f"tcp:{port}", f"unix:{tunnel}", space) for space in SPACES]
            bad = sum(drill(out, stage) for stage in asked.stages)
        finally:
            for helper in helpers:
                helper.kill()
            for space in SPACES:
                subprocess.run(["ip", "netns", "del", space])
    return 1 if bad else 0


def drill(out: Path, stage: str) -> int:
    place = out / stage
    shutil.rmtree(place, ignore_errors=True)
    root = f"s3://{embedded.BUCKET}/{place.name}-{time.time_ns()}"
    whole = [start(out, place / f"whole{node}", node, SPACES[node], f"{root}/whole", stage) for node in (0, 1)]
    codes = [process.wait() for process in whole]
    print(f"{stage}: uninterrupted, exit codes {codes}", flush=True)
    uri = f"{root}/lost"
    nodes = [start(out, place / f"first{node}", node, SPACES[node], uri, stage) for node in (0, 1)]
    while not any(step >= LOST_AFTER and len(parts) == 2 for step, parts in checkpoints.published_parts(uri).items()):
        if nodes[1].poll() is not None:
            raise SystemExit(f"node 1 ended by itself: see {place}")
        time.sleep(0.05)
    lost = subprocess.run(["ip", "netns", "pids", SPACES[1]], capture_output=True, text=True, check=True)
    forwards = {process.pid for process in FORWARDS}
    for pid in {int(word) for word in lost.stdout.split()} - forwards:
        os.kill(pid, signal.SIGKILL)
    codes = [process.wait() for process in nodes]
    print(f"{stage}: node 1 lost once step {LOST_AFTER} or a later one was whole, exit codes {codes}", flush=True)
    again = [start(out, place / f"second{node}", node, SPACES[1 - node], uri, stage) for node in (0, 1)]
    codes = [process.wait() for process in again]
    said = [line for line in (place / "second0.log").read_text().splitlines() if "going on from" in line]
    same = weights(place / "second0") == weights(place / "whole0")
    print(f"{stage}: on fresh machines, exit codes {codes}; {said}; final weights {'equal' if same else 'DIFFER'}")
    return int(not same or any(codes) or not said)


def start(out: Path, home: Path, node: int, space: str, uri: str, stage: str) -> subprocess.Popen[bytes]:
    """One node under torchrun, as a PyTorchJob's pod runs it, with everything below a folder of its own."""
    home.mkdir(parents=True)
    shutil.copytree(out / "model", home / "model")
    shutil.copytree(out / "data", home / "data")
    device = f"veth{SPACES.index(space)}"
    # The master is whoever is number 0 now.
    master = ADDRESSES[SPACES.index(space) if node == 0 else 1 - SPACES.index(space)]
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
            ["ip", "netns", "exec", space, *torchrun, *argv], env=os.environ | job, stdout=log, stderr=log
        )


def weights(home: Path) -> str:
    return hashlib.sha256((home / "run" / "model.safetensors").read_bytes()).hexdigest()


def make_network() -> None:
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    for space in SPACES:
        subprocess.run(["ip", "netns", "del", space], stderr=subprocess.DEVNULL)
        ip("netns", "add", space)
    ip("link", "add", "veth0", "netns", SPACES[0], "type", "veth", "peer", "name", "veth1", "netns", SPACES[1])
    for number, space in enumerate(SPACES):
        ip("-n", space, "addr", "add", f"{ADDRESSES[number]}/24", "dev", f"veth{number}")
        ip("-n", space, "link", "set", f"veth{number}", "up")
        ip("-n", space, "link", "set", "lo", "up")


# The S3 listens on this machine's loopback, which a namespace cannot reach; a socket that is a file reaches both.
FORWARDS: list[subprocess.Popen[bytes]] = []


def start_forward(listen: str, to: str, space: str = "") -> subprocess.Popen[bytes]:
    inside = ["ip", "netns", "exec", space] if space else []
    process = subprocess.Popen([*inside, sys.executable, __file__, "--forward", listen, to])
    FORWARDS.append(process)
    return process


async def forward(listen: str, to: str) -> None:
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, place = to.split(":", 1)
        there = asyncio.open_unix_connection(place) if kind == "unix" else asyncio.open_connection("127.0.0.1", place)
        its_reader, its_writer = await there
        await asyncio.gather(copy(reader, its_writer), copy(its_reader, writer))

    kind, place = listen.split(":", 1)
    if kind == "unix":
        Path(place).unlink(missing_ok=True)
        server = await asyncio.start_unix_server(serve, place)
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", int(place))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
