"""For scheduled runs: has anything changed since the last decision?"""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def needs_training(config: str, root: str, fingerprint: str, code: str) -> bool:
    """Skip when the same data, code and configuration were decided on before, whatever the verdict was.

    Args:
        config: The run's checked configuration as JSON.
        root: Where results go.
        fingerprint: What the source looks like now.
        code: A digest of the code that runs.

    Returns:
        True when there is something new to train on.
    """
    from vqa_grpo import steps

    return steps.guarded(steps.needs_training)(config, root, fingerprint, code)
