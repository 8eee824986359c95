"""The tests' own operator and its nodes: a real job of two real ranks, followed to its end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import nodes
import pytest
from emulator import NAMESPACE, Cluster
from fake_operator import Operator
from network import two_nodes, why_not

from vqa_grpo.jobs import JobSpec, job_name, launch
from vqa_grpo.storage.store import open_store

HERE = Path(__file__).parent


@pytest.fixture
def kubelet(cluster: Cluster, s3: str, tmp_path: Path) -> Iterator[nodes.Kubelet]:
    """Two nodes that are waiting for pods."""
    if reason := why_not() or nodes.why_not():
        pytest.skip(reason)
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with two_nodes(tmp_path, [port]) as network:
        image = nodes.image() | {"PYTHONPATH": str(HERE)}
        secrets = {"vqa-grpo-s3": {key: os.environ[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}}
        made = nodes.Kubelet(cluster, network, tmp_path / "pods", image, secrets)
        stop = threading.Event()
        operator = Operator(cluster, made)

        def work() -> None:
            while not stop.wait(0.05):
                operator.tick()

        thread = threading.Thread(target=work)
        thread.start()
        yield made
        stop.set()
        thread.join()
        made.close()


def test_two_ranks_on_two_nodes_that_share_nothing_but_s3_meet(
    cluster: Cluster, kubelet: nodes.Kubelet, s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"{s3}/meet"
    name = job_name("meet")
    spec = JobSpec(
        name,
        "meet",
        "meet",
        image="i",
        num_nodes=2,
        namespace=NAMESPACE,
        environment={"ROOT_URI": root},
        timeout_seconds=300,
    )
    launch(spec, "pytorchjob")
    assert "rank 0: the sum is 3" in capsys.readouterr().out
    found = {entry.name: open_store(root).read(entry.name) for entry in open_store(root).entries()}
    assert found == dict.fromkeys([f"{name}-master-0.txt", f"{name}-worker-0.txt"], b"3 /tmp/home")
    assert {container.node for container in kubelet.containers.values()} == {0, 1}
    assert all(container.code == 0 for container in kubelet.containers.values())
