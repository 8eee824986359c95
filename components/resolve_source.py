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
    run_id: str,
    job_id: str,
    code: str,
    place: dsl.Output[dsl.Artifact],
) -> NamedTuple("Resolved", config=str, data_config=str, checks=str, run_id=str, root=str, fingerprint=str, code=str):  # type: ignore[valid-type]
    """Check the configuration whole and fingerprint the source.

    Args:
        config: A shipped configuration's name, a file, or YAML text.
        overrides: Lines of section.key=value, applied last.
        source: The data set; empty leaves the configuration's.
        base_model: The model to tune; empty leaves the configuration's.
        seed: Seed of training; 0 leaves the configuration's.
        num_nodes: Pods of the training job.
        gpus_per_node: GPUs of each pod; 0 trains on CPU.
        registered_model: The model's name in MLflow; empty leaves the configuration's.
        tracking_uri: MLflow; empty leaves the configuration's.
        output_root: Where results go; empty takes the run's own folder below Kubeflow's pipeline root.
        run_id: The run's name; empty takes Kubeflow's job id.
        job_id: Kubeflow's job id.
        code: A digest of the code that runs; empty takes the installed package's own.
        place: Says where Kubeflow keeps this run's artifacts, by its own address; nothing is written to it.

    Returns:
        The checked configuration as JSON, the part of it that decides the data, and the names of run and place.
    """
    import json
    from collections import namedtuple

    from vqa_grpo import steps

    optional = {
        "data.source": source,
        "model.base": base_model,
        "seed": seed,
        "registry.model_name": registered_model,
        "registry.tracking_uri": tracking_uri,
    }
    flags = {key: value for key, value in optional.items() if value}
    flags |= {"job.num_nodes": num_nodes, "job.gpus_per_node": gpus_per_node}
    settings = [f"{key}={json.dumps(value)}" for key, value in flags.items()]
    settings += [line.strip() for line in overrides.splitlines() if line.strip()]
    root = output_root or steps.run_folder(place.uri, "resolve-source")
    resolved = steps.guarded(steps.resolve)(config, settings, root, run_id or job_id, code)
    fields = ("config", "data_config", "checks", "run_id", "root", "fingerprint", "code")
    return namedtuple("Resolved", fields)(*(getattr(resolved, field) for field in fields))
