"""Ask the base and the tuned model the same held-out questions."""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def evaluate_models(
    config: str,
    run_id: str,
    root: str,
    dataset_uri: str,
    base: str,
    model_uri: str,
    trainer_image: str,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Launch a job that predicts greedily with both models; grade by the rules that the rewards use, without the judge.

    Args:
        config: The run's checked configuration as JSON.
        run_id: The run's name.
        root: Where results go.
        dataset_uri: The converted data set.
        base: The base model.
        model_uri: The tuned model.
        trainer_image: The image of the pod that predicts.
        metrics: Accuracy and format rate of both.

    Returns:
        The URI of the predictions and scores.
    """
    from vqa_grpo import steps
    from vqa_grpo.report.metrics import clean_metrics

    result = steps.guarded(steps.evaluate_models)(config, run_id, root, dataset_uri, base, model_uri, trainer_image)
    # Kubeflow's metrics fail the step on NaN, and what cannot be measured is None here.
    for name, value in clean_metrics(result.metrics)[0].items():
        metrics.log_metric(name, value)
    return result.evaluation_uri
