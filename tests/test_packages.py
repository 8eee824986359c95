"""What is installed is what stands in the tree, and what docstrings show is what happens."""

from __future__ import annotations

import doctest
import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
SOURCE = ROOT / "src" / "vqa_grpo"


def folder_of(package: str) -> Path:
    """Where a package lies: its own entry in package-dir, or below its parent's."""
    places = SETUPTOOLS["package-dir"]
    if package in places:
        return ROOT / places[package]
    parent, _, name = package.rpartition(".")
    return folder_of(parent) / name


def packages_in_the_tree() -> set[str]:
    inner = {path.parent.relative_to(SOURCE.parent) for path in SOURCE.rglob("__init__.py")}
    outer = {Path("vqa_grpo") / name for name in ("components", "images", "pipelines")}
    return {".".join(path.parts) for path in inner | outer}


def test_the_packages_listed_are_the_packages_there() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages_in_the_tree())
    assert SETUPTOOLS["packages"] == sorted(SETUPTOOLS["packages"])


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_listed_package_has_its_folder(package: str) -> None:
    assert (folder_of(package) / "__init__.py").is_file()


def test_no_module_lies_in_a_folder_that_is_no_package() -> None:
    folders = {folder_of(package) for package in SETUPTOOLS["packages"]}
    roots = [ROOT / place for place in SETUPTOOLS["package-dir"].values()]
    assert {path.parent for root in roots for path in root.rglob("*.py")} <= folders


def test_every_file_that_is_no_module_is_installed_too() -> None:
    named = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in folder_of(package).glob(pattern)
        if path.is_relative_to(SOURCE)  # images/ holds what builds images, and installs its digests alone
    }
    there = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")}
    assert there == named


@pytest.mark.parametrize(
    ("package", "pattern"),
    [(package, pattern) for package, patterns in SETUPTOOLS["package-data"].items() for pattern in patterns],
)
def test_every_pattern_of_package_data_finds_something(package: str, pattern: str) -> None:
    assert list(folder_of(package).glob(pattern))


def with_doctests() -> list[str]:
    paths = sorted(path for path in SOURCE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
    return [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in paths]


@pytest.mark.parametrize("module", with_doctests())
def test_the_examples_in_the_docstrings_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module.removesuffix(".__init__")))
    assert result.attempted
    assert not result.failed
