"""Look at one part of the source."""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def scan_part(data_config: str, checks: str, fingerprint: str, root: str, code: str, part: int, parts: int) -> str:
    """Check the rows of one part of the source.

    Args:
        data_config: What decides the converted data, as JSON.
        checks: What decides whether it is good enough, as JSON.
        fingerprint: What the source looked like when the run began.
        root: Where results go.
        code: A digest of the code that runs.
        part: Which part, from 0.
        parts: How many there are.

    Returns:
        The URI of what was found.
    """
    from vqa_grpo import steps

    return steps.guarded(steps.scan_part)(data_config, checks, fingerprint, root, code, int(part), parts)
