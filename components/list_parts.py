"""The parts that a data set is worked on in."""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def list_parts(parts: int) -> list:
    """Count the parts, so that a loop can run over them.

    Args:
        parts: How many there are.

    Returns:
        0, 1, … up to `parts` - 1.
    """
    from vqa_grpo import steps

    return steps.guarded(steps.list_parts)(parts)
