"""Train with GRPO, as a job of its own."""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def train_model(
    config: str, run_id: str, root: str, dataset_uri: str, base: str, trainer_image: str, model: dsl.Output[dsl.Model]
) -> str:
    """Launch GRPO training (a PyTorchJob or TrainJob on a cluster) and wait until its model is published.

    Args:
        config: The run's checked configuration as JSON.
        run_id: The run's name.
        root: Where results go.
        dataset_uri: The converted data set.
        base: The base model.
        trainer_image: The image of the training pods.
        model: A small JSON file that says where the model lies.

    Returns:
        The URI of the published model.
    """
    import json
    from dataclasses import asdict

    from vqa_grpo import steps

    result = steps.guarded(steps.train_model)(config, run_id, root, dataset_uri, base, trainer_image)
    with open(model.path, "w", encoding="utf-8") as file:
        json.dump(asdict(result), file)
    model.metadata.update({"uri": result.model_uri, "digest": result.digest})
    return result.model_uri
