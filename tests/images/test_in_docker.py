"""The built images at work: `.ci/images` builds them, says which they are, and runs this."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from vqa_grpo.components.images import VARIABLES
from vqa_grpo.pipelines import package as packaging
from vqa_grpo.storage.store import open_store

IMAGES = {name: os.environ.get(variable, "") for name, variable in VARIABLES.items()}
USERS = {"the image's own": None, "one that OpenShift makes up": "1000710000:0"}

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not (os.environ.get("DOCKER_HOST") and all(IMAGES.values())),
        reason="no images to look at: .ci/images builds them (as root, on Debian 12) and sets "
        + ", ".join(VARIABLES.values()),
    ),
]

# A model that knows nothing on a handful of questions, and a gate that lets anything pass: only the plumbing counts.
SMALL = """
model.recipe=micro
data.limit=400
train.max_steps=2
train.per_device_train_batch_size=16
train.validation_sample=20
evaluate.sample=40
gate.min_format_rate=0
gate.min_accuracy_gain=-1
gate.interval_above_zero=false
gate.max_type_drop=1
"""


@pytest.fixture(scope="module")
def docker() -> Iterator[Any]:
    import docker as sdk

    client = sdk.from_env(timeout=300)
    yield client
    client.close()


@dataclass(frozen=True)
class Ended:
    code: int
    output: str


def run(docker: Any, image: str, command: list[str], user: str | None = None) -> Ended:
    """Run a command as a strict cluster would: no network, nothing to write to but /tmp, no privilege."""
    container = docker.containers.run(
        IMAGES[image],
        command,
        user=user,
        detach=True,
        network_mode="none",
        read_only=True,
        tmpfs={"/tmp": "mode=1777"},  # noqa: S108 - the container's
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
    )
    try:
        return Ended(container.wait()["StatusCode"], container.logs().decode())
    finally:
        container.remove(force=True)


# --- what is in them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
@pytest.mark.parametrize("image", IMAGES)
def test_it_runs_as_anybody_without_network_and_writes_below_tmp_only(docker, image, user):
    ended = run(docker, image, ["sh", "-c", "id -u; id -g; vqa-grpo plan --json >/tmp/plan && touch /opt/venv/x"], user)
    assert ended.output.split()[:2] == [(user or "65532:0").split(":")[0], "0"]
    assert ended.code == 1
    assert "Read-only file system" in ended.output


@pytest.mark.parametrize("image", IMAGES)
def test_kubeflow_s_executor_starts_without_what_kfp_declares(docker, image):
    code = "import kfp.dsl.executor_main, kfp.dsl, sys; sys.exit('google.cloud.storage' in sys.modules)"
    ended = run(docker, image, ["env", "_KFP_RUNTIME=true", "python3", "-c", code])
    assert ended.code == 0, ended.output


def test_the_steps_image_has_no_torch_and_is_small(docker):
    code = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'trl') if u.find_spec(n)])"
    assert run(docker, "steps", ["python", "-c", code]).output.strip() == "[]"
    size = {name: docker.images.get(image).attrs["Size"] for name, image in IMAGES.items()}
    assert size["steps"] < 1_000_000_000 < size["trainer"]


def test_deepspeed_s_operators_are_there_without_a_compiler(docker):
    code = """
import os, shutil, torch, deepspeed
from deepspeed.ops.adam import DeepSpeedCPUAdam
assert not (shutil.which("c++") or shutil.which("nvcc"))
weight = torch.nn.Parameter(torch.ones(3000))
optimizer = DeepSpeedCPUAdam([weight], lr=0.5)
weight.grad = torch.ones(3000)
optimizer.step()
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
deepspeed.init_distributed("gloo")
print("stepped", torch.allclose(weight, torch.full((3000,), 0.5)))
"""
    ended = run(docker, "trainer", ["python", "-c", code])
    assert ended.code == 0, ended.output
    assert "stepped True" in ended.output


def test_no_secret_of_the_machine_that_built_them_is_in_them(docker, tmp_path):
    """`.ci/images` plants one in the build's environment and in a file beside the Dockerfiles' sources."""
    canary = os.environ.get("VQA_GRPO_CANARY", "").encode()
    if not canary:
        pytest.skip("no canary was planted: VQA_GRPO_CANARY is not set")
    for name, image in IMAGES.items():
        saved = tmp_path / f"{name}.tar"
        with saved.open("wb") as file:
            for chunk in docker.images.get(image).save():
                file.write(chunk)
        assert not holds(saved, canary)
        saved.unlink()
    planted = tmp_path / "planted.tar"
    (tmp_path / "env").write_bytes(b"x" * (1 << 20) + canary)
    with tarfile.open(planted, "w") as tar:
        tar.add(tmp_path / "env")
    assert holds(planted, canary)


def holds(path: Path, needle: bytes) -> bool:
    """Whether the bytes stand in a saved image: its layers are not compressed."""
    before = b""
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            if needle in before + chunk:
                return True
            before = chunk[-len(needle) :]
    return False


# --- the pipeline in them -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server, since the images talk to one over the network."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri"]
    command = [sys.executable, "-m", "mlflow", "server", *options, f"sqlite:///{folder / 'mlflow.db'}"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # ten more processes
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while not answers(f"{url}/health"):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "MLflow does not come up"
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it has workers, and none of them holds anything dear
        server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own server
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.yaml as compile writes it, but for three things that only a cluster has.

    Training and evaluation are jobs of their own there; here they run where they are launched, which must then be the
    trainer's image. An image may be a parameter there, which Kubeflow's runner here does not look up. And a step that
    fails is not tried again after half a minute.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packaging, "PIPELINES", {"train": packaging.PIPELINES["train"]})
        (path,) = packaging.package(tmp_path_factory.mktemp("compiled"), IMAGES["steps"], IMAGES["trainer"])
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    for name, executor in documents[0]["deploymentSpec"]["executors"].items():
        launches = name in ("exec-train-model", "exec-evaluate-models")
        if launches or executor["container"]["image"].startswith("{{$.inputs"):
            executor["container"]["image"] = IMAGES["trainer"]
    for component in (documents[0]["root"], *documents[0]["components"].values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Run:
    code: int
    output: str
    root: str

    def published(self, name: str) -> dict[str, Any]:
        return json.loads(open_store(self.root).read(name) or b"{}")


def run_pipeline(pipeline: Path, folder: Path, run_id: str, s3: str, tracking_uri: str, overrides: str) -> Run:
    root = folder / "kfp"
    root.mkdir()
    root.chmod(0o777)
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")
    told = {
        "root": str(root),
        "environment": {name: os.environ[name] for name in names} | {"OMP_NUM_THREADS": "1"},
        "parameters": {
            "config": "quick",
            "overrides": SMALL + overrides,
            "output_root": f"{s3}/images",
            "run_id": run_id,
            "num_nodes": 1,
            "tracking_uri": tracking_uri,
            "trainer_image": IMAGES["trainer"],
        },
    }
    command = [sys.executable, str(Path(__file__).with_name("run_pipeline.py")), str(pipeline)]
    done = subprocess.run(
        command, input=json.dumps(told), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
    )
    return Run(done.returncode, done.stdout, f"{s3}/images/{run_id}")


def test_the_train_pipeline_runs_in_the_images_and_registers_its_model(docker, pipeline, tmp_path, s3, mlflow_server):
    from mlflow import MlflowClient

    run = run_pipeline(pipeline, tmp_path, "good", s3, mlflow_server, "")
    assert run.code == 0, run.output
    summary = run.published("summary/summary.json")
    assert summary["status"] == "SUCCEEDED"
    version = MlflowClient(mlflow_server).get_model_version_by_alias("vqa-grpo", "champion")
    assert version.source.startswith(f"{run.root}/model/")
    assert docker.containers.list(all=True) == []


def test_a_step_that_fails_in_its_image_fails_the_pipeline(docker, pipeline, tmp_path, s3):
    run = run_pipeline(pipeline, tmp_path, "bad", s3, "", "data.source=/nowhere\n")
    assert run.code == 1, run.output
    assert "/nowhere" in run.output
    assert "'resolve-source'" in run.output.splitlines()[-1]
    assert docker.containers.list(all=True) == []
