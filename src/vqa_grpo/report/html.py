"""One self-contained HTML file for a run. Completions come from a model and are treated as hostile text."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# What a trainer's log may hold, in the order of the page: title, axis, key, least range of the axis.
_CURVES = (
    ("Reward", "reward", re.compile(r"reward"), None),
    ("", "mean reward", re.compile(r"rewards/(.+)/mean"), (0.0, 1.0)),
    ("Completion length", "tokens", re.compile(r"completions/mean_length"), None),
    ("Entropy", "nats", re.compile(r"entropy"), None),
    ("Gradient norm", "norm", re.compile(r"grad_norm"), None),
    ("Divergence from the base (KL)", "nats", re.compile(r"kl"), None),
    ("Groups whose rewards are all equal", "share", re.compile(r"frac_reward_zero_std"), (0.0, 1.0)),
)
_STYLE = """
:root{color-scheme:light dark;--ink:#1b2430;--soft:#5b6675;--line:#d9dee5;--page:#fff;--card:#f6f8fa;--base:#9aa5b4;
--tuned:#2b6cd4;--mark:#b4470b;--good:#1a7f45;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--line:#343d49;--page:#14181e;--card:#1c222a;
--base:#6b7788;--tuned:#6ea8ff;--mark:#f0a35e;--good:#5fcf8d;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:24px 20px 60px;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:22px;margin:0 0 4px}h2{font-size:17px;margin:36px 0 10px}p{margin:6px 0}
.lead{font-size:19px;margin:8px 0 12px}.soft{color:var(--soft)}
.badge{display:inline-block;padding:2px 12px;border-radius:12px;border:1.5px solid;font-weight:600}
.promote{color:var(--good)}.hold{color:var(--bad)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{font-weight:600;color:var(--soft)}td{white-space:nowrap}th:first-child,td:first-child{text-align:left}
tr.all td{font-weight:600;border-top:2px solid var(--line)}
table.pairs td,table.pairs th{text-align:left;white-space:normal;overflow-wrap:anywhere}table.pairs th{width:220px}
.curves{display:flex;flex-wrap:wrap;gap:12px}svg{max-width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}svg text.name{font-weight:600;fill:var(--ink)}
svg .grid{stroke:var(--line)}svg .curve{fill:none;stroke:var(--tuned);stroke-width:1.6}svg .dot{fill:var(--tuned)}
svg .base{fill:var(--base)}svg .tuned{fill:var(--tuned)}svg .whisker{stroke:var(--ink);stroke-width:1.2}
svg .marker{stroke:var(--mark);stroke-width:2;stroke-dasharray:4 2}
.example{display:grid;grid-template-columns:136px 1fr 1fr;gap:12px;padding:12px;margin:10px 0;background:var(--card);
border:1px solid var(--line);border-radius:8px}
.example header{grid-column:1/-1}.example img{max-width:128px;max-height:128px;image-rendering:auto}
pre{margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere;font:12.5px/1.45 ui-monospace,Menlo,Consolas,monospace;
unicode-bidi:isolate}
@media(max-width:700px){.example{grid-template-columns:1fr}}
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'">
<title>{title}</title><style>{style}</style></head><body>
{body}
</body></html>
"""


def render_run_report(data: RunReport) -> str:
    """The report as one HTML file: no script, no network, every text escaped, under 500 kB.

    Should the pictures not fit, the report says so and goes without them.
    """
    page = _page(data, pictures=True)
    return page if len(page.encode()) <= MAX_BYTES else _page(data, pictures=False)


def _page(data: RunReport, *, pictures: bool) -> str:
    sections = [
        _head(data),
        _section("Before and after", [_bars(data), _table(data), *(_paragraph(note) for note in data.notes[:20])]),
        _section("Training", _curves(data.history)),
        _section("Examples", _examples(data.examples, pictures)),
        _section("Made from", [_pairs(data.lineage), _config(data.config)]),
        _section("Time", [_pairs({name: duration(seconds) for name, seconds in data.timings.items()})]),
    ]
    return _PAGE.format(title=_safe(data.title, 200), style=_STYLE, body="\n".join(filter(None, sections)))


def _head(data: RunReport) -> str:
    sentence = headline(data)
    parts = [
        f"<h1>{_safe(data.title, 200)}</h1>",
        f'<p class="lead">{_safe(sentence[:1].upper() + sentence[1:], 500)}.</p>',
    ]
    if data.decision:
        css = data.decision if data.decision in ("promote", "hold") else ""
        parts.append(f'<p><span class="badge {css}">{_safe(data.decision, 60)}</span></p>')
    if data.reasons:
        parts.append(f"<ul>{''.join(f'<li>{_safe(reason, 600)}</li>' for reason in data.reasons[:20])}</ul>")
    return "\n".join(parts)


def _section(title: str, parts: Iterable[str]) -> str:
    body = "\n".join(filter(None, parts))
    return f"<section><h2>{title}</h2>\n{body}</section>" if body else ""


def _paragraph(text: str) -> str:
    return f'<p class="soft">{_safe(text, 600)}</p>'


def _bars(data: RunReport) -> str:
    groups = [*_shown(data.types), data.overall]
    bars = [
        Bar(
            _plain(group.name),
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
    note = _paragraph(f"{left_out} rarer question types are counted in the total only.") if left_out else ""
    return (
        '<div class="scroll"><table><thead><tr><th>Questions</th><th>n</th><th>Blind</th><th>Accuracy, base</th>'
        "<th>Accuracy, tuned</th><th>Gain, points</th><th>95 %</th><th>Format, base</th><th>Format, tuned</th>"
        "<th>Right among valid, base</th><th>tuned</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _table_row(group: Group, css: str) -> str:
    cells = [
        _safe(group.name, 60),
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
    """A chart for each known quantity in the log; entries without a step, such as a final summary, are passed over."""
    logged = [entry for entry in history if is_number(entry.get("step"))]
    keys = list(dict.fromkeys(str(key) for entry in logged for key in entry))
    charts = []
    for title, y_label, pattern, y_range in _CURVES:
        for key in keys:
            if not (match := pattern.fullmatch(key)):
                continue
            curve = [(entry["step"], entry[key]) for entry in logged if key in entry]
            name = title or f"Reward: {_plain(match.group(1))[:40]}"
            charts.append(line_chart(curve, title=name, x_label="step", y_label=y_label, y_range=y_range))
    return [f'<div class="curves">{"".join(charts[:MAX_CURVES])}</div>'] if charts else []


def _examples(examples: Sequence[Example], pictures: bool) -> list[str]:
    shown = [_example(example, pictures) for example in examples[:16]]
    if not pictures and any(example.image for example in examples):
        shown.insert(0, _paragraph("The pictures are left out: with them the report would be too large."))
    return shown


def _example(example: Example, pictures: bool) -> str:
    image = "<div></div>"
    if example.image and pictures:
        data = base64.b64encode(example.image).decode()
        image = f'<div><img alt="the picture asked about" src="data:image/png;base64,{data}"></div>'
    return (
        f'<article class="example"><header><b>{_safe(example.kind, 40)}</b> '
        f'<span dir="auto">{_safe(example.question, 600)}</span> '
        f'<span class="soft">gold: <span dir="auto">{_safe(example.gold, 200)}</span></span></header>{image}'
        f"{_completion('base', example.base_completion, example.base_note)}"
        f"{_completion('tuned', example.tuned_completion, example.tuned_note)}</article>"
    )


def _completion(model: str, text: str, note: str) -> str:
    return (
        f'<div><span class="soft">{model}</span><pre dir="auto">{_safe(text, MAX_TEXT)}</pre>'
        f'<span class="soft">{_safe(note, 300)}</span></div>'
    )


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{_safe(str(name), 100)}</th><td>{_safe(str(value), 400)}</td></tr>"
        for name, value in list(values.items())[:60]
    )
    return f'<table class="pairs"><tbody>{rows}</tbody></table>' if rows else ""


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    text = json.dumps(config, indent=2, sort_keys=True, default=str, ensure_ascii=False)
    return f"<details><summary>Configuration</summary><pre>{_safe(text, 12_000)}</pre></details>"


def _safe(text: str, limit: int) -> str:
    """Escaped, without characters that HTML forbids, and cut with a note of what was left out."""
    text = _plain(text)
    shown = text[:limit]
    if len(html.escape(shown).encode()) > 2 * limit:
        shown = shown[: limit // 3]  # a quote takes six bytes: text made of them must not blow up the page
    left_out = f" … ({len(text) - len(shown):,} more characters)" if len(shown) < len(text) else ""
    return html.escape(shown + left_out, quote=True)


def _plain(text: str) -> str:
    return _CONTROL.sub("\ufffd", text)
