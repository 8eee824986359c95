"""The tests' own operator and its nodes: a real job of two real ranks, followed to its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from emulator import NAMESPACE, Cluster
from nodes import Image
from setting import at_work, skip_without_nodes

from vqa_grpo.jobs import JobSpec, job_name, launch
from vqa_grpo.jobs.spec import KINDS
from vqa_grpo.storage.store import open_store


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.full) for kind in KINDS[1:])])
def test_two_ranks_on_two_nodes_that_share_nothing_but_s3_meet(
    cluster: Cluster, s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    skip_without_nodes()
    root, name = f"{s3}/meet-{kind}", job_name("meet")
    where = {"num_nodes": 2, "namespace": NAMESPACE, "environment": {"ROOT_URI": root}}
    spec = JobSpec(name, "meet", "meet", image="i", **where)
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    secrets = {"vqa-grpo-s3": {key: os.environ[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}}
    image = Image({"PYTHONPATH": str(Path(__file__).parent)})
    with at_work(cluster, tmp_path, [port], image, secrets) as kubelet:
        launch(spec, kind)
        containers = list(kubelet.containers.values())
        assert {container.node for container in containers} == {0, 1}
        assert containers[0].code == 0  # the master's; the worker may have been ended by the operator
    assert "rank 0: the sum is 3" in capsys.readouterr().out
    found = {entry.name: open_store(root).read(entry.name) for entry in open_store(root).entries()}
    assert found == dict.fromkeys([f"{container.pod}.txt" for container in containers], b"3 /tmp/home")
