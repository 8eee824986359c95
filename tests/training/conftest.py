"""A tiny random Qwen2.5-VL and a 16-row easy-VQA data set, built once for the tests that really train."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Lets the tests here import the modules beside them, which importlib mode does not do by itself.
sys.path.insert(0, str(Path(__file__).parent))

import tiny


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
