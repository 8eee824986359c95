"""A tiny random Qwen2.5-VL and a small easy-VQA data set, for the tests that really train."""

from __future__ import annotations

from pathlib import Path

PIECES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def dataset(folder: Path, count: int = 16, validation: int = 0) -> Path:
    """`count` easy-VQA questions in save_to_disk form: a train split, and one for validation where it gets any."""
    import datasets
    import easy_vqa

    questions, answers, pictures = (part[: count + validation] for part in easy_vqa.get_train_questions())
    paths = easy_vqa.get_train_image_paths()
    rows = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": Path(paths[picture]).read_bytes(), "path": None} for picture in pictures],
            "question": questions,
            "answer": answers,
            "reference_steps": [[f"The answer is {answer}."] for answer in answers],
        }
    ).cast_column("image", datasets.Image())
    splits = {"train": rows.select(range(count))}
    if validation:
        splits["validation"] = rows.select(range(count, count + validation))
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def model(folder: Path) -> Path:
    """A random Qwen2.5-VL of about 100,000 parameters with a byte-level tokenizer."""
    from vqa_grpo.models import image_only

    image_only.install()
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(special_tokens=PIECES, initial_alphabet=alphabet))
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", **ends)
    piece = tokenizer.convert_tokens_to_ids
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "eos_token_id": piece("<|im_end|>"),
            "bos_token_id": None,
            "pad_token_id": piece("<|endoftext|>"),
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
            "out_hidden_size": 64,
            "window_size": 64,
            "fullatt_block_indexes": [0],
        },
        image_token_id=piece("<|image_pad|>"),
        vision_start_token_id=piece("<|vision_start|>"),
        vision_end_token_id=piece("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, temporal_patch_size=1, min_pixels=32 * 32, max_pixels=64 * 64
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2_5_VLProcessor(images, tokenizer, None, chat_template=TEMPLATE).save_pretrained(folder)
    return folder
