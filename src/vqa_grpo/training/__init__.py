"""GRPO training: `python -m vqa_grpo.training`, alone or under torchrun."""
