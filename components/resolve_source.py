"""First task of every run, never cached: what is there to train on right now?"""

from typing import NamedTuple

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def resolve_source(
    config: str,
    overrides: str,
    source: str,
    base_model: str,
    seed: int,
    num_nodes: int,
    gpus_per_node: int,
    registered_model: str,
    tracking_uri: str,
    output_root: str,
    pipeline_root: str,
    run_id: str,
    job_id: str,
    code: str,
) -> NamedTuple("Resolved", config=str, data_config=str, run_id=str, root=str, fingerprint=str, code=str):  # type: ignore[valid-type]
    """Check the configuration whole and fingerprint the source.

    Args:
        config: A shipped configuration's name, a file, or YAML text.
        overrides: Lines of section.key=value, applied last.
        source: The data set; empty leaves the configuration's.
        base_model: The model to tune; empty leaves the configuration's.
        seed: Seed of training; 0 leaves the configuration's.
        num_nodes: Pods of the training job; 0 leaves the configuration's.
        gpus_per_node: GPUs of each pod; 0 leaves the configuration's.
        registered_model: The model's name in MLflow; empty leaves the configuration's.
        tracking_uri: MLflow; empty leaves the configuration's.
        output_root: Where results go; empty takes the pipeline root.
        pipeline_root: Kubeflow's pipeline root.
        run_id: The run's name; empty takes Kubeflow's job id.
        job_id: Kubeflow's job id.
        code: A digest of the code that runs; empty takes the installed package's own.

    Returns:
        The checked configuration as JSON, the part of it that decides the data, and the names of run and place.
    """
    from collections import namedtuple

    from vqa_grpo import steps

    flags = {
        "data.source": source,
        "model.base": base_model,
        "seed": seed,
        "job.num_nodes": num_nodes,
        "job.gpus_per_node": gpus_per_node,
        "registry.model_name": registered_model,
        "registry.tracking_uri": tracking_uri,
    }
    settings = [f"{key}={value}" for key, value in flags.items() if value]
    settings += [line.strip() for line in overrides.splitlines() if line.strip()]
    resolved = steps.guarded(steps.resolve)(config, settings, output_root or pipeline_root, run_id or job_id, code)
    fields = ("config", "data_config", "run_id", "root", "fingerprint", "code")
    return namedtuple("Resolved", fields)(*(getattr(resolved, field) for field in fields))
