"""The images that components run in; compile sets them, so that one run uses one set of digests."""

import json
import os
from collections.abc import Mapping
from importlib.resources import files

from vqa_grpo import __version__

VARIABLES = {"steps": "VQA_GRPO_STEPS_IMAGE", "trainer": "VQA_GRPO_TRAINER_IMAGE"}


def reference(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The image called `name`: as the environment says, else as it was pushed, else by this version's tag."""
    pushed = json.loads(files("vqa_grpo.images").joinpath("digests.json").read_text(encoding="utf-8"))
    return environ.get(VARIABLES[name]) or pushed.get(name) or f"ghcr.io/vqa-grpo/{name}:{__version__}"


def is_pinned(image: str) -> bool:
    """Whether the reference names one image for ever; a tag can be pushed again."""
    return "@sha256:" in image


STEPS = reference("steps")
TRAINER = reference("trainer")
