"""What a job of the tests lives in: the emulated cluster, two nodes at work, and an MLflow server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import network
import nodes
import pytest
from emulator import Cluster
from fake_operator import Operator


@contextmanager
def at_work(
    cluster: Cluster, folder: Path, ports: list[int], image: nodes.Image, secrets: dict[str, dict[str, str]]
) -> Iterator[nodes.Kubelet]:
    """Two nodes and the operator that gives them pods; nothing of them is left afterwards."""
    stop = threading.Event()
    with network.two_nodes(folder, ports) as wired:
        kubelet = nodes.Kubelet(cluster, wired, folder / "pods", image, secrets)
        operator = Operator(cluster, kubelet)

        def work() -> None:
            while not stop.wait(0.05):
                operator.tick()

        thread = threading.Thread(target=work, name="operator")
        thread.start()
        try:
            yield kubelet
        finally:
            stop.set()
            thread.join()
            kubelet.close()


def skip_without_nodes() -> None:
    if reason := network.why_not() or nodes.why_not():
        pytest.skip(reason)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """MLflow over HTTP, on sqlite; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        str(folder / "art"),
    ]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            give_up = time.monotonic() + 300
            while not _answers(port):
                assert process.poll() is None, (folder / "mlflow.log").read_text()
                assert time.monotonic() < give_up, (folder / "mlflow.log").read_text()
                time.sleep(0.2)
            yield port
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def deepspeed_ops() -> Path:
    """Where DeepSpeed's operators lie compiled, as an image of ours brings them; that takes a minute the first time.

    A folder of its own: compiled again by another `ninja` than the containers', they would be so in every container.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqa-grpo-tests" / "operators"
    folder.mkdir(parents=True, exist_ok=True)
    code = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)"
    environment = os.environ | {"PATH": nodes.PROGRAMS, "TORCH_EXTENSIONS_DIR": str(folder), "DS_ACCELERATOR": "cpu"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1200
        )
    except subprocess.TimeoutExpired:
        # Whoever is killed while compiling leaves its lock, and everybody after it waits for ever.
        pytest.fail(f"DeepSpeed's operators were not compiled: is a `lock` left in {folder}/*? Then delete it")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder
