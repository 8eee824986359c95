"""Exit handler: leave no job behind, say what came of the run, and tell people when it failed."""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def finish_run(
    output_root: str, run_id: str, job_id: str, report: dsl.Output[dsl.HTML], status: dsl.PipelineTaskFinalStatus
) -> None:
    """Write the run's summary and report and stop its jobs, after a success and after a failure.

    Args:
        output_root: Where results go; empty takes the run's own folder below Kubeflow's pipeline root.
        run_id: The run's name; empty takes Kubeflow's job id.
        job_id: Kubeflow's job id.
        report: The report, for Kubeflow's page of the run.
        status: How the run ended.
    """
    from vqa_grpo import steps

    root = output_root or steps.run_folder(report.uri, "finish-run")
    html = steps.guarded(steps.finish_run)(run_id or job_id, root, status.state, status.error_message or "")
    with open(report.path, "w", encoding="utf-8") as file:
        file.write(html or f"The run ended as {status.state} before it was evaluated.")
