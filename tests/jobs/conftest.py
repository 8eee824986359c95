"""The room's tests share a scripted cluster, and the operators' CRDs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # scripted.py, the cluster that several of these tests share

from crd import FILES, strict


@pytest.fixture(scope="session")
def faults_of() -> Callable[[dict], list[str]]:
    """Gives the faults of a manifest."""
    folder = os.environ.get("CRD_DIR")
    if not folder:
        pytest.skip(f"CRD_DIR is not set: it names a folder with {' and '.join(FILES.values())}")
    return strict(Path(folder))
