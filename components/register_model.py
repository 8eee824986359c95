"""Register the model in MLflow and move the alias."""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def register_model(config: str, run_id: str, root: str, registered: dsl.Output[dsl.Markdown]) -> str:
    """Register by reference: the version's source is the published folder, nothing is uploaded again.

    Args:
        config: The run's checked configuration as JSON.
        run_id: The run's name.
        root: Where results go.
        registered: Name, version and source.

    Returns:
        The version.
    """
    from vqa_grpo import steps

    result = steps.guarded(steps.register_model)(config, run_id, root)
    with open(registered.path, "w", encoding="utf-8") as file:
        file.write(f"{result.name} version {result.version} is @{result.alias}: `{result.uri}`\n")
    return result.version
