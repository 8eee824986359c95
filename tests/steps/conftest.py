from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vqa_grpo import steps


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scratch and cache of a test's own, and the words that a log gets."""
    monkeypatch.setenv("VQA_GRPO_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("VQA_GRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VQA_GRPO_PROGRESS", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture
def resolve(source: Path, tmp_path: Path) -> Callable[..., steps.Resolved]:
    """A run over the small data set, with disk storage."""

    def resolved(*settings: str, run_id: str = "", code: str = "") -> steps.Resolved:
        own = [f"data.source={json.dumps(str(source))}", *settings]
        return steps.resolve("quickstart", own, str(tmp_path / "out"), run_id, code)

    return resolved
