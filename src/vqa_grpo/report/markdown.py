"""The report in short, for places that show Markdown, such as Kubeflow's run page."""

from __future__ import annotations

import html
import re

from vqa_grpo.report.run import Group, RunReport, headline, interval, percent, points

_SPECIAL = re.compile(r"([\\`*_{}\[\]|~#])")
# What steers a terminal or turns the reading direction, and halves of characters, which no file can hold.
_UNSEEN = re.compile("[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def render_markdown(report: RunReport) -> str:
    """Headline, decision with its reasons, and the table before and after by question type."""
    lines = [f"# {escape(report.title)}", "", f"**{escape(headline(report))}**", ""]
    if report.decision:
        lines += [f"Decision: **{escape(report.decision)}**", ""]
    lines += [f"- {escape(reason)}" for reason in report.reasons] + [""]
    lines += [
        "| questions | n | blind | accuracy, base | accuracy, tuned | gain, points | format, base | format, tuned |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_row(group) for group in [*report.types, report.overall]]
    lines += ["", *(f"{escape(note)}\n" for note in report.notes)]
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Text that Markdown and the HTML inside it leave as it is, on one line."""
    plain = _UNSEEN.sub("\ufffd", " ".join(text.split()))
    return _SPECIAL.sub(r"\\\1", html.escape(plain, quote=False))


def _row(group: Group) -> str:
    gain = f"{points(group.gain)} {interval(group.gain_ci)}" if group.gain is not None else "–"
    cells = [
        escape(group.name),
        str(group.n),
        percent(group.blind),
        percent(group.base.accuracy),
        percent(group.tuned.accuracy),
        gain,
        percent(group.base.format_rate),
        percent(group.tuned.format_rate),
    ]
    return f"| {' | '.join(cells)} |"
