from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow on sqlite, made once: its tables take seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow keeps artifacts below the working folder unless told otherwise
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def name() -> str:
    """A model or experiment that no other test uses."""
    return f"name-{uuid.uuid4().hex[:8]}"
