"""One self-contained HTML file for a run. Completions come from a model and are treated as hostile text."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vqa_grpo.report.page import page, pairs, paragraph, plain, safe, section
from vqa_grpo.report.run import (
    Example,
    Group,
    RunReport,
    duration,
    headline,
    interval,
    is_number,
    percent,
    points,
)
from vqa_grpo.report.svg import Bar, bar_chart, line_chart

MAX_BYTES = 500_000
MAX_TEXT = 900  # characters of one completion; a runaway completion says nothing more after that
MAX_TYPES = 40
MAX_CURVES = 12
# What a trainer's log may hold, in the order of the page: title, axis, key, least range of the axis.
_CURVES = (
    ("Held-out questions answered right", "share", re.compile(r"eval_accuracy"), (0.0, 1.0)),
    ("Held-out completions in the prompt's form", "share", re.compile(r"eval_format_rate"), (0.0, 1.0)),
    ("Reward", "reward", re.compile(r"reward"), None),
    ("", "mean reward", re.compile(r"rewards/(.+)/mean"), (0.0, 1.0)),
    ("Completion length", "tokens", re.compile(r"completions/mean_length"), None),
    ("Entropy", "nats", re.compile(r"entropy"), None),
    ("Gradient norm", "norm", re.compile(r"grad_norm"), None),
    ("Divergence from the base (KL)", "nats", re.compile(r"kl"), None),
    ("Groups whose rewards are all equal", "share", re.compile(r"frac_reward_zero_std"), (0.0, 1.0)),
)
_STYLE = """
.example{display:grid;grid-template-columns:136px 1fr 1fr;gap:12px;padding:12px;margin:10px 0;background:var(--card);
border:1px solid var(--line);border-radius:8px}
.example header{grid-column:1/-1}.example img{max-width:128px;max-height:128px;image-rendering:auto}
@media(max-width:700px){.example{grid-template-columns:1fr}}
"""


def render_run_report(data: RunReport) -> str:
    """The report as one HTML file: no script, no network, every text escaped, under 500 kB.

    Should the pictures not fit, the report says so and goes without them.
    """
    whole = _page(data, pictures=True)
    return whole if len(whole.encode()) <= MAX_BYTES else _page(data, pictures=False)


def _page(data: RunReport, *, pictures: bool) -> str:
    sections = [
        _head(data),
        section("Before and after", [_bars(data), _table(data), *(paragraph(note) for note in data.notes[:20])]),
        section("Training", _curves(data.history)),
        section("Examples", _examples(data.examples, pictures)),
        section("Made from", [pairs(data.lineage), _config(data.config)]),
        section("Time", [pairs({name: duration(seconds) for name, seconds in data.timings.items()})]),
    ]
    return page(data.title, sections, _STYLE)


def _head(data: RunReport) -> str:
    sentence = headline(data)
    parts = [
        f"<h1>{safe(data.title, 200)}</h1>",
        f'<p class="lead">{safe(sentence[:1].upper() + sentence[1:], 500)}.</p>',
    ]
    if data.decision:
        css = data.decision if data.decision in ("promote", "hold") else ""
        parts.append(f'<p><span class="badge {css}">{safe(data.decision, 60)}</span></p>')
    if data.reasons:
        parts.append(f"<ul>{''.join(f'<li>{safe(reason, 600)}</li>' for reason in data.reasons[:20])}</ul>")
    return "\n".join(parts)


def _bars(data: RunReport) -> str:
    groups = [*_shown(data.types), data.overall]
    bars = [
        Bar(
            plain(group.name),
            group.base.accuracy,
            group.tuned.accuracy,
            group.base.accuracy_ci,
            group.tuned.accuracy_ci,
            group.blind,
        )
        for group in groups
    ]
    chart = bar_chart(bars, title="Accuracy by question type", marker_label="blind level: no picture needed")
    return f'<div class="scroll">{chart}</div>'


def _table(data: RunReport) -> str:
    groups = _shown(data.types)
    rows = [_table_row(group, "") for group in groups] + [_table_row(data.overall, ' class="all"')]
    left_out = len(data.types) - len(groups)
    note = paragraph(f"{left_out} rarer question types are counted in the total only.") if left_out else ""
    return (
        '<div class="scroll"><table><thead><tr><th>Questions</th><th>n</th><th>Blind</th><th>Accuracy, base</th>'
        "<th>Accuracy, tuned</th><th>Gain, points</th><th>95 %</th><th>Format, base</th><th>Format, tuned</th>"
        "<th>Right among valid, base</th><th>tuned</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _table_row(group: Group, css: str) -> str:
    cells = [
        safe(group.name, 60),
        str(group.n),
        percent(group.blind),
        percent(group.base.accuracy),
        percent(group.tuned.accuracy),
        points(group.gain),
        interval(group.gain_ci),
        percent(group.base.format_rate),
        percent(group.tuned.format_rate),
        percent(group.base.accuracy_given_format),
        percent(group.tuned.accuracy_given_format),
    ]
    return f"<tr{css}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _shown(types: Sequence[Group]) -> list[Group]:
    """The commonest types, in the order given."""
    keep = {id(group) for group in sorted(types, key=lambda group: -group.n)[:MAX_TYPES]}
    return [group for group in types if id(group) in keep]


def _curves(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """A chart for each known quantity in the log, and what its guards warned of.

    Entries without a step, such as a final summary, are passed over.
    """
    logged = [entry for entry in history if is_number(entry.get("step"))]
    keys = list(dict.fromkeys(str(key) for entry in logged for key in entry))
    charts = []
    for title, y_label, pattern, y_range in _CURVES:
        for key in keys:
            if not (match := pattern.fullmatch(key)):
                continue
            curve = [(entry["step"], entry[key]) for entry in logged if key in entry]
            name = title or f"Reward: {plain(match.group(1))[:40]}"
            charts.append(line_chart(curve, title=name, x_label="step", y_label=y_label, y_range=y_range))
    warnings = [paragraph(f"After step {row['step']}: {row['warning']}") for row in logged if row.get("warning")]
    curves = [f'<div class="curves">{"".join(charts[:MAX_CURVES])}</div>'] if charts else []
    return curves + warnings[:MAX_CURVES]


def _examples(examples: Sequence[Example], pictures: bool) -> list[str]:
    shown = [_example(example, pictures) for example in examples[:16]]
    if not pictures and any(example.image for example in examples):
        shown.insert(0, paragraph("The pictures are left out: with them the report would be too large."))
    return shown


def _example(example: Example, pictures: bool) -> str:
    image = "<div></div>"
    if example.image and pictures:
        data = base64.b64encode(example.image).decode()
        image = f'<div><img alt="the picture asked about" src="data:image/png;base64,{data}"></div>'
    return (
        f'<article class="example"><header><b>{safe(example.kind, 40)}</b> '
        f'<span dir="auto">{safe(example.question, 600)}</span> '
        f'<span class="soft">gold: <span dir="auto">{safe(example.gold, 200)}</span></span></header>{image}'
        f"{_completion('base', example.base_completion, example.base_note)}"
        f"{_completion('tuned', example.tuned_completion, example.tuned_note)}</article>"
    )


def _completion(model: str, text: str, note: str) -> str:
    return (
        f'<div><span class="soft">{model}</span><pre dir="auto">{safe(text, MAX_TEXT)}</pre>'
        f'<span class="soft">{safe(note, 300)}</span></div>'
    )


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    text = json.dumps(config, indent=2, sort_keys=True, default=str, ensure_ascii=False)
    return f"<details><summary>Configuration</summary><pre>{safe(text, 12_000)}</pre></details>"
