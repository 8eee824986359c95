"""The emulated cluster and its client. The modules beside this are imported by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "jobs")]

pytest.importorskip("kubernetes")
pytest.importorskip("kmock")

from emulator import Cluster, serve, write_kubeconfig  # noqa: E402


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """An empty cluster that the `kubernetes` client finds, in this process and in what it starts."""
    from kubernetes.config import kube_config

    made = Cluster()
    with serve(made) as url:
        path = write_kubeconfig(tmp_path / "kubeconfig", url)
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))  # read when it was imported
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield made
