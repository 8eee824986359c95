"""How Kubeflow calls a step: one file each, a thin component over `vqa_grpo.steps`."""
