"""One run configuration, checked whole before anything starts.

A configuration is a YAML file with the sections below (or the name of one that ships with the package),
changed by `section.key=value` settings. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vqa_grpo.contract.failure import ConfigurationError

SHIPPED = Path(__file__).parent / "configs"
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # PyYAML lets through what 2001-99-99 or 0b_ make Python raise
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (ValueError, TypeError, RecursionError):
        return False


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MixedSource(Section):
    """One of several sources that are trained on together."""

    source: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="rows of train in proportion, until the first source runs out; 0 for all means all rows"
    )
    columns: dict[str, str] = Field(default_factory=dict, description="as data.columns, and before it")
    name: Annotated[str, Field(pattern=r"^[\w.-]*$")] = Field(
        "", description="in row ids; empty takes the source's own"
    )

    def called(self) -> str:
        """
        >>> MixedSource(source="s3://bucket/charts/").called(), MixedSource(source="hub:org/name@main").called()
        ('charts', 'name')
        """
        last = re.split(r"[/:]", self.source.rstrip("/"))[-1].partition("@")[0].partition("#")[0]
        return self.name or re.sub(r"[^\w.-]", "-", last) or "source"


BUILT_IN_DATA = "builtin:easy-vqa"


class Data(Section):
    """Where the questions come from and how they are split."""

    source: str = Field(
        BUILT_IN_DATA,
        description="builtin:easy-vqa, a folder, file or s3://bucket/prefix of save_to_disk, Parquet, JSONL, CSV, TSV "
        "or WebDataset tar files, or hub:org/name[@revision][#config]",
    )
    limit: NotNegative = Field(0, description="use only about this many rows of each split; 0 means all")
    columns: dict[str, str] = Field(
        default_factory=dict, description="what the source calls our columns, where it has other names: ours → theirs"
    )
    mix: tuple[MixedSource, ...] = Field((), description="several sources, in the place of data.source")
    validation_fraction: Fraction = Field(0.1, description="share of the training pictures kept out for validation")
    test_fraction: Fraction = Field(
        0.1, description="share of the pictures for test where the source has no test split"
    )
    split_seed: int = Field(0, description="which pictures go where; not the training seed")
    max_invalid_fraction: Fraction = Field(0.02, description="more unusable rows than this stop the run")
    max_fractions: dict[str, Fraction] = Field(
        default_factory=dict, description="code of a problem → largest share of rows that may have it"
    )
    max_visual_tokens: Positive = Field(4096, description="a picture that takes more tokens makes its row unusable")
    min_side: Positive = Field(10, description="a picture with fewer pixels on a side makes its row unusable")
    resize: bool = Field(False, description="scale pictures beyond model.max_pixels down once, when converting")
    shard_megabytes: Positive = Field(500, description="size of the files of the converted data set")

    @model_validator(mode="before")
    @classmethod
    def _mix_instead_of_source(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or not tree.get("mix"):
            return tree
        # The built-in source is what a shipped configuration names, not a wish of the user's.
        if tree.get("source", "") not in ("", BUILT_IN_DATA):
            raise ValueError(f"both source {tree['source']!r} and mix are given: put it among those of mix")
        return tree | {"source": ""}

    @model_validator(mode="after")
    def _possible(self) -> Data:
        if not self.source and not self.mix:
            raise ValueError("source is empty: name one")
        for source in (self.source, *(part.source for part in self.mix)):
            scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
            if scheme and scheme[1] not in ("s3", "minio", "file"):  # the rest of it may hold a password
                raise ValueError(f"source: {scheme[1]}:// is not read: give a folder, a file, s3://… or hub:org/name")
        if self.validation_fraction + self.test_fraction > 1 + 1e-9:
            raise ValueError(
                f"validation_fraction {self.validation_fraction:g} and test_fraction {self.test_fraction:g} "
                "must be not more than 1 together"
            )
        if len({bool(part.weight) for part in self.mix}) > 1:
            raise ValueError("mix has sources with a weight and without: give every one a weight, or none")
        names = [part.called() for part in self.mix]
        twice = next((name for name in names if names.count(name) > 1), "")
        if twice:
            raise ValueError(f"mix has two sources called {twice!r}: give them a name each")
        return self


class Model(Section):
    """What is trained, and how it is asked."""

    base: str = Field("builtin:tiny", description="builtin:tiny, a local folder, s3://…, or a hub name[@revision]")
    recipe: Literal["full", "quick", "room-to-rise", "micro"] = Field(
        "full", description="how long builtin:tiny is warm-started"
    )
    prompt: str = Field("vqa", description="a shipped template (vqa, short) or a file with {USER_INSTRUCTION}")
    min_pixels: Positive = Field(3136, description="pictures are scaled up to at least this many pixels")
    max_pixels: Positive = Field(1280 * 28 * 28, description="pictures are scaled down to at most this many pixels")

    @model_validator(mode="after")
    def _possible(self) -> Model:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        return self


class Rewards(Section):
    functions: tuple[str, ...] = Field(("format", "accuracy"), description="format, accuracy, reasoning, or pkg.mod:fn")
    weights: tuple[float, ...] = Field((), description="one for each function; empty means 1 each")
    combination: Literal["additive", "gated"] = Field(
        "additive", description="gated pays reasoning only on top of a right answer"
    )
    format_mode: Literal["graded", "binary"] = Field(
        "graded", description="part marks, or 1 for the form whatever stands around it"
    )
    step_encoder: str = Field(
        "", description="a sentence-transformers name or folder, or lexical; empty is the packaged one"
    )

    @model_validator(mode="after")
    def _one_weight_each(self) -> Rewards:
        if self.weights and len(self.weights) != len(self.functions):
            raise ValueError(
                f"weights has {len(self.weights)} values for {len(self.functions)} functions: give one each"
            )
        if not self.functions:
            raise ValueError("functions is empty: name at least one reward")
        if self.weights and not any(self.weights):
            raise ValueError("weights are all 0, which rewards nothing: give one that is not")
        return self


class Judge(Section):
    """A second opinion on free-text answers that the rules call wrong. Its API key stands in the environment only."""

    enabled: bool = False
    url: str = Field("http://localhost:11434/v1", description="any OpenAI-compatible URL; the default is Ollama's")
    model: Annotated[str, Field(min_length=1)] = "llama3.2"
    timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    max_retries: Annotated[int, Field(ge=0, le=10)] = 2
    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(4, description="questions at once, in each process")
    cache_dir: str = Field("", description="folder of its verdicts; empty takes one in the user's cache")


# The names that the trainer takes for a preset it ships, whatever folder stands before them.
_DEEPSPEED = re.compile(r"(deepspeed_|ds_)?(config_)?zero([12]|3(_offload)?)(_config)?")


# What a run passes to its trainer from other parts of the configuration; `train.extra` must not undo it.
_SET_ELSEWHERE = {
    *("model_name_or_path", "dataset_name", "output_dir", "publish_uri", "prompt_template", "min_pixels", "max_pixels"),
    *("checkpoint_uri", "resume_from_checkpoint"),
    *("reward_funcs", "reward_weights", "seed", "reward_combination", "format_reward", "step_encoder", "use_judge"),
    *("judge_url", "judge_model", "judge_timeout", "judge_retries", "judge_concurrency", "judge_cache_dir"),
}


class Train(Section):
    """GRPO's main settings; `extra` takes any other field of TRL's GRPOConfig or ModelConfig by its own name."""

    max_steps: Annotated[int, Field(ge=-1)] = Field(-1, description="optimizer steps; -1 trains num_train_epochs")
    num_train_epochs: Annotated[float, Field(gt=0)] = 1.0
    per_device_train_batch_size: Positive = Field(8, description="completions per process and forward pass")
    gradient_accumulation_steps: Positive = 1
    num_generations: NotNegative = Field(
        0, description="completions per question; 0 takes the largest that fits, up to 8"
    )
    max_completion_length: Positive = Field(768, description="tokens")
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    lr_scheduler_type: str = "linear"
    warmup_steps: NotNegative = 0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the KL term; 0 needs no reference model")
    save_steps: NotNegative = Field(
        100, description="steps between two checkpoints, from which a retried run goes on; 0 makes none"
    )
    save_total_limit: Positive = Field(
        2, description="checkpoints in storage, the newest ones; none once the model is published"
    )
    validate_every: NotNegative = Field(
        100,
        description="steps between two scorings of held-out questions, by which the best weights are chosen; 0: none",
    )
    validation_sample: NotNegative = Field(200, description="questions of the validation split; 0 means all")
    guards: Literal["stop", "warn", "off"] = Field("stop", description="what happens when a run goes wrong")
    deepspeed: str = Field("", description="zero1, zero2, zero3, zero3_offload, or a JSON file; empty for none")
    extra: dict[str, Any] = Field(default_factory=dict)

    @field_validator("deepspeed")
    @classmethod
    def _a_preset_or_a_file(cls, name: str) -> str:
        """A file may be one that the trainer's image alone has."""
        stem = Path(name).stem.lower().replace("-", "_")
        if name and not name.endswith(".json") and not _DEEPSPEED.fullmatch(stem):
            raise ValueError("neither zero1, zero2, zero3 or zero3_offload, nor the name of a JSON file")
        return name

    @field_validator("extra")
    @classmethod
    def _json_only(cls, extra: dict[str, Any]) -> dict[str, Any]:
        """YAML knows dates, bytes and infinities, which a run's canonical JSON cannot hold."""
        for key, value in extra.items():
            if key in cls.model_fields or key in _SET_ELSEWHERE:
                raise ValueError(f"{key} has a place of its own in the configuration: leave it out of extra")
            if not _is_json(value):
                raise ValueError(f"{key} is not plain JSON: give finite numbers, text, true or false, or lists of them")
        return extra


class Evaluate(Section):
    split: Literal["test", "validation"] = "test"
    sample: NotNegative = Field(2000, description="questions, drawn once by seed; 0 means all")
    sample_seed: int = 0
    batch_size: Positive = 32
    max_new_tokens: Positive = 768
    metrics: dict[str, str] = Field(
        default_factory=dict,
        description="source → standard metric reported beside accuracy; those of known benchmarks need no entry",
    )


class Gate(Section):
    """When a tuned model is registered."""

    min_format_rate: Fraction = 0.95
    min_accuracy_gain: float = Field(0.0, description="tuned minus base accuracy, as a fraction")
    interval_above_zero: bool = Field(True, description="the gain's 95 % interval must lie above zero")
    max_type_drop: Fraction = Field(0.05, description="how far any question type may fall beyond its own noise")


class Registry(Section):
    model_name: Annotated[str, Field(min_length=1)] = "vqa-grpo"
    alias: Annotated[str, Field(min_length=1)] = "champion"
    tracking_uri: str = Field("", description="MLflow; empty takes MLFLOW_TRACKING_URI")
    experiment: str = "vqa-grpo"

    @field_validator("tracking_uri")
    @classmethod
    def _an_address(cls, uri: str) -> str:
        """MLflow takes any other word for a folder, and refuses folders only when there is something to write."""
        if uri and uri != "databricks" and not re.match(r"[a-z][a-z0-9+]*://", uri):
            raise ValueError("an MLflow address looks like http://host:5000 or sqlite:////path/mlflow.db")
        return uri

    @model_validator(mode="after")
    def _names_that_mlflow_takes(self) -> Registry:
        """MLflow itself would say so only when everything is trained."""
        if re.search(r"[/:]", self.model_name) or ("'" in self.model_name and '"' in self.model_name):
            raise ValueError(f"model_name {self.model_name!r} must not hold / or :, or both kinds of quotes")
        if not re.fullmatch(r"[\w-]+", self.alias) or re.fullmatch(r"latest|v\d+", self.alias, re.IGNORECASE):
            raise ValueError(f"alias {self.alias!r} must be letters, digits, - and _, and neither latest nor v1, v2, …")
        return self


CACHE = "/cache"  # where pods have job.cache_claim

# Kubernetes' own rules for names and amounts, so that what is wrong is said before anything starts.
_NAME = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
ObjectName = Annotated[str, Field(pattern=f"^({_NAME})?$", max_length=253)]
Label = Annotated[str, Field(pattern=f"^({_NAME}/)?{_WORD}$", max_length=317)]
LabelValue = Annotated[str, Field(pattern=f"^({_WORD})?$", coerce_numbers_to_str=True)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Cpu = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?m?$", coerce_numbers_to_str=True)]
Bytes = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([kMGTP]|[KMGTP]i)?$", coerce_numbers_to_str=True)]
NoBytes = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?([kMGTP]|[KMGTP]i)?)?$", coerce_numbers_to_str=True)]
Amount = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGTP]|[KMGTP]i)?$", coerce_numbers_to_str=True)]
Text = Annotated[str, Field(coerce_numbers_to_str=True)]


_UNITS = {unit: 1000**power for power, unit in enumerate(("", "k", "M", "G", "T", "P"))}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGTP", 1)}


def bytes_of(amount: str) -> Decimal:
    """
    >>> bytes_of("1.5Ki"), bytes_of("2k")
    (Decimal('1536.0'), Decimal('2000'))
    """
    number = amount.rstrip("kKMGTPi")
    return Decimal(number) * _UNITS[amount[len(number) :]]


class Toleration(Section):
    """A taint of nodes that a job's pods put up with."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    @model_validator(mode="after")
    def _as_kubernetes_takes_it(self) -> Toleration:
        if self.operator == "Exists" and self.value:
            raise ValueError(f"value {self.value!r} does not count with operator Exists: leave one of them out")
        if self.operator == "Equal" and not self.key:
            raise ValueError("key is empty: name the taint, or use operator Exists to tolerate all of them")
        return self

    def as_dict(self) -> dict[str, str]:
        return {name: value for name, value in self.model_dump().items() if value}


class Job(Section):
    """Where training and evaluation run. `auto` is a PyTorchJob inside a cluster and this machine elsewhere.

    All but launcher, processes_per_node and timeout_seconds is for clusters only.
    """

    launcher: Literal["auto", "local", "pytorchjob", "trainjob"] = "auto"
    num_nodes: Positive = Field(1, description="pods that train; evaluation takes one")
    gpus_per_node: NotNegative = Field(0, description="0 trains on CPU")
    processes_per_node: NotNegative = Field(0, description="0 means one for each GPU, or one on CPU")
    cpu: Cpu = Field("2", description="cores of each node, requested and limiting, like every amount below")
    memory: Bytes = Field("6Gi", description="of each node, shared memory included")
    shared_memory: NoBytes = Field("", description="size of /dev/shm, which counts as memory; empty takes all of it")
    ephemeral_storage: NoBytes = Field("", description="disk of each node for checkpoints and caches; empty asks none")
    resources: dict[Label, Amount] = Field(
        default_factory=dict, description="anything else that a node is to give each pod, such as rdma/hca: 1"
    )
    environment: dict[Variable, Text] = Field(
        default_factory=dict, description="plain variables of the pods, such as NCCL_IB_HCA; never a secret"
    )
    secrets: dict[Variable, ObjectName] = Field(
        default_factory=dict, description="variable → Kubernetes Secret that holds it under the same key"
    )
    labels: dict[Label, LabelValue] = Field(default_factory=dict, description="of the job and its pods")
    node_selector: dict[Label, LabelValue] = Field(default_factory=dict, description="labels that a node must have")
    tolerations: tuple[Toleration, ...] = Field((), description="beside the one for nvidia.com/gpu")
    priority_class: ObjectName = Field("", description="of the pods")
    queue: Annotated[str, Field(pattern=f"^({_WORD})?$")] = Field("", description="Kueue's LocalQueue; empty for none")
    service_account: ObjectName = Field("", description="of the pods; empty takes the namespace's default")
    image_pull_secrets: tuple[ObjectName, ...] = ()
    cache_claim: ObjectName = Field(
        "",
        description="a PersistentVolumeClaim, mounted at /cache, that keeps base models and data between jobs, until "
        "`vqa-grpo cleanup --cache` finds them unused",
    )
    namespace: ObjectName = Field(
        "", description="empty takes the launching pod's own; in another nothing sweeps up after a launcher that dies"
    )
    grace_seconds: Annotated[int, Field(ge=30)] = Field(120, description="that a stopped pod has for a last checkpoint")
    timeout_seconds: Positive = Field(172_800, description="for the whole job, waiting for free nodes included")
    queue_timeout_seconds: NotNegative = Field(0, description="until all pods run; 0 waits as long as timeout_seconds")
    stall_timeout_seconds: NotNegative = Field(3600, description="without a new line in the log; 0 for no limit")
    max_restarts: NotNegative = Field(
        3, description="times that the whole job is run again after a failure that may pass, from its last checkpoint"
    )
    on_eviction: Literal["keep", "delete"] = Field(
        "keep", description="what becomes of a job whose launching pod is evicted: its retry goes on with it, or anew"
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="metadata and spec of a pod template, put over the pods' own last; null takes something away",
    )

    @field_validator("cpu", "memory")
    @classmethod
    def _some(cls, amount: str) -> str:
        if not re.search(r"[1-9]", amount):
            raise ValueError("nothing runs with none of it: give what a node is to have")
        return amount

    @field_validator("resources")
    @classmethod
    def _named_once(cls, resources: dict[str, str]) -> dict[str, str]:
        own = {"cpu": "job.cpu", "memory": "job.memory", "nvidia.com/gpu": "job.gpus_per_node"}
        for name in resources:
            if name in own:
                raise ValueError(f"{name} has a place of its own, {own[name]}: leave it out of resources")
        return resources

    @model_validator(mode="after")
    def _possible(self) -> Job:
        if self.shared_memory and bytes_of(self.shared_memory) > bytes_of(self.memory):
            raise ValueError(f"shared_memory {self.shared_memory} counts as memory, and is more than {self.memory}")
        if self.launcher == "local" and self.num_nodes > 1:
            raise ValueError(
                f"num_nodes is {self.num_nodes}, but this machine is one node: set it to 1, or launcher to pytorchjob"
            )
        if self.queue_timeout_seconds > self.timeout_seconds:
            raise ValueError(
                f"queue_timeout_seconds {self.queue_timeout_seconds} is more than timeout_seconds "
                f"{self.timeout_seconds}, in which waiting is included"
            )
        return self

    @field_validator("overrides")
    @classmethod
    def _a_pod_template(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        for key, value in overrides.items():
            if key not in ("metadata", "spec") or not isinstance(value, dict):
                raise ValueError(f"{key} is no part of a pod template: give metadata: {{…}} and spec: {{…}}")
        if not _is_json(overrides):
            raise ValueError("something in it is not plain JSON: give finite numbers, text, true or false, and lists")
        return overrides


_DECIDING = ("num_nodes", "gpus_per_node", "processes_per_node", "environment")  # of a job


class RunConfig(Section):
    """The whole of a run. Everything that changes its result is in here, and nothing secret is."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="the base model's and GRPO's seed")
    data: Data = Data()
    model: Model = Model()
    rewards: Rewards = Rewards()
    judge: Judge = Judge()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    registry: Registry = Registry()
    job: Job = Job()

    @model_validator(mode="after")
    def _nothing_secret(self) -> RunConfig:
        """Logs, storage and MLflow all show a run's configuration."""
        for key in ("hub_token", "push_to_hub_token"):
            if key in self.train.extra:
                raise ValueError(f"train.extra.{key} is a secret, and configurations are shown: set HF_TOKEN instead")
        if re.search(r'://[^/@\s"]+@', self.canonical()):
            raise ValueError(
                "a URL in it holds a user name, password or token, and configurations are shown: "
                "use the environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for MLflow)"
            )
        return self

    @model_validator(mode="after")
    def _base_is_there(self) -> RunConfig:
        base = self.model.base
        in_claim = self.job.cache_claim and base.startswith(f"{CACHE}/")  # which the pods alone can see
        if base.startswith(("/", ".", "~")) and not in_claim and not Path(base).expanduser().is_dir():
            raise ValueError(f"model.base {base!r} is no folder here")
        return self

    @model_validator(mode="after")
    def _whole_groups(self) -> RunConfig:
        """TRL takes completions in whole groups; it would say so only once everything before it is done."""
        train, group = self.train, self.train.num_generations
        processes = self.job.num_nodes * (self.job.processes_per_node or max(self.job.gpus_per_node, 1))
        batch = train.per_device_train_batch_size * train.gradient_accumulation_steps * processes
        if train.max_steps == 0:
            raise ValueError("train.max_steps 0 trains nothing: give a number of steps, or -1 for num_train_epochs")
        if group == 1 or (group and batch % group) or batch < 2:
            raise ValueError(
                f"train.num_generations {group} does not divide the {batch} completions of a round "
                f"(per_device_train_batch_size x gradient_accumulation_steps x processes), or is 1: "
                "GRPO compares at least two completions of each question"
            )
        return self

    def canonical(self) -> str:
        """The whole configuration as JSON with sorted keys."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    def deciding(self) -> str:
        """The part that decides a run's results, as JSON with sorted keys: what runs are named after and compared by.

        Where a job runs and how long it is waited for is left out: a run whose job was too slow or too large goes on
        when it is given more.
        """
        tree = self.model_dump(mode="json")
        tree["job"] = {name: tree["job"][name] for name in _DECIDING}
        return json.dumps(tree, sort_keys=True)


def load(name: str = "", settings: Iterable[str] = ()) -> RunConfig:
    """Read a configuration and change it by `section.key=value` settings (the value is YAML).

    `name` is a shipped configuration, a YAML file, YAML text (several lines), or empty for the defaults.
    Raises ConfigurationError naming every wrong key or value at once.
    """
    tree = _read(name)
    for setting in settings:
        _apply(tree, setting)
    return from_tree(tree, name or "defaults")


def from_tree(tree: dict[str, Any], name: str) -> RunConfig:
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        shown = "text" if "\n" in name else name
        raise ConfigurationError(f"configuration {shown}: {problems}") from None


def _read(name: str, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    if not name:
        return {}
    if name in extended_by:
        raise ConfigurationError(f"configuration {name!r} extends itself, by way of {' and '.join(extended_by)}")
    text = name
    if "\n" not in name and not name.lstrip().startswith("{"):
        try:
            shipped = SHIPPED / f"{name}.yaml"
            text = (shipped if shipped.is_file() else Path(name)).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # not UTF-8, or a name that no file can have
            names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
            raise ConfigurationError(
                f"configuration {name!r} cannot be read ({error}); shipped ones: {names}"
            ) from None
    try:
        tree = _value(text) or {}
    except _NOT_YAML as error:
        raise ConfigurationError(f"configuration is not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(tree, dict):
        raise ConfigurationError("configuration must be a mapping of sections (data:, model:, train:, …)")
    base = tree.pop("extends", None)
    return _merge(_read(str(base), (*extended_by, name)), tree) if base else tree


def _value(text: str) -> Any:
    """JSON where it is JSON, YAML otherwise: YAML 1.1 takes 1e-5 for a text and cannot read an escaped emoji."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return yaml.safe_load(text)


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply(tree: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise ConfigurationError(f"setting {setting!r} is not of the form section.key=value")
    try:
        value = _value(text)
    except _NOT_YAML:
        raise ConfigurationError(f"setting {setting!r}: the value is not YAML; quote it") from None
    *sections, key = path.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigurationError(f"setting {setting!r}: {section} is a value, not a section")
    tree[key] = value


def _explain(problem: Any) -> str:
    """One pydantic problem in words, with the nearest known key for an unknown one."""
    place = ".".join(str(part) for part in problem["loc"])
    if problem["loc"] and not place:
        place = "''"  # an empty key
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, 1, 0.5)
        return f"unknown key {place}" + (f", did you mean {near[0]}?" if near else f"; known: {', '.join(known)}")
    message = problem["msg"].removeprefix("Value error, ")
    # A whole section as the offending value says nothing more, and could hold what must not be printed.
    return (
        (f"{place}: " if place else "")
        + message
        + ("" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})")
    )


def _known_keys(path: tuple[Any, ...]) -> list[str]:
    section: Any = RunConfig
    for part in path:
        section = get_args(section)[0] if isinstance(part, int) else section.model_fields[part].annotation
    return list(section.model_fields)
