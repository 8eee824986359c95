"""Which images the compiled pipelines name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vqa_grpo import __version__
from vqa_grpo.components import images
from vqa_grpo.pipelines import package as packaging

PINNED = {name: f"registry.example/{name}@sha256:{letter * 64}" for name, letter in (("steps", "a"), ("trainer", "b"))}


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if both images had been pushed."""
    (tmp_path / "digests.json").write_text(json.dumps(PINNED))
    monkeypatch.setattr(images, "files", lambda package: tmp_path)


def test_what_was_pushed_is_named_by_its_digest(pushed):
    assert {name: images.reference(name, {}) for name in PINNED} == PINNED


def test_the_environment_goes_before_what_was_pushed(pushed):
    assert images.reference("steps", {"VQA_GRPO_STEPS_IMAGE": "mine:1"}) == "mine:1"
    assert images.reference("trainer", {"VQA_GRPO_STEPS_IMAGE": "mine:1"}) == PINNED["trainer"]


def test_what_was_never_pushed_is_named_by_this_version_s_tag(monkeypatch, tmp_path):
    (tmp_path / "digests.json").write_text("{}")
    monkeypatch.setattr(images, "files", lambda package: tmp_path)
    assert images.reference("steps", {}) == f"ghcr.io/vqa-grpo/steps:{__version__}"


def test_the_file_in_the_tree_is_the_one_that_is_read():
    recorded = json.loads((Path(__file__).parents[2] / "images" / "digests.json").read_text(encoding="utf-8"))
    assert set(recorded) <= set(images.VARIABLES)
    assert all(images.is_pinned(image) for image in recorded.values())
    for name, image in recorded.items():
        assert images.reference(name, {}) == image


def test_compiling_with_tags_warns_in_words_and_with_digests_does_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(packaging, "PIPELINES", {})  # compiling itself is tested with the pipelines
    packaging.package(tmp_path, "somewhere/steps:1", PINNED["trainer"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the pipelines name the steps image by a tag, somewhere/steps:1,")
    packaging.package(tmp_path, PINNED["steps"], PINNED["trainer"])
    assert capsys.readouterr().err == ""
