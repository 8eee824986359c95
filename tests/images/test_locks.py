"""The locks say what pyproject.toml and the constraints say, and nothing more."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
LOCKS = sorted(path.relative_to(IMAGES).as_posix() for path in IMAGES.rglob("*.lock"))
PIN = re.compile(r"([A-Za-z0-9._-]+)==([^ \\]+)")
# What only the CUDA build of torch brings; no constraint names it.
CUDA = re.compile(r"nvidia-.*|cuda-.*|triton")


def pins(lock: str) -> dict[str, str]:
    found = [PIN.match(line) for line in (IMAGES / lock).read_text(encoding="utf-8").splitlines()]
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def constraints() -> dict[str, str]:
    lines = (IMAGES / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def requirements_of(name: str) -> list[str]:
    """Nothing for a package that is not installed: bitsandbytes is of no use without a GPU, and needs nothing new."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def needed_by(extra: str) -> set[str]:
    """Everything that installing vqa-grpo[extra] brings, by the metadata of what is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = {"": project["dependencies"], **project["optional-dependencies"]}
    waiting = [("vqa-grpo", ""), ("vqa-grpo", extra)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        lines = own[wanted] if name == "vqa-grpo" else requirements_of(name)
        for requirement in map(Requirement, lines):
            # What an extra needs is asked for in that extra's turn.
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                needed = canonicalize_name(requirement.name)
                waiting += [(needed, inner) for inner in ("", *requirement.extras)]
    return {name for name, _ in seen} - {"vqa-grpo"}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_has_its_hashes(lock):
    text = (IMAGES / lock).read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]
    assert all(PIN.match(entry) and "--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_place_that_packages_come_from(lock):
    text = (IMAGES / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash)", text, re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_what_the_constraints_pin(lock):
    constrained = constraints()
    differing = {
        name: version
        for name, version in pins(lock).items()
        if not CUDA.fullmatch(name) and version.partition("+")[0] != constrained.get(name)
    }
    assert differing == {}


def test_the_steps_lock_is_what_the_steps_extra_needs():
    assert set(pins("steps/requirements.lock")) == needed_by("steps")


def test_the_trainer_s_locks_are_what_the_trainer_extra_needs():
    everything = needed_by("trainer")
    torch_alone = set(pins("trainer/torch-cpu.lock"))
    assert set(pins("trainer/requirements.lock")) | torch_alone | {"deepspeed"} == everything
    assert {"torch", "deepspeed"}.isdisjoint(pins("trainer/requirements.lock"))


def test_both_builds_of_torch_are_the_same_version():
    cpu, cuda = pins("trainer/torch-cpu.lock"), pins("trainer/torch-cuda.lock")
    assert cpu["torch"] == f"{cuda['torch']}+cpu"
    assert set(cpu) <= set(cuda)
    assert all(CUDA.fullmatch(name) for name in set(cuda) - set(cpu))


def test_the_compiler_is_of_the_cuda_that_torch_was_built_for():
    toolkit, torch = pins("trainer/toolkit-cuda.lock"), pins("trainer/torch-cuda.lock")
    assert toolkit["nvidia-cuda-nvcc"].split(".")[:2] == torch["nvidia-cuda-runtime"].split(".")[:2]
    assert {name: toolkit[name] for name in set(toolkit) & set(torch)} == {
        name: torch[name] for name in set(toolkit) & set(torch)
    }


def test_the_steps_image_gets_neither_torch_nor_what_only_compiling_a_pipeline_needs():
    assert {"torch", "transformers", "trl", "kfp", "google-cloud-storage", "mlflow"}.isdisjoint(
        pins("steps/requirements.lock")
    )
    assert set(pins("kfp.lock")) == {"kfp"}
