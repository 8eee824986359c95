"""From the names of `--reward_funcs` to functions that TRL can call; before that, whether the settings can work."""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.rewards.guard import guarded
from vqa_grpo.rewards.settings import LEXICAL, RewardSettings
from vqa_grpo.rewards.vqa import NAMES, VQARewards
from vqa_grpo.scoring import steps

_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_MODEL_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def check(options: Mapping[str, Any], *, local: bool = True) -> RewardSettings:
    """The settings of a run's rewards, after everything that can be known without a network, torch or foreign code.

    `options` are the trainer's, by its names (`reward_funcs`, `reward_weights`, `reward_combination`, `format_reward`,
    `step_encoder`, `use_judge`, `judge_url`, …); one left out has its default. `local` says whether training will see
    this machine's files: if not, folders are not looked for. Raises ConfigurationError for the first thing that cannot
    work: a reward function that stands for nothing or twice, weights that do not fit, a step encoder that is neither a
    model's name nor a folder that holds one, a judge's url or patience.

    >>> check({"reward_funcs": ["format", "accuracy"], "reward_weights": [1.0, 2.0]}).combination
    'additive'
    """
    names = options.get("reward_funcs", ("format", "accuracy"))
    labels = [_path_of(name)[1].rpartition(".")[2] if name not in NAMES else name for name in names]
    if not labels:
        raise ConfigurationError(f"no reward function: give --reward_funcs at least one of {', '.join(NAMES)}")
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigurationError(_twice(label))
    weights = options.get("reward_weights") or ()
    if weights and len(weights) != len(labels):
        raise ConfigurationError(
            f"--reward_weights has {len(weights)} numbers for {len(labels)} rewards ({', '.join(names)}): "
            "give one for each, in this order"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise ConfigurationError(f"--reward_weights {list(weights)} must be finite numbers")
    settings = RewardSettings.from_options(options)
    _check_encoder(settings.step_encoder, local)
    cache = Path(settings.judge.cache_dir) if settings.judge and settings.judge.cache_dir and local else None
    if cache and cache.exists() and not cache.is_dir():
        raise ConfigurationError(f"--judge_cache_dir {str(cache)!r} is a file: name a folder")
    return settings


def load_rewards(names: Sequence[str], settings: RewardSettings | None = None) -> list[Callable[..., Any]]:
    """The named rewards in order: ours by name, anyone else's as `package.module:function`.

    `settings` change ours alone: a reward of somebody else's stays as it is. Raises ConfigurationError for a name
    that stands for nothing, stands twice, or cannot be imported.
    """
    check({"reward_funcs": names})
    settings = settings or RewardSettings()
    if "reasoning" in names:
        # Else the first round would find out.
        _check_encoder(settings.step_encoder, local=True)
        steps.check(*settings.step_match)
    ours = VQARewards(settings).functions()
    rewards = [ours[name] if name in ours else _imported(name) for name in names]
    labels = [reward.__name__ for reward in rewards]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigurationError(_twice(label))
    return rewards


def _imported(name: str) -> Callable[..., Any]:
    module, attribute = _path_of(name)
    try:
        function = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except Exception as error:  # importing foreign code can fail in any way
        raise ConfigurationError(
            f"reward function {name!r} cannot be imported ({type(error).__name__}: {error}): "
            "check the name and PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigurationError(f"reward function {name!r} is a {type(function).__name__}, not a function")
    return guarded(function)


def _twice(label: str) -> str:
    return f"two reward functions are called {label!r}: their scores could not be told apart, so rename or drop one"


def _path_of(name: str) -> tuple[str, str]:
    """Module and attribute of somebody else's reward, `package.module:function`. Raises ConfigurationError."""
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if not _DOTTED.fullmatch(module) or not _DOTTED.fullmatch(attribute):
        close = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "give one of ours, or your own as package.module:function"
        raise ConfigurationError(f"unknown reward function {name!r} (ours: {', '.join(NAMES)}): {hint}")
    return module, attribute


def _check_encoder(name: str, local: bool) -> None:
    thing = f"--step_encoder {name!r}"
    if name in ("", LEXICAL):
        return
    if name.casefold() == LEXICAL:
        raise ConfigurationError(f"{thing} is unknown: write {LEXICAL!r}")
    if name.startswith("~"):
        raise ConfigurationError(f"{thing}: nobody replaces the ~ here, write the whole path")
    if "://" in name or not (_MODEL_NAME.fullmatch(name) or name.startswith((".", "/")) or name.count("/") > 1):
        raise ConfigurationError(
            f"{thing} is neither a model's name, such as sentence-transformers/all-MiniLM-L6-v2, nor a folder: "
            "give one of them, or lexical"
        )
    is_name = _MODEL_NAME.fullmatch(name) and not name.startswith(".")
    if not local or (is_name and not Path(name).exists()):
        return
    if not any((Path(name) / file).is_file() for file in ("modules.json", "config.json")):
        raise ConfigurationError(
            f"{thing} is no folder with a sentence-transformers model (modules.json or config.json): check the path"
        )
