"""What LoRA reaches, what a merged model computes, what a frozen tower keeps, and what the pixel bounds do."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import warm
from PIL import Image

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.models.families import FAMILIES, USUAL_VISION_MODULES, vision_modules_of
from vqa_grpo.models.load import load_model, load_processor, outline
from vqa_grpo.training import policy


def wanted(**more: Any) -> Any:
    from trl import ModelConfig

    return ModelConfig(use_peft=True, dtype="float32", **more)


def asked(model: Path, processor: Any) -> Any:
    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    return processor(images=[picture], text=[text], return_tensors="pt")


@pytest.mark.parametrize("targets", [None, ["gate_proj", "q_proj"], ["all-linear"], ["q_proj"], [r".*\.(qkv|q_proj)"]])
def test_the_vision_tower_stays_out_of_lora_unless_it_is_let_in(tiny_model: Path, targets: list[str] | None) -> None:
    from peft import get_peft_model

    for vision in (False, True):
        config = policy.peft_config(wanted(lora_target_modules=targets), str(tiny_model), vision)
        foretold = policy.adapted_modules(outline(str(tiny_model)), config)
        adapted = get_peft_model(load_model(str(tiny_model)), config)
        parts = [name.removeprefix("base_model.model.") for name, _ in adapted.named_parameters() if "lora_A" in name]
        reached = {name.split(".lora_A")[0] for name in parts}
        assert reached == set(foretold)
        named = targets in (["gate_proj", "q_proj"], ["all-linear"], [r".*\.(qkv|q_proj)"])
        assert any("visual" in name for name in reached) == (vision and named)
        assert not any("lm_head" in name for name in reached)


@pytest.mark.parametrize("target", ["nowhere", "qkv", r".*nowhere"])
def test_a_target_that_reaches_no_layer_is_named_with_those_there_are(tiny_model: Path, target: str) -> None:
    config = policy.peft_config(wanted(lora_target_modules=["q_proj", target]), str(tiny_model))
    with pytest.raises(ConfigurationError, match="has down_proj, gate_proj, k_proj") as refused:
        policy.adapted_modules(outline(str(tiny_model)), config)
    assert f"--target_modules {target}" in str(refused.value)


def test_the_merged_model_computes_what_the_adapter_does(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from peft import get_peft_model

    config = policy.peft_config(wanted(lora_r=16, lora_alpha=32), str(tiny_model))
    config.init_lora_weights = False  # an adapter that changes something
    adapted = get_peft_model(load_model(str(tiny_model)), config).eval()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    arguments: Any = SimpleNamespace(model=wanted())
    policy.merged(str(tiny_model), tmp_path / "adapter", arguments).save_pretrained(str(tmp_path / "whole"))
    inputs = asked(tiny_model, load_processor(str(tiny_model)))
    with torch.no_grad():
        base = load_model(str(tiny_model)).eval()(**inputs).logits
        own = adapted(**inputs).logits
        whole = load_model(str(tmp_path / "whole")).eval()(**inputs).logits
    assert not torch.allclose(own, base, atol=1e-2)
    torch.testing.assert_close(whole, own, atol=1e-4, rtol=1e-4)


def test_freezing_takes_exactly_the_familys_tower(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    tower = sum(value.numel() for name, value in model.named_parameters() if "visual" in name)
    assert policy.freeze_vision(model, str(tiny_model)) == tower > 0
    assert all(value.requires_grad == ("visual" not in name) for name, value in model.named_parameters())
    with pytest.raises(ConfigurationError, match="no module called visual"):
        policy.freeze_vision(model.model.language_model, str(tiny_model))


def test_each_familys_tower_is_called_what_it_declares(tiny_model: Path) -> None:
    names = {
        name.split(".")[1] for name, _ in load_model(str(tiny_model)).named_parameters() if name.startswith("model")
    }
    assert set(FAMILIES["tiny"].vision_modules) <= names
    assert vision_modules_of("Qwen/Qwen2-VL-2B-Instruct") == ("visual",)
    assert vision_modules_of("llava-hf/llava-1.5-7b-hf") == USUAL_VISION_MODULES


@pytest.mark.parametrize("bounds", [(1024, 4096), (1024, 2048), (16_384, 65_536), (3136, 12_845_056)])
def test_a_picture_becomes_as_many_tokens_as_the_pixel_bounds_allow(tiny_model: Path, bounds: tuple[int, int]) -> None:
    processor = policy.load_processor(str(tiny_model), *bounds)
    sign = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for size in [(64, 64), (200, 100), (32, 320)]:
        text = "<|vision_start|><|image_pad|><|vision_end|>"
        made = processor(images=[Image.new("RGB", size)], text=[text], return_tensors="pt")
        assert int((made["input_ids"] == sign).sum()) == FAMILIES["tiny"].visual_tokens(*size, *bounds)


def test_processor_and_weights_are_of_the_revision_that_was_asked_for(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    asked_for = {}
    for auto in (transformers.AutoProcessor, transformers.AutoModelForImageTextToText):
        own = auto.from_pretrained

        def noted(path: str, auto: Any = auto, own: Any = own, **options: Any) -> Any:
            asked_for[auto.__name__] = options.get("revision")
            return own(path, **options)

        monkeypatch.setattr(auto, "from_pretrained", noted)
    policy.load_processor(str(tiny_model), 3136, 4096, "v2")
    arguments: Any = SimpleNamespace(
        model=wanted(model_revision="v2"), vqa=SimpleNamespace(freeze_vision_modules=False), grpo=None
    )
    policy.load(str(tiny_model), arguments)
    assert asked_for == {"AutoProcessor": "v2", "AutoModelForImageTextToText": "v2"}


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs pip install 'vqa-grpo[qlora]'")
def test_a_4_bit_base_trains_an_adapter_goes_on_with_it_and_leaves_the_merged_model(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    from vqa_grpo.training.__main__ import main

    argv = warm.options(tiny_model, tiny_dataset, tmp_path / "out", "--save_steps", "2")
    argv += ["--use_peft", "--load_in_4bit", "--target_modules", "q_proj", "v_proj", "--max_steps"]
    assert main([*argv, "2"]) == 0
    assert main([*argv, "3", "--resume_from_checkpoint", "true"]) == 0
    moved = load_model(str(tmp_path / "out")).state_dict()
    before = load_model(str(tiny_model)).state_dict()
    assert {name.split(".")[-2] for name in before if not before[name].equal(moved[name])} == {"q_proj", "v_proj"}
