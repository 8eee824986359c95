"""A kubelet for two nodes: runs the containers of pods as real processes, each pod alone with itself and S3.

A container has its own network (of its node), process numbers, host name, `/etc/hosts`, `/tmp`, home and `/dev`;
from the machine it has programs only, as an image would bring them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from emulator import Cluster, Log, now
from fake_operator import FINISHED, attempt_of, rank_of, terminated
from network import ADDRESSES, Network

GRACE_LIMIT = 30.0  # seconds: no test waits as long as a job may take for its last checkpoint
PROGRAMS = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"  # PATH in a container
_MESSAGE_BYTES = 4096
_FALLBACK_LINES = 80

# Everything is a mount of the container's own, gone with it. /tmp is the last, since the folder may lie below it.
_ENTER = """
set -e
name=$1 folder=$2; shift 2
hostname "$name"
mount --bind "$folder/hosts" /etc/hosts
mount -t tmpfs tmpfs "$folder/dev"
for device in null zero full random urandom; do
    : > "$folder/dev/$device"
    mount --bind "/dev/$device" "$folder/dev/$device"
done
ln -s /proc/self/fd "$folder/dev/fd"
ln -s /proc/self/fd/1 "$folder/dev/stdout"
ln -s /proc/self/fd/2 "$folder/dev/stderr"
mkdir "$folder/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$folder/dev/shm"
: > "$folder/dev/termination-log"
mount --bind "$folder/termination-log" "$folder/dev/termination-log"
mount --rbind "$folder/dev" /dev
mount --bind "$folder/tmp" /tmp
cd /
exec env -i "$@"
"""


def why_not() -> str:
    """What keeps containers from running here; empty where nothing."""
    temporary = Path(tempfile.gettempdir()).resolve()
    for path in (Path(sys.prefix), Path(__file__)):
        if path.resolve().is_relative_to(temporary):
            return f"{path} lies below {temporary}, which containers have one of their own of"
    words = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", "mount -t tmpfs tmpfs /dev/shm"]
    done = subprocess.run(words, capture_output=True, text=True)
    return f"no containers here: {done.stderr.strip()}" if done.returncode else ""


@dataclass(frozen=True)
class Image:
    """What an image of ours would bring: variables on top of the usual ones, and copies of folders, by their name in
    /tmp."""

    variables: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {"PATH": PROGRAMS, "HOME": "/tmp/home", "LANG": "C.UTF-8", **self.variables}  # noqa: S108


class Kubelet:
    """`secrets` are the cluster's Secrets by name.

    A node has room for one pod. An attempt's pods go to the other node than the last one's did.
    """

    def __init__(
        self,
        cluster: Cluster,
        network: Network,
        folder: Path,
        image: Image,
        secrets: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._cluster, self._network, self._folder = cluster, network, folder
        self._image, self._secrets = image, secrets
        self.containers: dict[str, Container] = {}  # by their pods' uids
        self._lost: set[str] = set()

    def step(self, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        if pod["status"]["phase"] in FINISHED:
            return
        container = self.containers.get(uid)
        if container is None:
            node = node_of(pod)
            if any(other.node == node and other.code is None for other in self.containers.values()):
                return  # Pending, until there is room
            self.containers[uid] = self._start(pod, node)
            state = {"running": {"startedAt": now()}}
            statuses = [{"name": pod["spec"]["containers"][0]["name"], "ready": True, "state": state}]
            pod["status"] = {"phase": "Running", "startTime": now(), "containerStatuses": statuses}
        elif (code := container.code) is not None:
            pod["status"] = terminated(pod, code, container.message if code else "")
            if uid in self._lost:
                message = "Pod was terminated in response to imminent node shutdown."
                condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
                pod["status"] |= {"reason": "Terminated", "message": message, "conditions": [condition]}

    def stop(self, pod: dict[str, Any]) -> bool:
        container = self.containers.get(pod["metadata"]["uid"])
        if container is None:
            return True
        container.stop(min(GRACE_LIMIT, pod["spec"].get("terminationGracePeriodSeconds", 30)))
        return container.code is not None

    def lose(self, pod: Mapping[str, Any]) -> None:
        """The pod's node goes away, with whatever runs there."""
        self._lost.add(pod["metadata"]["uid"])
        self.containers[pod["metadata"]["uid"]].kill()

    def close(self) -> None:
        for container in self.containers.values():
            container.kill()

    def _start(self, pod: Mapping[str, Any], node: int) -> Container:
        (spec,) = pod["spec"]["containers"]
        environment = self._image.environment() | self._variables(pod, spec)
        master = ADDRESSES[1 - node if rank_of(pod) else node]
        addresses = {environment["PET_MASTER_ADDR"]: master, pod["metadata"]["name"]: ADDRESSES[node]}
        folder = self._folder / f"{pod['metadata']['name']}-{pod['metadata']['uid']}"
        (folder / "tmp" / "home").mkdir(parents=True)
        (folder / "dev").mkdir()
        for place, source in self._image.folders.items():
            # A lock may be held by somebody else at this moment, and nobody would take it off the copy.
            shutil.copytree(source, folder / "tmp" / place, ignore=shutil.ignore_patterns("lock"))
        (folder / "termination-log").touch()
        hosts = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
        (folder / "hosts").write_text("\n".join(hosts) + "\n")
        variables = [f"{name}={value}" for name, value in environment.items()]
        own = ["unshare", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _ENTER, "sh"]
        where = [*self._network.inside(node), *own, pod["metadata"]["name"], str(folder)]
        words = [*where, *variables, *spec["command"], *spec.get("args", ())]
        return Container(pod["metadata"]["name"], words, node, folder, self._cluster.log(pod))

    def _variables(self, pod: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for entry in container["env"]:
            if "value" in entry:
                found[entry["name"]] = entry["value"]
                continue
            source = entry["valueFrom"]
            if "fieldRef" in source:
                found[entry["name"]] = pod["metadata"][source["fieldRef"]["fieldPath"].removeprefix("metadata.")]
                continue
            reference = source["secretKeyRef"]
            value = self._secrets.get(reference["name"], {}).get(reference["key"])
            if value is not None:
                found[entry["name"]] = value
            else:
                assert reference.get("optional"), f"Secret {reference['name']} has no {reference['key']}"
        return found


def node_of(pod: Mapping[str, Any]) -> int:
    """The master's is 0 and the worker's 1 in the first attempt, the other way around in the next, and so on."""
    return (rank_of(pod) + attempt_of(pod)) % len(ADDRESSES)


@dataclass
class Container:
    pod: str
    words: list[str]
    node: int
    folder: Path
    log: Log
    _process: subprocess.Popen[bytes] = field(init=False)
    _kill_at: float = float("inf")

    def __post_init__(self) -> None:
        self._process = subprocess.Popen(
            self.words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.add(line.decode(errors="replace").rstrip("\n"))
        self.log.ended = True

    @property
    def code(self) -> int | None:
        """The exit code as Kubernetes gives it, once everything has ended and all output is in."""
        code = self._process.poll()
        if code is None:
            if time.monotonic() > self._kill_at:
                self.kill()
            return None
        self._reader.join(5)
        return 128 - code if code < 0 else code

    @property
    def message(self) -> str:
        """The termination message, under the policy FallbackToLogsOnError."""
        said = (self.folder / "termination-log").read_text(errors="replace")
        return said[-_MESSAGE_BYTES:] or "\n".join(text for _, text in self.log.lines[-_FALLBACK_LINES:])[-2048:]

    def stop(self, grace: float) -> None:
        if self._kill_at == float("inf"):
            self._kill_at = time.monotonic() + grace
            with suppress(psutil.Error, IndexError, OSError):
                os.kill(psutil.Process(self._process.pid).children()[0].pid, signal.SIGTERM)  # its process 1

    def kill(self) -> None:
        self._process.kill()  # and the kernel ends every process of the container
