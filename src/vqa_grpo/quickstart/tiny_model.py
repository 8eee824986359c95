"""A Qwen2.5-VL of about a million parameters, its tokenizer and its processor, made from configuration alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vqa_grpo.contract.prompt import PromptTemplate
from vqa_grpo.contract.record import Record
from vqa_grpo.models import image_only
from vqa_grpo.quickstart.facts import ANSWERS
from vqa_grpo.quickstart.recipes import Recipe
from vqa_grpo.quickstart.targets import json_answer, prose_answer

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE, VIDEO)

_HEADS = 4
_PATCH, _MERGE = 16, 2  # a 64 x 64 picture becomes 16 patches and 4 tokens
_CONTEXT = 2048

_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def train_tokenizer(rows: Sequence[Record], prompt: PromptTemplate, recipe: Recipe, seed: int) -> Any:
    """A byte-level BPE tokenizer: it can write any text, and the quickstart's own texts in few tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Words keep the space before them; a run of punctuation is one piece, so that `":` and `"]` become tokens.
    pieces = Regex(r" ?[A-Za-z_]+| ?[0-9]+| ?[^\sA-Za-z0-9_]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(rows, prompt, recipe, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _corpus(rows: Sequence[Record], prompt: PromptTemplate, recipe: Recipe, seed: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer {seed}")
    sample = rng.sample(rows, min(recipe.tokenizer_rows, len(rows)))
    for row in sample:
        yield prompt.render(row.question)
        yield json_answer(row)
        yield prose_answer(row, rng)
    # Every answer must be a single token, in JSON (after a quote) and in prose (after a space): the vision
    # warm-up ties picture features to these tokens, and the loss weighs them.
    for word in ANSWERS:
        yield from (f"{word} {word}" for _ in range(len(sample)))


def build_processor(tokenizer: Any) -> Any:
    """The image-only Qwen2.5-VL processor: its pixel side works on PIL and numpy, without torchvision."""
    image_only.install(saved=False)
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image_processor = Qwen2VLImageProcessorPil(
        patch_size=_PATCH,
        merge_size=_MERGE,
        temporal_patch_size=1,
        size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64},
    )
    return Qwen2_5_VLProcessor(image_processor, tokenizer, None, chat_template=_CHAT_TEMPLATE)


def build_model(tokenizer: Any, recipe: Recipe, seed: int) -> Any:
    """The model with fresh weights, in float32."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    width, rotary = recipe.width, recipe.width // _HEADS // 2
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": recipe.text_layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS // 2,
        "max_position_embeddings": _CONTEXT,
        "tie_word_embeddings": True,
        "initializer_range": recipe.init_std,
        "bos_token_id": None,
        "eos_token_id": token(TURN_END),
        "pad_token_id": token(PAD),
        # How many rotary frequencies follow time, row and column: the shares of the large models.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [rotary // 4, rotary * 3 // 8, rotary * 3 // 8],
        },
    }
    vision = {
        "depth": recipe.vision_layers,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_heads": _HEADS,
        "patch_size": _PATCH,
        "spatial_merge_size": _MERGE,
        "temporal_patch_size": 1,
        "out_hidden_size": width,
        "window_size": _PATCH * _MERGE * 2,
        "fullatt_block_indexes": list(range(recipe.vision_layers)),
        "initializer_range": recipe.init_std,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token(IMAGE),
        video_token_id=token(VIDEO),
        vision_start_token_id=token(VISION_START),
        vision_end_token_id=token(VISION_END),
        tie_word_embeddings=True,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token(TURN_END)
    model.generation_config.pad_token_id = token(PAD)
    return model
