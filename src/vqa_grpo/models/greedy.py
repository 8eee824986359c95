"""Plain greedy decoding, the same for a model that is evaluated and for one that is validated while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def decoding(model: Any, tokenizer: Any, max_new_tokens: int) -> Iterator[frozenset[int]]:
    """Within this block the model decodes greedily and nothing else; gives the tokens that end a completion.

    A model folder's own generation settings (Qwen's repetition penalty, say) do not apply.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    end = own.eos_token_id
    ends = {tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])} - {None}
    # Set on the model rather than passed to generate(), which would fill unset fields from the model's own settings.
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends),
        bos_token_id=tokenizer.bos_token_id,
    )
    try:
        yield frozenset(ends)
    finally:
        model.generation_config = own


def complete(model: Any, processor: Any, conversations: Sequence[Any], **options: Any) -> list[list[int]]:
    """The new tokens of each conversation, padding included; `options` go to `generate`."""
    import torch

    inputs = processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    ).to(model.device, model.dtype)
    # Not inference_mode: what a module remembers from it (position tables, say) could never meet a backward pass.
    with torch.no_grad():
        output = model.generate(**inputs, **options)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def question(image: Any, text: str) -> list[dict[str, Any]]:
    """One picture and its question as a conversation."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def length(tokens: Sequence[int], ends: frozenset[int]) -> int | None:
    """How long a completion is with its end token, as TRL counts; None when it was cut off.

    >>> length([5, 6, 2, 0, 0], frozenset({2})), length([5, 6, 7], frozenset({2}))
    (3, None)
    """
    return next((index + 1 for index, token in enumerate(tokens) if token in ends), None)
