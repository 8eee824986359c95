"""A canary stands in every secret variable: none may sing in what we compile, render or print."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from checking import MANIFESTS, OVERLAYS, kustomize

from vqa_grpo.jobs.spec import KINDS, SECRETS
from vqa_grpo.steps.notice import URL

CANARIES = {name: f"canary/{name.lower()}+{number}" for number, name in enumerate([*SECRETS, URL])}


def singing(text: str) -> list[str]:
    """The variables whose value stands in a text, plainly or as YAML, URLs and Secrets write it."""
    forms = {name: {value, quote(value, safe=""), _base64(value)} for name, value in CANARIES.items()}
    return [name for name, written in forms.items() if any(form in text for form in written)]


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode().rstrip("=")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", CANARIES)
def test_the_search_finds_a_canary_however_it_is_written(name: str) -> None:
    for written in ("key: {}", "http://me:{}@mlflow", "[{}]"):
        assert singing(written.format(CANARIES[name])) == [name]
    assert singing(base64.b64encode(CANARIES[name].encode()).decode()) == [name]
    assert singing(f"https://me:{quote(CANARIES[name], safe='')}@mlflow") == [name]


def test_none_is_in_a_compiled_pipeline(planted: None, tmp_path: Path) -> None:
    from vqa_grpo.pipelines.package import package

    for path in package(tmp_path, "steps:1", "trainer:1"):
        text = path.read_text()
        assert singing(text) == [], path.name
        assert all(name in text for name in SECRETS)  # by reference


@pytest.mark.parametrize("kind", KINDS)
def test_none_is_in_a_rendered_job(planted: None, kind: str) -> None:
    program = str(Path(sys.executable).with_name("vqa-grpo"))
    done = subprocess.run(
        [program, "render-job", "--num-nodes", "2", "--gpus-per-node", "8", "--kind", kind, "--image", "i"],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "KUBERNETES_SERVICE_HOST"},
    )
    assert done.returncode == 0, done.stderr
    assert singing(done.stdout + done.stderr) == []
    assert all(name in done.stdout for name in SECRETS)


@pytest.mark.parametrize("name", OVERLAYS)
def test_none_is_in_a_rendered_overlay(planted: None, name: str) -> None:
    assert singing(kustomize(MANIFESTS / "overlays" / name)) == []
