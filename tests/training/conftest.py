"""A tiny random Qwen2.5-VL and a 16-row easy-VQA data set, built once for the tests that really train."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Lets the tests here import the modules beside them, which importlib mode does not do by itself.
sys.path.insert(0, str(Path(__file__).parent))

import tiny
import warm


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test inherits the variables of a launcher, and none reaches for the network."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "DEBUG_MODE", "LOG_PATH", "VQA_GRPO_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dataset(tmp_path_factory.mktemp("data") / "easy")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("model") / "tiny-qwen")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model beside a data set of twelve rows, which make six steps of one process an epoch."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "model").symlink_to(tiny_model)
    tiny.dataset(folder / "data", 12)
    return folder


@pytest.fixture(scope="session")
def parent() -> Iterator[warm.Parent]:
    """The process whose forks train in a second or three; it takes a while to import everything."""
    process = warm.Parent()
    yield process
    process.close()
