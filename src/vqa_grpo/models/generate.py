"""Greedy completions, as evaluation measures them and as a published model is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def only_greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> frozenset[int]:
    """Replace the model's generation settings by plain greedy decoding; the tokens that end a completion."""
    from transformers import GenerationConfig

    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    # Set on the model rather than passed to generate(), which would fill unset fields from the model's own settings.
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends),
        bos_token_id=tokenizer.bos_token_id,
    )
    return frozenset(ends)


def complete(model: Any, processor: Any, asked: Sequence[tuple[Any, str]]) -> list[list[int]]:
    """The new tokens, padding included, for each picture (RGB) and text of the user's turn."""
    import torch

    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
        for picture, text in asked
    ]
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    ).to(model.device, model.dtype)
    with torch.inference_mode():
        output = model.generate(**inputs)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def before_end(tokens: Sequence[int], ends: frozenset[int]) -> int | None:
    """How many tokens a completion has, its end token included; None for one that was cut off at the limit."""
    return next((index + 1 for index, token in enumerate(tokens) if token in ends), None)
