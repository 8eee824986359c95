"""Let image-and-video processors work for images alone where torchvision is missing.

Without torchvision, transformers 5.23 cannot build the video processor of Qwen2-VL, Qwen2.5-VL and others, and
then refuses the whole processor; the torchvision wheel on PyPI does not load beside a CPU build of torch. The
image half needs neither. Remove once transformers makes the video processor optional by itself.
"""

from __future__ import annotations

from typing import Any


def install(saved: bool = True) -> None:
    """Drop the video processor from processors' parts; calling it twice does no harm.

    Where torchvision is there, only a processor that was saved (or is built) without a video part needs this:
    `saved` says whether there is a video part to load.
    """
    from transformers.processing_utils import ProcessorMixin
    from transformers.utils import is_torchvision_available

    mixin: Any = ProcessorMixin
    if (saved and is_torchvision_available()) or getattr(mixin, "video_processor", 0) is None:
        return
    parts = mixin.get_attributes.__func__

    def get_attributes(cls: type) -> list[str]:
        return [part for part in parts(cls) if part != "video_processor"]

    mixin.get_attributes = classmethod(get_attributes)
    mixin.video_processor = None
