"""The data steps alone, in parts that run side by side: for a data set that outgrows one machine.

Runs on a cluster only: inside a loop, kfp.local 2.16 gives the loop's item to every input of a task.
"""

from kfp import dsl

from vqa_grpo.components.conclude_validation import conclude_validation
from vqa_grpo.components.convert_part import convert_part
from vqa_grpo.components.list_parts import list_parts
from vqa_grpo.components.merge_parts import merge_parts
from vqa_grpo.components.scan_part import scan_part
from vqa_grpo.pipelines import wiring


@dsl.pipeline(
    name="vqa-grpo-data",
    description="Validate and convert a large data set in parallel parts; training on the same data then reuses it.",
)
def data_pipeline(
    output_root: str,
    config: str = "quickstart",
    overrides: str = "",
    source: str = "",
    base_model: str = "",
    parts: int = 4,
    code: str = "",
) -> None:
    """Validate and convert in parts.

    A training run with the same configuration, code and output root finds the data set done.

    Args:
        output_root: Where results go, s3://bucket/prefix; that of the training runs.
        config: A shipped configuration's name, a file in the image, or YAML text.
        overrides: Lines of section.key=value, applied last.
        source: The data set; empty takes the configuration's.
        base_model: The model that is trained on it later: its family decides what a picture costs.
        parts: How many tasks work side by side.
        code: A digest of the code, such as the image's; empty takes the installed package's own.
    """
    unused = {"run_id": "", "seed": 0, "num_nodes": 1, "gpus_per_node": 0, "registered_model": "", "tracking_uri": ""}
    given = {"output_root": output_root, "config": config, "overrides": overrides, "source": source}
    found = wiring.resolve(given | unused | {"base_model": base_model, "code": code}).outputs
    data = {name: found[name] for name in ("data_config", "fingerprint", "root", "code")}
    numbers = wiring.check(list_parts(parts=parts)).outputs["Output"]
    with dsl.ParallelFor(numbers) as part:
        scanned = wiring.part_of_data(scan_part(**data, checks=found["checks"], part=part, parts=parts))
    looks = dsl.Collected(scanned.outputs["Output"])
    validated = wiring.part_of_data(conclude_validation(**data, checks=found["checks"], found=looks))
    with dsl.ParallelFor(numbers) as part:
        report_uri = validated.outputs["Output"]
        converted = wiring.part_of_data(convert_part(**data, report_uri=report_uri, part=part, parts=parts))
    wiring.part_of_data(merge_parts(**data, made=dsl.Collected(converted.outputs["Output"])))
