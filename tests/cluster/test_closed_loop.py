"""The whole pipeline against the emulated cluster: training is a real ZeRO job on two nodes that share nothing but S3.

It is stopped in the middle, started again, loses a node, and still ends with one registered model.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from emulator import NAMESPACE, Cluster, serve, write_kubeconfig
from nodes import Image, Kubelet
from setting import at_work, deepspeed_ops, mlflow_server, skip_without_nodes

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from running import SMALL, processes_of

from vqa_grpo.jobs import job_name
from vqa_grpo.storage import embedded, publish
from vqa_grpo.storage.store import _client, open_store
from vqa_grpo.training.checkpoints import published_parts

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]

RUN = "closed-loop"
# Where one of these is found that is not a Secret of the cluster or the environment of who may see it, it has leaked.
CANARIES = {
    "HF_TOKEN": ("vqa-grpo-hf", "hf-canary-5b1f9c"),
    "VQA_GRPO_JUDGE_API_KEY": ("vqa-grpo-judge", "judge-canary-77e0aa"),
    "MLFLOW_TRACKING_PASSWORD": ("vqa-grpo-mlflow", "mlflow-canary-31d2ef"),
}
SETTINGS = SMALL | {
    "train.max_steps": 6,
    "train.save_steps": 1,
    "train.per_device_train_batch_size": 8,
    "train.deepspeed": "zero2",
    "job.launcher": "pytorchjob",
    "job.namespace": NAMESPACE,
    "job.num_nodes": 2,
    "job.processes_per_node": 1,
    "job.timeout_seconds": 3000,
}


@dataclass
class Seen:
    """What the tests below look at."""

    runs: Path
    cluster: Cluster
    kubelet: Kubelet
    mlflow: str
    environment: dict[str, str]
    secrets: list[str]
    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    terminated: dict[str, Any] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    said: str = ""

    def start(self) -> subprocess.Popen[str]:
        words = [str(Path(sys.executable).with_name("vqa-grpo")), "run", "--config", "quick", "--json", "--run-id", RUN]
        words += ["--runs", str(self.runs), "--storage", f"s3://{embedded.BUCKET}/loop"]
        words += [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
        # To a file: nobody reads a pipe while the test waits.
        with (self.folder / "said").open("a") as said:
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, text=True, env=self.environment)
        self.started.append(process)
        return process

    def until(self, condition: Callable[[], Any], what: str, process: subprocess.Popen[str]) -> None:
        give_up = time.monotonic() + 1500
        while not condition():
            assert process.poll() is None, f"before {what}: {(self.folder / 'said').read_text()[-6000:]}"
            assert time.monotonic() < give_up, f"{what} did not happen: {(self.folder / 'said').read_text()[-6000:]}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, s3_server: dict[str, str]) -> Iterator[Seen]:
    skip_without_nodes()
    folder = tmp_path_factory.mktemp("loop")
    cluster = Cluster()
    s3_secret = {key: s3_server[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    secrets = {"vqa-grpo-s3": s3_secret} | {name: {key: value} for key, (name, value) in CANARIES.items()}
    secrets["vqa-grpo-mlflow"]["MLFLOW_TRACKING_USERNAME"] = "somebody"
    before = dict(os.environ)
    with mlflow_server(folder) as mlflow_port, serve(cluster) as url:
        ports = [int(s3_server["AWS_ENDPOINT_URL"].rpartition(":")[2]), mlflow_port]
        foreign = ("AWS_", "MLFLOW_", "VQA_GRPO_", "PYTEST_", "KUBERNETES_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)} | s3_server
        environment |= {key: value for secret in secrets.values() for key, value in secret.items()}
        environment |= {
            "KUBECONFIG": str(write_kubeconfig(folder / "kubeconfig", url)),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}",
            "OMP_NUM_THREADS": "1",
        }
        image = Image({"TORCH_EXTENSIONS_DIR": "/tmp/operators"}, {"operators": deepspeed_ops()})  # noqa: S108
        with at_work(cluster, folder, ports, image, secrets) as kubelet:
            hidden = [s3_secret["AWS_SECRET_ACCESS_KEY"], *(value for _, value in CANARIES.values())]
            made = Seen(
                folder / "runs", cluster, kubelet, environment["MLFLOW_TRACKING_URI"], environment, hidden, folder
            )
            os.environ.update(s3_server)
            _client.cache_clear()
            try:
                _play(made)
                yield made
            finally:
                for process in made.started:
                    process.terminate()
                    process.wait(60)
    os.environ.clear()
    os.environ.update(before)
    _client.cache_clear()


def _play(seen: Seen) -> None:
    checkpoints = f"s3://{embedded.BUCKET}/loop/{RUN}/checkpoints"

    def whole(step: int) -> bool:
        return any(at >= step and len(parts) == 2 for at, parts in published_parts(checkpoints).items())

    first = seen.start()
    seen.until(lambda: whole(1), "a first checkpoint of both nodes", first)
    first.terminate()
    code = first.wait(120)
    time.sleep(1)  # for the operator to see it
    deadline = time.monotonic() + 60
    while seen.cluster.read("pods") and time.monotonic() < deadline:
        time.sleep(0.1)
    seen.terminated = {
        "code": code,
        "jobs": seen.cluster.read("pytorchjobs"),
        "pods": seen.cluster.read("pods"),
        "containers": [each for each in seen.kubelet.containers.values() if each.code is None],
        "processes": processes_of(seen.runs),
        "step": max(published_parts(checkpoints)),
    }
    second = seen.start()
    reached = seen.terminated["step"] + 2
    seen.until(lambda: whole(reached), f"a checkpoint of step {reached}", second)
    seen.stored = [entry.name for entry in open_store(checkpoints).entries()]  # a run that has ended keeps none
    seen.kubelet.lose(next(pod for pod in seen.cluster.read("pods") if "worker" in pod["metadata"]["name"]))
    out, _ = second.communicate(timeout=2400)
    seen.said = (seen.folder / "said").read_text()
    assert second.returncode == 0, seen.said[-6000:]
    seen.summary = json.loads(out.strip().splitlines()[-1])


def test_a_run_that_was_stopped_and_lost_a_node_ends_with_one_registered_model(seen: Seen) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=seen.mlflow)
    (version,) = client.search_model_versions("name = 'vqa-grpo'")
    assert version.tags["digest"] == seen.summary["model"]["digest"]
    assert publish.get(seen.summary["model"]["uri"].rpartition("/")[0]).digest == version.tags["digest"]
    assert client.get_model_version_by_alias("vqa-grpo", "champion").version == version.version
    assert set(seen.summary["tuned"]) >= {"accuracy", "format_rate"}


def test_a_stop_in_the_middle_of_training_leaves_nothing_running(seen: Seen) -> None:
    assert seen.terminated["code"] == 130
    for what in ("jobs", "pods", "containers", "processes"):
        assert seen.terminated[what] == [], what


def test_the_job_went_on_from_its_checkpoint_after_the_stop_and_after_the_loss_of_a_node(seen: Seen) -> None:
    name = job_name(RUN)
    trainings = [made for made in seen.cluster.created if made.startswith(name.removesuffix("-a0") + "-a")]
    assert trainings == [name, name, name.removesuffix("0") + "1"]
    from_steps = [int(step) for step in re.findall(r"going on from .*?(\d+)", logs(seen, "master-0"))]
    assert len(from_steps) == 2
    assert seen.terminated["step"] <= from_steps[0] < from_steps[1]


def test_two_nodes_really_trained_under_zero(seen: Seen) -> None:
    last = [each for each in seen.kubelet.containers.values() if each.pod.startswith(job_name(RUN, 1))]
    assert {each.pod.removeprefix(f"{job_name(RUN, 1)}-"): each.node for each in last} == {"master-0": 1, "worker-0": 0}
    assert next(each.code for each in last if each.pod.endswith("master-0")) == 0
    for rank in (0, 1):
        assert [name for name in seen.stored if f"/node-{rank}/" in name and f"zero_pp_rank_{rank}_" in name], (
            seen.stored
        )


def test_nothing_secret_is_in_a_manifest_a_log_or_storage(seen: Seen) -> None:
    places = {"the API's objects": json.dumps(seen.cluster.history()).encode()}
    for uid, log in seen.cluster.logs.items():
        places[f"the log of {log.pod} {uid}"] = "\n".join(text for _, text in log.lines).encode()
    for path in seen.folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            places[str(path)] = path.read_bytes()
    store = open_store(f"s3://{embedded.BUCKET}/loop")
    places |= {entry.name: store.read(entry.name) or b"" for entry in store.entries()}
    assert len(places) > 100
    for secret in seen.secrets:
        assert [place for place, content in places.items() if secret.encode() in content] == []


def logs(seen: Seen, pod: str) -> str:
    lines = [text for log in seen.cluster.logs.values() if log.pod.endswith(pod) for _, text in log.lines]
    return "\n".join(lines)
