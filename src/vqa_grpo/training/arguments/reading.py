"""From words to settings: the parser, the YAML of `--config`, and how an option may be spelled."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.training.arguments.fields import VQAArguments

if TYPE_CHECKING:
    from trl import TrlParser

ALIASES = {
    "target_modules": "lora_target_modules",
    "torch_dtype": "dtype",
    "use_llm_judge": "use_judge",
    "llm_judge_model": "judge_model",
    "llm_judge_base_url": "judge_url",
}
REFUSED = {
    "max_prompt_length": "TRL no longer cuts prompts, and a cut would lose image tokens: "
    "bound the picture with --max_pixels and leave long questions out of the data set",
    "trust_remote_code": "models load from transformers itself, never from code in a repository: "
    "name a model that transformers supports natively",
    "image_root": "pictures lie inside the data set: write it with save_to_disk",
    "data_file_paths": "data comes as a save_to_disk folder: give it as --dataset_name",
    "max_anyres_num": "only InternVL checkpoints with remote code use it: give --max_pixels",
}


@dataclass
class Reading:
    """Settings by name, which of them somebody gave, and what was decided for the user, in sentences."""

    values: dict[str, Any]
    given: set[str]
    notes: list[str] = field(default_factory=list)


def settings(argv: list[str], parser: TrlParser | None = None) -> Reading:
    """What the words say, before any rule has looked at it. ConfigurationError for an option that is none."""
    parser = parser or make_parser()
    flags, from_file = _split_config(argv)
    tokens = [*_canonical(parser, from_file, "the configuration file"), *_canonical(parser, flags, "the command line")]
    namespace, rest = parser.parse_known_args(tokens)
    if rest:
        raise ConfigurationError(f"unexpected argument {rest[0]!r}: an option starts with --")
    actions = parser._option_string_actions
    given = {actions[name].dest for token in tokens if (name := token.split("=")[0]) in actions}
    return Reading({name: value for name, value in vars(namespace).items() if name != "config"}, given)


def make_parser() -> TrlParser:
    from trl import GRPOConfig, ModelConfig, TrlParser
    from trl.scripts._hf_argparser import string_to_bool

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigurationError(message)

    dataclasses: Any = (VQAArguments, GRPOConfig, ModelConfig)
    parser = Parser(
        dataclasses,
        prog="python -m vqa_grpo.training",
        description="Post-train a vision-language model on visual question answering with GRPO.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of options; the command line wins over it.")
    for action in parser._actions:
        # The parser of transformers takes a bare --bf16 only where the default is not None.
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True
        if action.dest == "report_to":  # a list or a text for TRL, of which its parser knows the text alone
            action.nargs = "+"
    return parser


def _split_config(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command line without --config, and the flags that the YAML file stands for."""
    flags: list[str] = []
    from_file: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        name, _, value = token.partition("=")
        if name != "--config":
            flags.append(token)
            continue
        path = value or next(tokens, "")
        from_file = _flags_of(path)
    return flags, from_file


def _flags_of(path: str) -> list[str]:
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ConfigurationError(f"--config {path} must hold a mapping of option to value")
    environment = settings.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise ConfigurationError(f"--config {path}: env must be a mapping of variable to value")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    flags: list[str] = []
    for name, value in settings.items():
        flags += _flag(str(name), value)
    return flags


def _flag(name: str, value: Any) -> list[str]:
    """One YAML setting as the flag it stands for, so that file and command line go through the same checks."""
    if value is None:
        return []
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)] if value else []
    return [f"--{name}={value}"]


def _canonical(parser: TrlParser, tokens: list[str], origin: str) -> list[str]:
    """Spell every option its one way, and refuse the unknown and the impossible ones."""
    known = parser._option_string_actions
    spelled = []
    for token in tokens:
        if not token.startswith("--"):
            spelled.append(token)
            continue
        raw, equals, value = token[2:].partition("=")
        name = raw.replace("-", "_")
        name = ALIASES.get(name, name)
        if name in REFUSED and value.lower() != "false":
            raise ConfigurationError(f"--{name} cannot be used: {REFUSED[name]}")
        if f"--{name}" not in known and name not in REFUSED:
            names = {option.lstrip("-").replace("-", "_") for option in known} | set(ALIASES)
            close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.6)
            hint = f"did you mean --{close[0]}?" if close else "see --help for all of them"
            raise ConfigurationError(f"unknown option --{raw} in {origin}: {hint}")
        spelled.append(f"--{name}{equals}{value}")
    return spelled
