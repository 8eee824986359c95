"""Load a vision-language model and its processor from a folder or a hub name: safetensors only, no remote code."""

from __future__ import annotations

from typing import Any

from vqa_grpo.models import image_only


def load_processor(path: str, min_pixels: int | None = None, max_pixels: int | None = None) -> Any:
    """The processor with left padding, as generation needs it; pixel bounds apply where the family has them."""
    image_only.install()
    from transformers import AutoProcessor

    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    processor = AutoProcessor.from_pretrained(path, **{k: v for k, v in bounds.items() if v is not None})
    processor.tokenizer.padding_side = "left"
    return processor


def load_model(path: str, dtype: Any = "float32", **options: Any) -> Any:
    """The model in inference or training form; `options` go to `from_pretrained`."""
    image_only.install()
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, use_safetensors=True, **options)
