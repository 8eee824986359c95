"""The model being trained: load it, freeze its vision tower, wrap it for LoRA, and write it out whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.models.load import load_model
from vqa_grpo.models.zero_init import outside_zero_init

if TYPE_CHECKING:
    from trl import GRPOTrainer

    from vqa_grpo.training.arguments import Arguments

# The vision tower's name in Qwen-VL and GLM-V, in LLaVA and InternVL, in Idefics and SmolVLM.
VISION_MODULES = ("visual", "vision_tower", "vision_model")
VISION_PATTERN = rf"(.*\.)?({'|'.join(VISION_MODULES)})(\..*)?"
# Names that only language models use in the supported families, so that the vision tower stays as it is.
DEFAULT_LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def check_source(source: str) -> None:
    """Refuse a folder that holds no model, or one that runs only with code of its own."""
    folder = Path(source)
    if not folder.is_dir():
        if source.startswith(("/", ".", "~")):
            raise ConfigurationError(f"--model_name_or_path {source}: there is no such folder")
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--model_name_or_path {source} is no model folder: config.json: {error}") from None
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ConfigurationError(
            f"--model_name_or_path {source} has model_type {kind!r}, which transformers does not support natively; "
            "code in a repository is never executed: use a checkpoint in transformers' own format"
        )


def load(source: str, arguments: Arguments) -> Any:
    from trl import get_quantization_config

    model = arguments.model
    options: dict[str, Any] = {"revision": model.model_revision}
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
    if quantization := get_quantization_config(model):
        # bitsandbytes packs weights as they land, so each rank loads straight onto its own device.
        options |= {"quantization_config": quantization, "device_map": {"": arguments.grpo.device}}
    try:
        policy = load_model(source, model.dtype, **options)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--model_name_or_path {source}: {' '.join(str(error).split())[:400]}") from error
    if arguments.vqa.freeze_vision_modules:
        freeze_vision(policy)
    return policy


def freeze_vision(model: Any) -> int:
    """Take the vision tower out of training; returns how many parameters that are."""
    frozen = 0
    for name, parameter in model.named_parameters():
        if re.fullmatch(VISION_PATTERN, name):
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    if not frozen:
        raise ConfigurationError(
            f"--freeze_vision_modules: {type(model).__name__} has no module called {', '.join(VISION_MODULES)}: "
            "leave the option out"
        )
    return frozen


def peft_config(arguments: Arguments) -> Any | None:
    from trl import get_peft_config

    config: Any = get_peft_config(arguments.model)
    if config is None:
        return None
    if config.target_modules is None and not arguments.model.lora_target_parameters:
        config.target_modules = set(DEFAULT_LORA_TARGETS)
    if arguments.vqa.freeze_vision_modules:
        config.exclude_modules = VISION_PATTERN
    return config


def save(trainer: GRPOTrainer, processor: Any, source: str, arguments: Arguments) -> Path:
    """Write the final model, whole and with its processor, into output_dir; every rank calls this.

    A LoRA adapter also goes into `adapter/`, and its weights into the base model, so that what is published can
    be loaded by anything that loads the base. The base is read again for that: the copy in memory may be
    quantised or split over the ranks.
    """
    folder = Path(str(arguments.grpo.output_dir))
    save_weights(trainer, folder, arguments.model.use_peft)
    merge(trainer, folder, processor, source, arguments)
    return folder


def save_weights(trainer: GRPOTrainer, folder: Path, adapted: bool) -> None:
    """Write what training changes: all weights, or LoRA's adapter into `adapter/`. Every rank calls this."""
    trainer.save_model(str(folder / "adapter" if adapted else folder))


def merge(trainer: GRPOTrainer, folder: Path, processor: Any, source: str, arguments: Arguments) -> None:
    """Make a folder of `save_weights` whole: an adapter is put into the base model. Every rank calls this."""
    if not arguments.model.use_peft:
        return
    if trainer.is_world_process_zero():
        from peft import PeftModel

        with outside_zero_init():
            base = load_model(source, arguments.model.dtype, revision=arguments.model.model_revision)
            PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload().save_pretrained(str(folder))
        processor.save_pretrained(str(folder))
    trainer.accelerator.wait_for_everyone()
