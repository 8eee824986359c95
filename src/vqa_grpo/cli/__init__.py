"""The command line. `vqa-grpo --help` lists the verbs."""

from vqa_grpo.cli.app import main

__all__ = ["main"]
