"""Prediction tables in one short line for each row, and a tiny Qwen2.5-VL with random weights."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vqa_grpo.contract.verdict import Prediction, prediction_schema

WRONG = Prediction(
    id="",
    type="color",
    question="what color is it?",
    gold="red",
    completion="It looks blue.",
    completion_tokens=10,
    outcome="no_json",
    format_reward=0.0,
    answer=None,
    steps=[],
    correct=False,
    reward=0.0,
    gold_type="text",
    rule="no_answer",
    explanation="",
    reasoning_f1=None,
)
READ = replace(WRONG, outcome="valid", answer="blue", rule="text_exact")
RIGHT = replace(READ, answer="red", correct=True, reward=1.0)
WRAPPED = replace(RIGHT, outcome="wrapped")
LETTERS = {"-": WRONG, "x": READ, "o": RIGHT, "w": WRAPPED}


def table(letters: str, types: str = "", **changes: Any) -> pa.Table:
    """- not readable, x read and wrong, o read and right, w right with text around it; `types` has one for each row."""
    rows = [
        replace(LETTERS[letter], id=f"q{index}", **({"type": types[index]} if types else {}), **changes)
        for index, letter in enumerate(letters)
    ]
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=prediction_schema())


PAD, END = "<|endoftext|>", "<|im_end|>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path, *, corpus: list[str] | None = None, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from vqa_grpo.models import image_only

    image_only.install()
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        corpus or [],
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, pad_token=PAD)
    token = tokenizer.convert_tokens_to_ids
    vocabulary = len(tokenizer)
    torch.manual_seed(seed)
    quarter = hidden // 32
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [hidden // 8 - 2 * (quarter * 3 // 2), quarter * 3 // 2, quarter * 3 // 2],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
            "out_hidden_size": hidden,
            "window_size": 64,
            "fullatt_block_indexes": [0],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=vocabulary + 1,
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    pixels = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, temporal_patch_size=1, min_pixels=32 * 32, max_pixels=64 * 64
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(5)  # at the stock scale a narrow model says the same whatever it is asked
    model.save_pretrained(folder)
    Qwen2_5_VLProcessor(pixels, tokenizer, None, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(name="table", scope="session")
def _table() -> Callable[..., pa.Table]:
    return table


@pytest.fixture(name="picture", scope="session")
def _picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every code path of a real Qwen2.5-VL with a byte-level tokenizer, built in a second."""
    return build(tmp_path_factory.mktemp("tiny-vlm"))
