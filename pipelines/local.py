"""Run the train pipeline on this machine, each step a subprocess: `python -m vqa_grpo.pipelines.local PARAMETERS ROOT`.

`vqa-grpo run` starts this as a child and reads its output. PARAMETERS is JSON; ROOT is a folder for Kubeflow's own
small files. The exit code is 1 when a step failed; the step's own words are in the output before that.
"""

import json
import sys
import warnings


def main() -> int:
    parameters, root = json.loads(sys.argv[1]), sys.argv[2]
    # The runner warns that our images' names do not contain "python"; they are not used here at all.
    warnings.filterwarnings("ignore", message=".*non-Python base image.*")
    warnings.filterwarnings("ignore", message=".*have no effect in the current local runner.*")
    from kfp import local

    from vqa_grpo.pipelines import wiring

    wiring.RETRIES = 0
    from vqa_grpo.pipelines.train import train_pipeline

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=root, raise_on_error=True)
    try:
        train_pipeline(**parameters)
    except RuntimeError as error:  # what kfp.local raises for a failed step
        print(f"pipeline: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
