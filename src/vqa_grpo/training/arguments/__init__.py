"""The command line of a training run: our options, every GRPOConfig field and every ModelConfig field.

`read` turns flags and the YAML of `--config` into one dict of settings and applies the rules of this project to
it; `parse` makes TRL's dataclasses from that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.training import cpu
from vqa_grpo.training.arguments.fields import VQAArguments
from vqa_grpo.training.arguments.reading import Reading, make_parser, settings
from vqa_grpo.training.arguments.rules import PRESETS, RULES

if TYPE_CHECKING:
    from trl import GRPOConfig, ModelConfig, TrlParser

__all__ = ["PRESETS", "RULES", "Arguments", "Reading", "VQAArguments", "parse", "read", "settings"]


@dataclass
class Arguments:
    vqa: VQAArguments
    grpo: GRPOConfig
    model: ModelConfig
    notes: list[str]


def parse(argv: list[str]) -> Arguments:
    """Dataclasses for a run. Raises ConfigurationError for whatever cannot work, with the reason and the fix."""
    parser = make_parser()
    reading = read(argv, parser)
    cpu.start(reading.values)
    try:
        vqa, grpo, model = parser.parse_dict(reading.values)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise ConfigurationError(" ".join(str(error).split())) from error
    return Arguments(vqa, grpo, model, reading.notes)


def read(argv: list[str], parser: TrlParser | None = None) -> Reading:
    """The checked settings, before any dataclass is built: needs no GPU, no data set and no model."""
    reading = settings(argv, parser)
    for rule in RULES.values():
        rule(reading)
    return reading
