"""Two machines in two network namespaces: an address each, a wire between them, and named ports of this machine.

Needs root and Linux. Run as a program it forwards: `python network.py LISTEN TO [LISTEN TO …]`, where an end is
`tcp:PORT` on the loopback or `unix:PATH`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_READY = "ready"


@dataclass(frozen=True)
class Network:
    """`spaces` are the namespaces' names; `helpers` the processes in them that are ours and no node's."""

    spaces: tuple[str, str]
    helpers: frozenset[int]

    def device(self, node: int) -> str:
        return f"veth{node}"

    def inside(self, node: int) -> list[str]:
        """What to put before a command that is to run on a node."""
        return ["ip", "netns", "exec", self.spaces[node]]

    def processes(self, node: int) -> set[int]:
        done = subprocess.run(["ip", "netns", "pids", self.spaces[node]], capture_output=True, text=True, check=True)
        return {int(word) for word in done.stdout.split()} - self.helpers


def why_not() -> str:
    """What this machine lacks for two namespaces; empty where nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    if not shutil.which("ip"):
        return "network namespaces need `ip` (iproute2)"
    name = f"vqa-{os.getpid()}-try"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


@contextmanager
def two_nodes(folder: Path, ports: Sequence[int]) -> Iterator[Network]:
    """Both nodes reach each other, and `ports` of this machine's loopback as if they were on their own; nothing else.

    A namespace cannot reach this machine's loopback; a socket that is a file in `folder` reaches both.
    """
    spaces = (f"vqa-{os.getpid()}-0", f"vqa-{os.getpid()}-1")
    tunnels = {port: folder / f"{port}.sock" for port in ports}
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        _wire(spaces)
        helpers.append(_forward([], [(f"unix:{tunnel}", f"tcp:{port}") for port, tunnel in tunnels.items()]))
        within = [(f"tcp:{port}", f"unix:{tunnel}") for port, tunnel in tunnels.items()]
        helpers += [_forward(["ip", "netns", "exec", space], within) for space in spaces]
        yield Network(spaces, frozenset(helper.pid for helper in helpers))
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], stderr=subprocess.DEVNULL)


def _wire(spaces: tuple[str, str]) -> None:
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    for space in spaces:
        ip("netns", "add", space)
    ip("link", "add", "veth0", "netns", spaces[0], "type", "veth", "peer", "name", "veth1", "netns", spaces[1])
    for number, space in enumerate(spaces):
        ip("-n", space, "addr", "add", f"{ADDRESSES[number]}/24", "dev", f"veth{number}")
        ip("-n", space, "link", "set", f"veth{number}", "up")
        ip("-n", space, "link", "set", "lo", "up")


def _forward(inside: Sequence[str], pairs: Sequence[tuple[str, str]]) -> subprocess.Popen[bytes]:
    words = [end for pair in pairs for end in pair]
    process = subprocess.Popen([*inside, sys.executable, __file__, *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().decode().strip() == _READY, f"no forward {words}"
    return process


async def forward(pairs: Sequence[tuple[str, str]]) -> None:
    servers = [await _serve(listen, to) for listen, to in pairs]
    print(_READY, flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def _serve(listen: str, to: str) -> asyncio.Server:
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, place = to.split(":", 1)
        there = asyncio.open_unix_connection(place) if kind == "unix" else asyncio.open_connection("127.0.0.1", place)
        try:
            its_reader, its_writer = await there
        except ConnectionError:
            writer.close()
            return
        await asyncio.gather(copy(reader, its_writer), copy(its_reader, writer))

    kind, place = listen.split(":", 1)
    if kind == "unix":
        Path(place).unlink(missing_ok=True)
        return await asyncio.start_unix_server(connect, place)
    return await asyncio.start_server(connect, "127.0.0.1", int(place))


if __name__ == "__main__":
    ends = sys.argv[1:]
    asyncio.run(forward(list(zip(ends[::2], ends[1::2], strict=True))))
