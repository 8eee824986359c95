"""Make sure that there is a base model."""

from kfp import dsl

from vqa_grpo.components.images import TRAINER


@dsl.component(base_image=TRAINER, install_kfp_package=False)
def prepare_model(config: str, dataset_uri: str, root: str) -> str:
    """Check the base model, or build the embedded tiny one from the training split.

    Args:
        config: The run's checked configuration as JSON.
        dataset_uri: The converted data set.
        root: Where results go.

    Returns:
        The base model as training names it.
    """
    from vqa_grpo import steps

    return steps.guarded(steps.prepare_model)(config, dataset_uri, root).base
