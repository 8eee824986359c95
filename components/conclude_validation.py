"""Put the looks at all parts of the source together."""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def conclude_validation(
    data_config: str,
    checks: str,
    fingerprint: str,
    root: str,
    code: str,
    found: list,
    report: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Conclude from all parts whether the source can be trained on, and refuse it when too many rows are unusable.

    Args:
        data_config: What decides the converted data, as JSON.
        checks: What decides whether it is good enough, as JSON.
        fingerprint: What the source looked like when the run began.
        root: Where results go.
        code: A digest of the code that runs.
        found: What was found in each part.
        report: Counts of rows, pictures and problems.
        page: The same with distributions, examples and pictures.
        metrics: Rows and unusable rows.

    Returns:
        The URI of the published report.
    """
    from vqa_grpo import steps

    result = steps.guarded(steps.conclude_validation)(data_config, checks, fingerprint, root, code, len(found))
    with open(report.path, "w", encoding="utf-8") as file:
        file.write(result.markdown)
    with open(page.path, "w", encoding="utf-8") as file:
        file.write(result.html)
    metrics.log_metric("rows", result.rows)
    metrics.log_metric("unusable_rows", result.invalid)
    return result.report_uri
