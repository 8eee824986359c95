"""Make sure that there is a base model."""

from typing import NamedTuple

from kfp import dsl

from vqa_grpo.components.images import TRAINER


@dsl.component(base_image=TRAINER, install_kfp_package=False)
def prepare_model(config: str, dataset_uri: str, root: str) -> NamedTuple("Prepared", base=str, digest=str):  # type: ignore[valid-type]
    """Check the base model, or build the embedded tiny one from the training split.

    Args:
        config: The run's checked configuration as JSON.
        dataset_uri: The converted data set.
        root: Where results go.

    Returns:
        The base model as training names it, and its digest.
    """
    from collections import namedtuple

    from vqa_grpo import steps

    result = steps.guarded(steps.prepare_model)(config, dataset_uri, root)
    return namedtuple("Prepared", ("base", "digest"))(result.base, result.digest)  # type: ignore[call-arg]
