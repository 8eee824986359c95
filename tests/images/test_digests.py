"""Which images the compiled pipelines name."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
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


# Each knows an image by several digests; what podman pushed has another one.
PROGRAMS = {
    "docker": """#!/bin/sh
for last; do :; done
case "$1 $2" in "image inspect") printf '%s\\n' elsewhere/x@sha256:0 "${last%:*}@sha256:1" "${last%:*}@sha256:2";; esac
""",
    "podman": """#!/bin/sh
for last; do :; done
case "$1 $2" in
  "push --help") echo "--digestfile string";;
  "push -q") printf sha256:1 > "$4";;
  "image inspect") echo "${last%:*}@sha256:2";;
esac
""",
    "silent": "#!/bin/sh\n",
    "offline": "#!/bin/sh\n[ $1 != push ] || exit 1",
}


@pytest.fixture
def push(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """`make push-images` in a copy of the tree's Makefile, with a program that builds and pushes nothing."""

    def run(program: str) -> subprocess.CompletedProcess[str]:
        top = Path(__file__).parents[2]
        for name in ("Makefile", "images/constraints.txt", "src/vqa_grpo/__init__.py"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(top / name, tmp_path / name)
        (tmp_path / program).write_text(PROGRAMS[program])
        (tmp_path / program).chmod(0o755)
        command = ["make", "push-images", f"DOCKER=./{program}", "REGISTRY=registry.example:5000/us"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("program", ["docker", "podman"])
def test_of_several_digests_the_one_that_was_pushed_is_recorded(push, tmp_path, program):
    assert push(program).returncode == 0
    recorded = json.loads((tmp_path / "images" / "digests.json").read_text())
    assert recorded == {name: f"registry.example:5000/us/{name}@sha256:1" for name in ("steps", "trainer")}
    assert not (tmp_path / "images" / ".digest").exists()


@pytest.mark.parametrize("program", ["silent", "offline"])
def test_a_push_without_a_digest_is_an_error_and_records_nothing(push, tmp_path, program):
    done = push(program)
    assert done.returncode != 0
    assert f"error: ./{program} tells no digest of registry.example:5000/us/steps: was it pushed?" in done.stderr
    assert not (tmp_path / "images" / "digests.json").exists()


def test_compiling_with_tags_warns_in_words_and_with_digests_does_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(packaging, "PIPELINES", {})  # compiling itself is tested with the pipelines
    packaging.package(tmp_path, "somewhere/steps:1", PINNED["trainer"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the pipelines name the steps image by a tag, somewhere/steps:1,")
    packaging.package(tmp_path, PINNED["steps"], PINNED["trainer"])
    assert capsys.readouterr().err == ""
