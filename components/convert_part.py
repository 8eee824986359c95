"""Convert one part of the source."""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def convert_part(
    data_config: str, fingerprint: str, root: str, code: str, report_uri: str, part: int, parts: int
) -> str:
    """Convert the rows of one part of the source.

    Args:
        data_config: What decides the converted data, as JSON.
        fingerprint: What the source looked like when the run began.
        root: Where results go.
        code: A digest of the code that runs.
        report_uri: The published validation of the whole source.
        part: Which part, from 0.
        parts: How many there are.

    Returns:
        The URI of the converted part.
    """
    from vqa_grpo import steps

    return steps.guarded(steps.convert_part)(data_config, fingerprint, root, code, report_uri, int(part), parts)
