"""Compile the pipelines into YAML for Kubeflow."""

import os
import re
import subprocess
import sys
from pathlib import Path

from vqa_grpo.components import images
from vqa_grpo.contract.failure import ConfigurationError, StepError

PIPELINES = {"train": "train_pipeline", "retrain": "retrain_pipeline", "data": "data_pipeline"}


def package(out: Path, steps_image: str, trainer_image: str) -> list[Path]:
    """Write train.yaml, retrain.yaml and data.yaml into `out`; the same inputs give the same bytes.

    Components read their images when they are imported, so each pipeline is compiled in a fresh process.
    """
    given = {"steps": steps_image, "trainer": trainer_image}
    environment = os.environ | {images.VARIABLES[name]: image for name, image in given.items() if image}
    for name, image in given.items():
        if re.search(r"\s", image):
            raise ConfigurationError(f"--{name}-image {image!r} has a space in it: give REPOSITORY@sha256:…")
    out.mkdir(parents=True, exist_ok=True)
    for name in given:
        _warn_of_a_tag(name, images.reference(name, environment))
    written = []
    for module, function in PIPELINES.items():
        path = out / f"{module}.yaml"
        code = (
            "import sys; from kfp import compiler; "
            f"from vqa_grpo.pipelines.{module} import {function} as pipeline; "
            "compiler.Compiler().compile(pipeline, sys.argv[1])"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True)
        if done.returncode:
            # A compiler that was killed leaves no last words.
            words = done.stderr.strip() or f"the compiler ended with exit code {done.returncode}"
            raise StepError(f"{module} does not compile: {words.splitlines()[-1]}")
        written.append(path)
    return written


def _warn_of_a_tag(name: str, image: str) -> None:
    if not images.is_pinned(image):
        print(
            f"warning: the pipelines name the {name} image by a tag, {image}, and a tag can be pushed again: "
            f"`make push-images` records digests, or give --{name}-image REPOSITORY@sha256:…",
            file=sys.stderr,
        )
