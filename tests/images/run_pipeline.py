"""Run a compiled pipeline with each step in its image: `run_pipeline.py PIPELINE.yaml`, the rest as JSON on stdin.

{"parameters": the pipeline's, "root": a folder for Kubeflow's own files, "environment": what a cluster's Secrets and
ConfigMap would give}. The exit code is 1 when a step failed.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> int:
    from kfp import components, local

    told = json.load(sys.stdin)
    os.umask(0)  # the containers' user is not ours, and writes into folders that the runner makes
    local.init(
        runner=local.DockerRunner(
            network_mode="host",
            environment=told["environment"],
            read_only=True,
            tmpfs={"/tmp": "mode=1777"},  # noqa: S108 - the containers'
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
        ),
        pipeline_root=told["root"],
        raise_on_error=True,
    )
    pipeline = components.load_component_from_file(sys.argv[1])
    try:
        pipeline(**told["parameters"])
    except RuntimeError as error:  # what kfp.local raises for a failed step
        print(f"pipeline: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
