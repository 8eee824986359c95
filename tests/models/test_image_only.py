"""Processors without their video half, on machines without and with torchvision."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import transformers.utils
from transformers import Qwen2_5_VLProcessor
from vqa_grpo.models import image_only
transformers.utils.is_torchvision_available = lambda: {available}
image_only.install({arguments})
image_only.install({arguments})
print("video_processor" in Qwen2_5_VLProcessor.get_attributes())
"""


def has_video_part(available: bool, arguments: str = "") -> bool:
    """In a process of its own, since the change is for the whole process."""
    code = PROBE.format(available=available, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def test_without_torchvision_processors_lose_their_video_part() -> None:
    assert not has_video_part(available=False)


def test_with_torchvision_they_keep_it() -> None:
    assert has_video_part(available=True)


def test_a_processor_that_was_saved_without_one_loads_with_torchvision_too() -> None:
    assert not has_video_part(available=True, arguments="saved=False")
