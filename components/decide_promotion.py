"""The gate: is the tuned model good enough to register?"""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def decide_promotion(
    config: str,
    run_id: str,
    root: str,
    fingerprint: str,
    code: str,
    evaluation_uri: str,
    reasons: dsl.Output[dsl.Markdown],
) -> bool:
    """Compare with the gate's rules and record the run in MLflow, whatever the verdict.

    The verdict leaves as a boolean: conditions on numbers or texts go wrong on NaN and on quotes.

    Args:
        config: The run's checked configuration as JSON.
        run_id: The run's name.
        root: Where results go.
        fingerprint: What the source looked like when the run began.
        code: A digest of the code that runs.
        evaluation_uri: The predictions and scores.
        reasons: The verdict in sentences.

    Returns:
        True when the model is to be registered.
    """
    from vqa_grpo import steps

    result = steps.guarded(steps.decide_promotion)(config, run_id, root, fingerprint, code, evaluation_uri)
    with open(reasons.path, "w", encoding="utf-8") as file:
        file.write(f"# {result.decision}\n\n" + "".join(f"- {reason}\n" for reason in result.reasons))
    return result.promote
