"""Run the dev overlay's SeaweedFS and MLflow as their pods would, under their Services' names, and look at them.

Started by test_servers.py in network and mount namespaces of its own, as root: ports and names are then the manifests'.
Takes JSON from standard input, prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = "127.0.0.1"


def main() -> None:
    wanted = json.load(sys.stdin)
    work = Path(wanted["work"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    (work / "hosts").write_text("".join(f"{HERE} {name}\n" for name in ["localhost", *wanted["names"]]))
    subprocess.run(["mount", "--bind", str(work / "hosts"), "/etc/hosts"], check=True)
    found: dict[str, Any] = {}
    with started(wanted["seaweedfs"], work / "seaweedfs") as seaweedfs:
        found["s3"] = until_it_answers(wanted["seaweedfs"]["probe"], seaweedfs)
        with started(wanted["mlflow"], work / "mlflow") as mlflow:
            found["health"] = until_it_answers(wanted["mlflow"]["probe"], mlflow)
            found |= used_by_a_step(wanted["settings"], wanted["secrets"], work)
            ports = {"s3": wanted["seaweedfs"]["probe"], "health": wanted["mlflow"]["probe"]}
            found["ipv6"] = {name: status(url.replace(HERE, "[::1]")) for name, url in ports.items()}
            found["hosts"] = {name: status(f"http://{HERE}:5000/", host=name) for name in wanted["hosts"]}
    found["exit"] = [seaweedfs.returncode, mlflow.returncode]
    print(json.dumps(found))


@contextlib.contextmanager
def started(container: dict[str, Any], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir()
    environment = {"PATH": os.environ["PATH"], **container["env"], "HOME": str(folder), "TMPDIR": str(folder)}
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*container["command"], *container["args"]],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)  # a pod's grace
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_it_answers(url: str, process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            return status(url)
        time.sleep(0.3)
    raise SystemExit(f"{url} did not answer; exit code {process.poll()}")


def status(url: str, host: str = "") -> int:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def used_by_a_step(settings: dict[str, str], secrets: dict[str, str], work: Path) -> dict[str, Any]:
    """With nothing but the ConfigMap and the Secret, as a pipeline step has them."""
    os.environ.update(settings | secrets)
    import boto3
    import mlflow

    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("e"))
    (work / "report.html").write_text("fine")
    client.log_artifact(run.info.run_id, str(work / "report.html"))
    client.create_registered_model("m")
    version = client.create_model_version("m", source="s3://vqa-grpo/r/model/attempt-1", run_id=run.info.run_id)
    bucket = boto3.client("s3")
    objects = bucket.list_objects_v2(Bucket="vqa-grpo").get("Contents", [])
    return {
        "artifacts": run.info.artifact_uri,
        "objects": [entry["Key"] for entry in objects],
        "listed": [entry.path for entry in client.list_artifacts(run.info.run_id)],
        "source": version.source,
    }


if __name__ == "__main__":
    main()
