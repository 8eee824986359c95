"""From the names of `--reward_funcs` to functions that TRL can call."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.rewards.guard import guarded
from vqa_grpo.rewards.settings import RewardSettings
from vqa_grpo.rewards.vqa import NAMES, VQARewards
from vqa_grpo.scoring import steps


def load_rewards(names: Sequence[str], settings: RewardSettings | None = None) -> list[Callable[..., Any]]:
    """The named rewards in order: ours by name, anyone else's as `package.module:function`.

    `settings` change ours alone: a reward of somebody else's stays as it is. Raises ConfigurationError for a name
    that stands for nothing, stands twice, or cannot be imported.
    """
    if not names:
        raise ConfigurationError(f"no reward function: give --reward_funcs at least one of {', '.join(NAMES)}")
    settings = settings or RewardSettings()
    if "reasoning" in names:
        steps.check(*settings.step_match)  # else the first round would find out
    ours = VQARewards(settings).functions()
    rewards = [ours[name] if name in ours else _imported(name) for name in names]
    labels = [reward.__name__ for reward in rewards]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigurationError(f"two reward functions are called {label!r}: their scores could not be told apart")
    return rewards


def _imported(name: str) -> Callable[..., Any]:
    module, separator, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if not separator or not module or not attribute:
        close = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "give one of ours, or your own as package.module:function"
        raise ConfigurationError(f"unknown reward function {name!r} (ours: {', '.join(NAMES)}): {hint}")
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
