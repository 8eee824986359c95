"""The model being trained: load it, freeze its vision tower, wrap it for LoRA, and write it out whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.models.families import vision_modules_of
from vqa_grpo.models.load import load_model
from vqa_grpo.models.zero_init import outside_zero_init

if TYPE_CHECKING:
    from trl import GRPOTrainer, ModelConfig

    from vqa_grpo.training.arguments import Arguments

DEFAULT_LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


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
        freeze_vision(policy, source)
    return policy


def load_processor(source: str, min_pixels: int, max_pixels: int, revision: str = "main") -> Any:
    from vqa_grpo.models import load

    try:
        return load.load_processor(source, min_pixels, max_pixels, revision)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the processor of {source}: {' '.join(str(error).split())[:400]}") from error


def freeze_vision(model: Any, source: str) -> int:
    """Take the vision tower out of training; returns how many parameters that are."""
    tower = vision_parameters(model, source)
    for parameter in tower:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in tower)


def vision_parameters(model: Any, source: str) -> list[Any]:
    """The vision tower's parameters. ConfigurationError where the model has no such tower."""
    pattern = vision_pattern(source)
    found = [parameter for name, parameter in model.named_parameters() if re.fullmatch(pattern, name)]
    if not found:
        raise ConfigurationError(
            f"--freeze_vision_modules: {type(model).__name__} has no module called "
            f"{' or '.join(vision_modules_of(source))}: leave the option out"
        )
    return found


def vision_pattern(source: str) -> str:
    """What matches the full name of each module and parameter of a base model's vision tower."""
    return rf"(.*\.)?({'|'.join(map(re.escape, vision_modules_of(source)))})(\..*)?"


def peft_config(model: ModelConfig, source: str, vision: bool = False) -> Any | None:
    """How LoRA is applied, None where it is not; the vision tower is left out unless `vision` lets it in."""
    from trl import get_peft_config

    config: Any = get_peft_config(model)
    if config is None:
        return None
    if config.target_modules is None and not model.lora_target_parameters:
        config.target_modules = set(DEFAULT_LORA_TARGETS)
    # PEFT reads a string as a pattern of whole paths, and TRL makes one of a list with a single name.
    if isinstance(config.target_modules, str) and re.fullmatch(r"(?!all-linear$)[\w.-]+", config.target_modules):
        config.target_modules = {config.target_modules}
    if not vision:
        config.exclude_modules = vision_pattern(source)
    return config


def adapted_modules(model: Any, config: Any) -> list[str]:
    """The names of the modules that LoRA will reach. ConfigurationError for a target that names none of them.

    `model` may be empty of weights: only names and shapes count.
    """
    from peft.tuners.tuners_utils import check_target_module_exists
    from torch import nn

    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)]
    open_ones = [name for name in layers if not re.fullmatch(config.exclude_modules or "", name)]
    if config.target_modules in (None, "all-linear"):
        linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
        return [name for name in open_ones if name in linear]
    targets = config.target_modules if isinstance(config.target_modules, set | list) else [config.target_modules]
    reached = [name for name in layers if check_target_module_exists(config, name)]
    for target in sorted(targets):
        pattern = target if isinstance(config.target_modules, str) else rf"(.*\.)?{re.escape(target)}"
        if not any(re.fullmatch(pattern, name) for name in reached):
            raise ConfigurationError(
                f"--target_modules {target}: {type(model).__name__} has no such layer to train; it has "
                f"{', '.join(sorted({name.rsplit('.', 1)[-1] for name in open_ones} - {'lm_head'}))}"
            )
    return reached


def save(trainer: GRPOTrainer, processor: Any, source: str, arguments: Arguments) -> Path:
    """Write the final model, whole and with its processor, into output_dir; every rank calls this.

    A LoRA adapter also goes into `adapter/`, and its weights into the base model, so that what is published can
    be loaded by anything that loads the base.
    """
    folder = Path(str(arguments.grpo.output_dir))
    save_weights(trainer, folder, arguments.model.use_peft)
    merge(trainer, folder, processor, source, arguments)
    return folder


def save_weights(trainer: GRPOTrainer, folder: Path, adapted: bool) -> None:
    """Write what training changes: all weights, or LoRA's adapter into `adapter/`. Every rank calls this."""
    trainer.save_model(str(folder / "adapter" if adapted else folder))


def merge(trainer: GRPOTrainer, folder: Path, processor: Any, source: str, arguments: Arguments) -> None:
    """Make a folder of `save_weights` whole: an adapter is put into the base model, by the first rank."""
    if arguments.model.use_peft and trainer.is_world_process_zero():
        merged(source, folder / "adapter", arguments).save_pretrained(str(folder))
        processor.save_pretrained(str(folder))


def merged(source: str, adapter: Path, arguments: Arguments) -> Any:
    """The base with the adapter's weights in its own. The base is read again, since the copy in memory may be
    quantised or split over the ranks: after QLoRA it is the unquantised one, as it will be served."""
    from peft import PeftModel

    with outside_zero_init():
        base = load_model(source, arguments.model.dtype, revision=arguments.model.model_revision)
        return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
