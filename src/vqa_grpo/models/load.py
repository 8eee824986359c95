"""Load a vision-language model and its processor from a folder or a hub name: safetensors only, no remote code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vqa_grpo.models import image_only


def load_processor(
    path: str, min_pixels: int | None = None, max_pixels: int | None = None, revision: str = "main"
) -> Any:
    """The processor with left padding, as generation needs it; pixel bounds apply where the family has them."""
    image_only.install(saved=not _is_image_only(Path(path)))
    from transformers import AutoProcessor

    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    processor = AutoProcessor.from_pretrained(path, revision=revision, **given)
    processor.tokenizer.padding_side = "left"
    return processor


def load_model(path: str, dtype: Any = "float32", **options: Any) -> Any:
    """The model in inference or training form; `options` go to `from_pretrained`."""
    image_only.install()
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, use_safetensors=True, **options)


def outline(path: str, revision: str = "main") -> Any:
    """The model with names and shapes alone, on torch's meta device: no weights are read, however large it is."""
    image_only.install()
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from vqa_grpo.models.zero_init import outside_zero_init

    with outside_zero_init(), torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(path, revision=revision))


def _is_image_only(folder: Path) -> bool:
    """Whether a local folder's processor was saved without a video part, as the embedded model's is."""
    try:
        saved = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "video_processor" not in saved and not (folder / "video_preprocessor_config.json").is_file()
