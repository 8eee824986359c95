"""resolve → validate, convert → prepare base → train → evaluate → decide → register, with an exit handler."""

from kfp import dsl

from vqa_grpo.components.images import TRAINER
from vqa_grpo.pipelines import wiring


@dsl.pipeline(
    name="vqa-grpo-train",
    description="Post-train a vision-language model on VQA with GRPO, and register it if it is better.",
)
def train_pipeline(
    config: str = "quickstart",
    overrides: str = "",
    source: str = "",
    base_model: str = "",
    output_root: str = "",
    run_id: str = "",
    seed: int = 0,
    num_nodes: int = 2,
    gpus_per_node: int = 0,
    registered_model: str = "",
    tracking_uri: str = "",
    trainer_image: str = TRAINER,
    code: str = "",
) -> None:
    """Train, evaluate, decide and register.

    The defaults are a smoke run on CPU: easy-VQA, a tiny model, two nodes without GPUs, output under the pipeline
    root. An empty text or a 0 leaves the configuration's own value.

    Args:
        config: A shipped configuration's name, a file in the image, or YAML text.
        overrides: Lines of section.key=value, applied last.
        source: The data set, builtin:easy-vqa or a save_to_disk folder.
        base_model: The model to tune, builtin:tiny, a folder, s3://… or a hub name.
        output_root: Where results go, s3://bucket/prefix; empty takes the run's own folder below the pipeline root.
        run_id: The run's name; the same name goes on where it stopped. Empty takes Kubeflow's.
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
        wiring.train_and_register(resolved, trainer_image)
