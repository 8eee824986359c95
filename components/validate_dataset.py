"""Check every row of the source."""

from kfp import dsl

from vqa_grpo.components.images import STEPS


@dsl.component(base_image=STEPS, install_kfp_package=False)
def validate_dataset(
    data_config: str,
    checks: str,
    fingerprint: str,
    root: str,
    code: str,
    report: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Check the source row by row and refuse it when too many rows are unusable.

    Args:
        data_config: What decides the converted data, as JSON.
        checks: What decides whether it is good enough, as JSON.
        fingerprint: What the source looked like when the run began.
        root: Where results go.
        code: A digest of the code that runs.
        report: Counts of rows, pictures and problems.
        page: The same with distributions, examples and pictures.
        metrics: Rows and unusable rows.

    Returns:
        The URI of the published report.
    """
    from vqa_grpo import steps

    result = steps.guarded(steps.validate_dataset)(data_config, checks, fingerprint, root, code)
    with open(report.path, "w", encoding="utf-8") as file:
        file.write(result.markdown)
    with open(page.path, "w", encoding="utf-8") as file:
        file.write(result.html)
    metrics.log_metric("rows", result.rows)
    metrics.log_metric("unusable_rows", result.invalid)
    return result.report_uri
