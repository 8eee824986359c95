"""Post-train vision-language models on visual question answering with GRPO, as a Kubeflow pipeline."""

__version__ = "0.1.0"
