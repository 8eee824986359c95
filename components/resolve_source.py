"""First task of every run, never cached: what is there to train on right now?"""

from typing import NamedTuple

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def resolve_source(
    config: str, overrides: str, flags: dict, output_root: str, pipeline_root: str, run_id: str, job_id: str, code: str
) -> NamedTuple("Resolved", config=str, data_config=str, run_id=str, root=str, fingerprint=str, code=str):  # type: ignore[valid-type]
    """Check the configuration whole and fingerprint the source.

    Args:
        config: A shipped configuration's name, a file, or YAML text.
        overrides: Lines of section.key=value, applied last.
        flags: The pipeline's flat parameters by configuration key; empty values leave the configuration as it is.
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

    settings = [f"{key}={value}" for key, value in flags.items() if value not in ("", 0)]
    settings += [line.strip() for line in overrides.splitlines() if line.strip()]
    resolved = steps.guarded(steps.resolve)(config, settings, output_root or pipeline_root, run_id or job_id, code)
    fields = ("config", "data_config", "run_id", "root", "fingerprint", "code")
    return namedtuple("Resolved", fields)(*(getattr(resolved, field) for field in fields))
