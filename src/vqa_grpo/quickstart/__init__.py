"""What `make run` works with when it has no hub and no GPU: easy-VQA, and a tiny base model built from it."""
