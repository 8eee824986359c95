"""The tasks that both pipelines share, with resources, retries and caching said once."""

from typing import Any

from kfp import dsl, kubernetes

from vqa_grpo.components.convert_dataset import convert_dataset
from vqa_grpo.components.decide_promotion import decide_promotion
from vqa_grpo.components.evaluate_models import evaluate_models
from vqa_grpo.components.finish_run import finish_run
from vqa_grpo.components.prepare_model import prepare_model
from vqa_grpo.components.register_model import register_model
from vqa_grpo.components.resolve_source import resolve_source
from vqa_grpo.components.train_model import train_model
from vqa_grpo.components.validate_dataset import validate_dataset
from vqa_grpo.jobs.spec import LEAVE_ALONE, SECRETS, SETTINGS, SETTINGS_MAP
from vqa_grpo.steps.notice import URL

RETRIES = 2  # a run on one's own machine sets 0 before it imports a pipeline: there the person retries
HOUR, DAY = 3600, 86_400
# How long after a step's first start Argo may start it again; what was started again by then it stops. Kubeflow's own
# choice is an hour (kubeflow/pipelines#14245); a job may take as long as its configuration says, and nobody a year.
RETRIED_FOR = f"{365 * DAY}s"
NOTIFY_SECRET = "vqa-grpo-notify"  # noqa: S105 - its name


def resolve(parameters: dict[str, Any]) -> dsl.PipelineTask:
    """The uncached first task; `parameters` are the pipeline's own, by name."""
    own = {name: channel for name, channel in parameters.items() if name != "trainer_image"}
    task = resolve_source(**own, job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
    return _small(task, cached=False)


def train_and_register(resolved: dsl.PipelineTask, trainer_image: Any) -> None:
    """Everything between knowing the source and a registered model."""
    found = resolved.outputs
    data = {name: found[name] for name in ("data_config", "fingerprint", "root", "code")}
    run = {name: found[name] for name in ("config", "run_id", "root")}
    validated = _small(validate_dataset(**data, checks=found["checks"]), cached=True, timeout=DAY)
    converted = _small(convert_dataset(**data, report_uri=validated.outputs["Output"]), cached=True, timeout=DAY)
    dataset_uri = converted.outputs["dataset_uri"]
    prepared = _large(prepare_model(config=found["config"], dataset_uri=dataset_uri, root=found["root"]))
    # One image wherever a model runs: the same code prepares, trains and evaluates.
    prepared.set_container_image(trainer_image)
    base = prepared.outputs["Output"]
    asked = {"dataset_uri": dataset_uri, "base": base, "trainer_image": trainer_image}
    trained = _launcher(train_model(**run, **asked))
    evaluated = _launcher(evaluate_models(**run, **asked, model_uri=trained.outputs["Output"]))
    identity = {name: found[name] for name in ("fingerprint", "code")}
    decided = decide_promotion(**run, **identity, evaluation_uri=evaluated.outputs["Output"])
    _small(decided, cached=False)
    with dsl.If(decided.outputs["Output"] == True, name="promote"):  # noqa: E712 - builds a condition
        _small(register_model(**run), cached=False)


def part_of_data(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """One of the tasks that a large data set is split into."""
    return _small(task, cached=True, timeout=DAY)


def check(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A small question that must be asked anew in every run."""
    return _small(task, cached=False)


def finish(output_root: Any, run_id: Any) -> dsl.PipelineTask:
    task = finish_run(output_root=output_root, run_id=run_id, job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
    kubernetes.use_secret_as_env(task, NOTIFY_SECRET, {URL: URL}, optional=True)
    return _small(task, cached=False)  # a cache hit would mean that nothing is cleaned up


def _small(task: dsl.PipelineTask, cached: bool, timeout: int = HOUR) -> dsl.PipelineTask:
    """A task that moves bytes. Each attempt has `timeout` seconds."""
    kubernetes.set_timeout(task, timeout)
    return _placed(task.set_caching_options(cached), cpu=("1", "2"), memory=("2Gi", "4Gi"))


def _large(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A task that runs a model itself."""
    kubernetes.set_timeout(task, DAY)
    return _placed(task.set_caching_options(False), cpu=("2", "4"), memory=("6Gi", "12Gi"))


def _launcher(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A task that waits for a job. How long is the job's to say: a timeout here could end a job that is at work."""
    for name, value in LEAVE_ALONE.items():
        kubernetes.add_pod_annotation(task, name, value)
    return _placed(task.set_caching_options(False), cpu=("500m", "2"), memory=("1Gi", "4Gi"))


def _placed(task: dsl.PipelineTask, cpu: tuple[str, str], memory: tuple[str, str]) -> dsl.PipelineTask:
    """What a task asks for and may use at most. Every step is safe to run twice: a lost node costs a retry only."""
    _connected(task).set_cpu_request(cpu[0]).set_cpu_limit(cpu[1])
    task.set_memory_request(memory[0]).set_memory_limit(memory[1])
    if not RETRIES:
        return task
    # `policy="Always"`, for pods that vanish too, once 2.18 is the least SDK and backend: src/vqa_grpo/jobs/README.md.
    return task.set_retry(RETRIES, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration=RETRIED_FOR)


def _connected(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Give a task what it needs to reach S3, MLflow and the hub, by reference and never as a parameter.

    All of it is optional, since a cluster may use instance roles and real AWS.
    """
    for secret in sorted(set(SECRETS.values())):
        keys = [key for key, name in SECRETS.items() if name == secret]
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    return kubernetes.use_config_map_as_env(task, SETTINGS_MAP, {key: key for key in SETTINGS}, optional=True)
