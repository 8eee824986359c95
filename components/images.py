"""The images that components run in; compile sets them, so that one run uses one set of digests."""

import os

from vqa_grpo import __version__

STEPS = os.environ.get("VQA_GRPO_STEPS_IMAGE", f"ghcr.io/vqa-grpo/steps:{__version__}")
TRAINER = os.environ.get("VQA_GRPO_TRAINER_IMAGE", f"ghcr.io/vqa-grpo/trainer:{__version__}")
