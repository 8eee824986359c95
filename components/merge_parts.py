"""Publish the converted parts as one data set."""

from typing import NamedTuple

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def merge_parts(
    data_config: str,
    fingerprint: str,
    root: str,
    code: str,
    made: list,
    dataset: dsl.Output[dsl.Dataset],
) -> NamedTuple("Converted", dataset_uri=str, digest=str):  # type: ignore[valid-type]
    """Merge the parts; a run on the same data finds the result where its own conversion would have put it.

    Args:
        data_config: What decides the converted data, as JSON.
        fingerprint: What the source looked like when the run began.
        root: Where results go.
        code: A digest of the code that runs.
        made: The converted parts.
        dataset: A small JSON file that says where the data set lies and what it holds.

    Returns:
        Where the data set is published, and the digest of its contents.
    """
    import json
    from collections import namedtuple
    from dataclasses import asdict

    from vqa_grpo import steps

    result = steps.guarded(steps.merge_parts)(data_config, fingerprint, root, code, len(made))
    with open(dataset.path, "w", encoding="utf-8") as file:
        json.dump(asdict(result), file)
    dataset.metadata.update({"uri": result.dataset_uri, "digest": result.digest, **result.splits})
    return namedtuple("Converted", ("dataset_uri", "digest"))(result.dataset_uri, result.digest)  # type: ignore[call-arg]
