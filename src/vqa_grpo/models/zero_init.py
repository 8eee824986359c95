"""Load a second model in a process that trains under DeepSpeed ZeRO-3.

transformers keeps one DeepSpeed configuration for the whole process. While one with stage 3 is alive, every
`from_pretrained` builds its model inside `deepspeed.zero.Init`: the weights come out as shape (0,), waiting to be
gathered by an engine that a reward's encoder or a merged copy never gets, and the first forward pass says
`'weight' must be 2-D`. Others met it in trl#600, trl#3202, ms-swift#4580 and Qwen-VL-Series-Finetune#212.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def outside_zero_init() -> Iterator[None]:
    """Models loaded in this block come out whole; the process's DeepSpeed configuration is back after it."""
    # A configuration can only be alive where this module was imported; importing it here would cost seconds.
    deepspeed = sys.modules.get("transformers.integrations.deepspeed")
    reference = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    config = reference() if reference is not None else None
    if deepspeed is None or config is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)
