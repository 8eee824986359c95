"""The data report as one self-contained HTML file."""

from __future__ import annotations

import html
from collections.abc import Sequence

from vqa_grpo.report.data import DataReport, Sample


def render_data_report(report: DataReport, samples: Sequence[Sample]) -> str:
    rows = "".join(f"<li>{html.escape(sample.id)}: {html.escape(sample.question)}</li>" for sample in samples)
    return f"<!doctype html><meta charset=utf-8><pre>{html.escape(report.markdown())}</pre><ul>{rows}</ul>\n"
