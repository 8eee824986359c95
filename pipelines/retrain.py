"""The scheduled form: does nothing when nothing changed since the last decision."""

from kfp import dsl

from vqa_grpo.components.images import TRAINER
from vqa_grpo.components.needs_training import needs_training
from vqa_grpo.pipelines import wiring


@dsl.pipeline(
    name="vqa-grpo-retrain",
    description="Train again when the data, the code or the configuration changed since the last decision; else skip.",
)
def retrain_pipeline(
    output_root: str,
    config: str = "quickstart",
    overrides: str = "",
    source: str = "",
    base_model: str = "",
    run_id: str = "",
    seed: int = 0,
    num_nodes: int = 2,
    gpus_per_node: int = 0,
    registered_model: str = "",
    tracking_uri: str = "",
    trainer_image: str = TRAINER,
    code: str = "",
) -> None:
    """Train again if there is something new.

    The last decision is remembered under the output root, which therefore must be given and stay the same.

    Args:
        output_root: Where results and the last decision go, s3://bucket/prefix.
        config: A shipped configuration's name, a file in the image, or YAML text.
        overrides: Lines of section.key=value, applied last.
        source: The data set, builtin:easy-vqa or a save_to_disk folder.
        base_model: The model to tune, builtin:tiny, a folder, s3://… or a hub name.
        run_id: The run's name. Empty takes Kubeflow's.
        seed: Seed of training; 0 takes the configuration's.
        num_nodes: Pods of the training job, whatever the configuration says.
        gpus_per_node: GPUs of each pod, whatever the configuration says; 0 trains on CPU.
        registered_model: The model's name in MLflow.
        tracking_uri: MLflow, without a password; empty takes MLFLOW_TRACKING_URI of the ConfigMap vqa-grpo.
        trainer_image: The image of every step that runs a model, and of the training pods.
        code: A digest of the code, such as the image's; empty takes the installed package's own.
    """
    with dsl.ExitHandler(wiring.finish(output_root, run_id)):
        resolved = wiring.resolve(locals())
        found = resolved.outputs
        known = {name: found[name] for name in ("config", "root", "fingerprint", "code")}
        changed = wiring.check(needs_training(**known))
        with dsl.If(changed.outputs["Output"] == True, name="changed"):  # noqa: E712 - builds a condition
            wiring.train_and_register(resolved, trainer_image)
