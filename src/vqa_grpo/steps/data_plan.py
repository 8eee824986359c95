"""What the data steps share: everything that a configuration says of its data, and where their results lie."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_grpo import config as configuration
from vqa_grpo.config import RunConfig
from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.contract.layout import key_of, step_uri
from vqa_grpo.steps.shared import EASY_VQA
from vqa_grpo.storage import publish

if TYPE_CHECKING:
    from vqa_grpo.data.convert import ConvertedData
    from vqa_grpo.data.resize import Resize
    from vqa_grpo.data.rules import Rules
    from vqa_grpo.data.source import Part, Source
    from vqa_grpo.data.splits import SplitRule

THRESHOLDS = ("max_invalid_fraction", "max_fractions")  # what decides whether data are good enough, not what they are
CHECKED = ("max_visual_tokens", "min_side")


@dataclass(frozen=True)
class DataPlan:
    """Everything about the data that a configuration says: where it is, what a row must be like, how it is split.

    `data_config` is what decides the converted data, as JSON, and `checks` what decides whether it is good enough.
    """

    data_config: str
    checks: str

    @classmethod
    def of(cls, run: RunConfig) -> DataPlan:
        from vqa_grpo.models.families import family_of

        data = run.data.model_dump(mode="json")
        family = family_of(run.model.base)
        rules = {name: data.pop(name) for name in CHECKED} | {
            "family": family.name if family else "",
            "min_pixels": run.model.min_pixels,
            "max_pixels": run.model.max_pixels,
        }
        checks = {name: data.pop(name) for name in THRESHOLDS} | {"wants_steps": "reasoning" in run.rewards.functions}
        return cls(json.dumps({"data": data, "rules": rules}, sort_keys=True), json.dumps(checks, sort_keys=True))

    @property
    def data(self) -> configuration.Data:
        return configuration.Data(**json.loads(self.data_config)["data"])

    @property
    def rules(self) -> Rules:
        from vqa_grpo.data.rules import Rules

        return Rules(**json.loads(self.data_config)["rules"], **json.loads(self.checks or "{}"))

    @property
    def split_rule(self) -> SplitRule:
        from vqa_grpo.data.splits import SplitRule

        return SplitRule(self.data.split_seed, self.data.validation_fraction, self.data.test_fraction)

    def convert(self, source: Source, index: Path, out: Path, part: Part) -> ConvertedData:
        from vqa_grpo.data.convert import convert

        return convert(
            source,
            index,
            self.split_rule,
            out,
            part=replace(part, limit=self.data.limit),
            shard_bytes=self.data.shard_megabytes * 1_000_000,
            resize=self._resize,
        )

    @property
    def _resize(self) -> Resize | None:
        from vqa_grpo.data.resize import Resize

        rules = self.rules
        if not self.data.resize:
            return None
        if not rules.family:
            raise ConfigurationError(
                "data.resize needs a model of a known family, to know what its processor does: leave it out"
            )
        return Resize(rules.max_pixels, rules.min_pixels, rules.family)


def open_source(data: configuration.Data) -> Source:
    """The source, or the mixture, that a configuration names."""
    from vqa_grpo.data import sources

    return sources.open_source(data, builtin_source)


def builtin_source(name: str) -> Source:
    if name != EASY_VQA:
        raise ConfigurationError(f"data.source {name!r} is not built in: the one that is, is {EASY_VQA}")
    from vqa_grpo.quickstart import easy_vqa

    return easy_vqa.source()


def unchanged(plan: DataPlan, fingerprint: str) -> Source:
    source = open_source(plan.data)
    if source.fingerprint != fingerprint:
        raise ConfigurationError(f"{source.name} changed since this run looked at it: start the run again")
    return source


# --- where results lie ------------------------------------------------------------------------------------------


def data_uri(plan: DataPlan, fingerprint: str, root: str, code: str) -> str:
    """The folder of what depends on the data alone."""
    return step_uri(root, "data-" + key_of(json.loads(plan.data_config), fingerprint, code), "").rstrip("/")


def validation_uri(data_uri: str, wants_steps: bool) -> str:
    return f"{data_uri}/{'validate-with-steps' if wants_steps else 'validate'}"


def figures(converted: ConvertedData) -> dict[str, Any]:
    """What a converted data set's result says of it; the rest stands in its conversion.json."""
    facts = asdict(converted)
    return {name: facts[name] for name in ("digest", "splits", "left_out", "held_out", "resized")}


@contextmanager
def broken_off(uri: str) -> Iterator[Path]:
    """A folder of this machine for a conversion, the same in every attempt, so that one that was killed goes on.

    An attempt beside one that still runs gets a folder of its own.
    """
    place = publish.work_folder() / f"convert-{key_of(uri)}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with publish.scratch(publish.work_folder()) as folder:
                yield folder
            return
        yield place
        shutil.rmtree(place, ignore_errors=True)
