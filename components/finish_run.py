"""Exit handler: leave no job behind, and say what came of the run."""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def finish_run(
    output_root: str, pipeline_root: str, run_id: str, job_id: str, status: dsl.PipelineTaskFinalStatus
) -> None:
    """Stop the run's jobs and write its summary and report, after a success and after a failure.

    Args:
        output_root: Where results go; empty takes the pipeline root.
        pipeline_root: Kubeflow's pipeline root.
        run_id: The run's name; empty takes Kubeflow's job id.
        job_id: Kubeflow's job id.
        status: How the run ended.
    """
    from vqa_grpo import steps

    steps.guarded(steps.finish_run)(run_id or job_id, output_root or pipeline_root, status.state)
