"""The data report, and rows to look at, as one self-contained HTML file each. Data sets are hostile text too."""

from __future__ import annotations

import base64
import binascii
import string
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from vqa_grpo.report.data import DataReport, Sample
from vqa_grpo.report.page import page, paragraph, plain, safe, section
from vqa_grpo.report.pictures import kind_of_thumbnail
from vqa_grpo.report.run import percent
from vqa_grpo.report.svg import count_bars, histogram

MAX_BYTES = 1_000_000  # Kubeflow's page shows the file inside its own
MAX_PICTURE = 24_000  # characters of base64
MAX_CODES = 30
MAX_SPLITS = 20
MAX_VALUES = 10
MAX_BINS = 40
SHOWN_EXAMPLES = 5
_HISTOGRAMS = {
    "image_width": "Picture width, pixels",
    "image_height": "Picture height, pixels",
    "visual_tokens": "Visual tokens of a picture",
    "question_words": "Words of a question",
    "answer_words": "Words of an answer",
    "steps": "Reference steps of a row",
    "step_words": "Words of a reference step",
}
_COUNTS = {
    "answer_type": "Answer types",
    "answers": "Answers",
    "options": "Options offered",
    "image_format": "Picture formats",
    "image_mode": "Picture modes",
}
_STYLE = """
h1,p{overflow-wrap:anywhere}
details{margin:2px 0}summary{cursor:pointer;color:var(--soft)}code{font:13px ui-monospace,Menlo,Consolas,monospace}
table.problems td:nth-child(2),table.problems th:nth-child(2){text-align:left;white-space:normal;overflow-wrap:anywhere;
width:100%}table.problems td:first-child,table.splits td:first-child{white-space:normal;overflow-wrap:anywhere;
min-width:170px}
table.problems ul{margin:2px 0;padding-left:20px;font-size:13.5px}.curves{align-items:flex-start;row-gap:20px}
.rows{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(460px,100%),1fr));gap:12px}
.row{display:flex;gap:12px;padding:12px;background:var(--card);border:1px solid var(--line);border-radius:8px;
overflow-wrap:anywhere;min-width:0}
.row.unusable{border-left:4px solid var(--bad)}.row>div{min-width:0;flex:1}
.row figure{flex:0 0 128px;margin:0;font-size:12px;text-align:center;color:var(--soft)}
.row img{display:block;max-width:128px;margin:0 auto 4px;background:#fff;border-radius:4px}
.row .none{display:flex;align-items:center;justify-content:center;height:84px;margin-bottom:4px;
border:1px dashed var(--line);border-radius:4px}
.row p{margin:2px 0}.row ul,.row ol{margin:4px 0;padding-left:22px;font-size:13.5px}.row .id{font-size:12px}
.row ol{list-style:upper-alpha}.row ol.steps{list-style:decimal;color:var(--soft)}
.right{color:var(--good);font-weight:600}
.fatal{color:var(--bad)}.warning{color:var(--mark)}
"""


def render_data_report(
    report: DataReport,
    samples: Sequence[Sample],
    meanings: Mapping[str, str] | None = None,
    refusal: str | None = None,
) -> str:
    """The report as one HTML file: no script, no network, every text escaped, under 1 MB.

    `meanings` says what each code means. `refusal` is why the rules refuse the data set, empty where they do not;
    None leaves the verdict open.
    """
    lead = (
        f"{report.total:,} rows, {report.valid:,} of them usable"
        f"{f' ({_share(report.valid, report.total)})' if report.total else ''}"
    )
    head = [
        f"<h1>Data report: {safe(report.source, 200)}</h1>",
        f'<p class="lead">{lead}{f" and {report.invalid:,} not" if report.invalid else ""}.</p>',
        _verdict(refusal),
        paragraph(f"Digest of the usable rows, pictures and texts: {report.digest}") if report.digest else "",
    ]
    return _page(f"Data report: {report.source}", head, report, samples, meanings or {}, "Some of the rows")


def render_rows(
    title: str, samples: Sequence[Sample], figures: DataReport, meanings: Mapping[str, str] | None = None
) -> str:
    """Rows of a data set to look at, under 1 MB. `figures.rows` is of the whole data set, all else of these rows."""
    looked = f"{figures.total:,} rows"
    if len(samples) < figures.total:
        looked += f"; {len(samples):,} of them were looked at, and all but the table of splits is about these"
    head = [f"<h1>{safe(title, 200)}</h1>", f'<p class="lead">{looked}.</p>']
    return _page(title, head, figures, samples, meanings or {}, "Rows", looked_at=len(samples))


def _page(
    title: str,
    head: Iterable[str],
    report: DataReport,
    samples: Sequence[Sample],
    meanings: Mapping[str, str],
    rows_title: str,
    looked_at: int | None = None,
) -> str:
    rows = report.total if looked_at is None else looked_at
    sections = [
        "\n".join(filter(None, head)),
        section("What keeps rows out", [_problems(report, report.invalid_by_code, meanings, rows, fatal=True)]),
        section("Worth a look", [_problems(report, report.warnings_by_code, meanings, rows, fatal=False)]),
        section("Splits", [_splits(report), *_overlaps(report)]),
        section("Distributions", [_histograms(report)]),
        section("What there is", [_counts(report)]),
    ]
    room = MAX_BYTES - len(page(title, sections, _STYLE).encode()) - 1000
    sheet = section(rows_title, [_sheet(samples, set(report.invalid_by_code), room)])
    return page(title, [*sections, sheet], _STYLE)


def _verdict(refusal: str | None) -> str:
    if refusal is None:
        return ""
    if not refusal:
        return '<p><span class="badge promote">fit to train on</span></p>'
    return f'<p><span class="badge hold">refused</span> {safe(refusal, 800)}</p>'


def _share(part: int, whole: int) -> str:
    """Never "0.0 %" of something nor "100.0 %" of not quite all."""
    if whole and 0 < part < whole:
        shown = 100 * part / whole
        if not 0.05 <= shown < 99.95:
            return "< 0.1 %" if shown < 1 else "> 99.9 %"
    return percent(part / whole if whole else None)


# --- problems ---------------------------------------------------------------------------------------------------


def _problems(
    report: DataReport, by_code: Mapping[str, int], meanings: Mapping[str, str], rows: int, *, fatal: bool
) -> str:
    ranked = sorted(by_code.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        f'<tr><td><code class="{"fatal" if fatal else "warning"}">{safe(code, 60)}</code></td>'
        f"<td>{safe(meanings.get(code, ''), 200)}{_examples(report, code, unfold=fatal)}</td>"
        f"<td>{count:,}</td><td>{_share(count, rows)}</td></tr>"
        for code, count in ranked[:MAX_CODES]
    ]
    if not lines:
        return ""
    return (
        '<div class="scroll"><table class="problems"><thead><tr><th>Code</th><th>Meaning</th><th>Rows</th>'
        f"<th>Share</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"{_more(len(ranked) - MAX_CODES, 'codes')}"
    )


def _examples(report: DataReport, code: str, *, unfold: bool) -> str:
    found = (example for example in report.examples if example.get("code") == code)
    items = [
        f"<li><code>{safe(str(example.get('id', '')), 80)}</code> "
        f'<span class="soft">{safe(str(example.get("split", "")), 40)}</span> '
        f'<span dir="auto">{safe(str(example.get("sentence", "")), 240)}</span></li>'
        for example in islice(found, SHOWN_EXAMPLES)
    ]
    if not items:
        return ""
    return f"<details{' open' if unfold else ''}><summary>for example</summary><ul>{''.join(items)}</ul></details>"


def _more(count: int, what: str) -> str:
    return paragraph(f"{count:,} more {what} are not shown.") if count > 0 else ""


# --- the whole --------------------------------------------------------------------------------------------------


def _splits(report: DataReport) -> str:
    counted = bool(report.pictures)
    lines = []
    for split, rows in list(report.rows.items())[:MAX_SPLITS]:
        cells = [safe(split, 60), f"{rows:,}", _share(rows, report.total)]
        if counted:
            pictures = report.pictures.get(split, 0)
            cells += [f"{pictures:,}", f"{rows / pictures:.1f}" if pictures else "–"]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    pictures_head = "<th>Different pictures</th><th>Rows for each picture</th>" if counted else ""
    return (
        '<div class="scroll"><table class="splits"><thead><tr><th>Split</th><th>Rows</th><th>Share</th>'
        f"{pictures_head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"{_more(len(report.rows) - MAX_SPLITS, 'splits')}"
    )


def _overlaps(report: DataReport) -> list[str]:
    leaked, double = report.pictures_in_several_splits, report.duplicate_rows
    found = []
    if leaked:
        verb = "pictures stand" if leaked > 1 else "picture stands"
        sentence = f"Leakage: {leaked:,} {verb} in more than one split; the split that holds a picture out keeps it."
        found.append(f'<p class="warning">{sentence}</p>')
    elif len(report.pictures) > 1:
        found.append(paragraph("No picture stands in more than one split."))
    if double:
        verb = "rows repeat" if double > 1 else "row repeats"
        found.append(f'<p class="warning">Duplicates: {double:,} {verb} an earlier one, picture and texts alike.</p>')
    return found


def _histograms(report: DataReport) -> str:
    charts = [
        histogram(found.edges, found.counts, title=title)
        for name, title in _HISTOGRAMS.items()
        if (found := report.histograms.get(name)) and sum(found.counts) and len(found.counts) <= MAX_BINS
    ]
    return f'<div class="curves">{"".join(charts)}</div>' if charts else ""


def _counts(report: DataReport) -> str:
    charts = [
        _bars(title, counts)
        for title, counts in (
            *((title, report.counts.get(name, {})) for name, title in _COUNTS.items()),
            ("Sources", report.by_source),
        )
        if counts
    ]
    return f'<div class="curves">{"".join(charts)}</div>' if charts else ""


def _bars(title: str, counts: Mapping[str, int]) -> str:
    """The commonest values, and all others as one."""
    ranked = [(plain(value)[:80] or "(none)", count) for value, count in counts.items()]
    shown = ranked[:MAX_VALUES]
    if rest := sum(count for _, count in ranked[MAX_VALUES:]):
        shown.append(("(all others)", rest))
    return count_bars(shown, sum(counts.values()), title=title)


# --- rows -------------------------------------------------------------------------------------------------------


def _sheet(samples: Sequence[Sample], fatal: set[str], room: int) -> str:
    """As many rows, from the first on, as fit into `room` bytes."""
    cards: list[str] = []
    for sample in samples:
        card = _card(sample, fatal)
        room -= len(card.encode()) + 1
        if room < 0:
            break
        cards.append(card)
    note = _more(len(samples) - len(cards), "rows, which would make this page too large,")
    return f'<div class="rows">{"".join(cards)}</div>{note}' if samples else ""


def _card(sample: Sample, fatal: set[str]) -> str:
    unusable = any(_code(problem) in fatal for problem in sample.problems)
    return (
        f'<article class="row{" unusable" if unusable else ""}">{_figure(sample)}<div>'
        f'<p class="soft id">{safe(sample.id, 120)} · {safe(sample.split, 40)}</p>'
        f'<p dir="auto"><b>{safe(sample.question, 400) or "(no question)"}</b></p>{_options(sample)}'
        f'<p>Answer: <span class="right" dir="auto">{safe(sample.answer, 200) or "(none)"}</span></p>'
        f"{_list(sample.steps, 12, 'ol', 'steps')}{_problem_list(sample, fatal)}</div></article>"
    )


def _figure(sample: Sample) -> str:
    size = f"{sample.width} × {sample.height}" if sample.width else ""
    shown = _picture(sample.picture)
    image = f'<img alt="the picture asked about" src="{shown}">' if shown else '<div class="none">no picture</div>'
    return f"<figure>{image}{size}</figure>"


def _picture(encoded: str) -> str:
    """A data URL; empty where the text is not the base64 of a small PNG or JPEG."""
    if not encoded or len(encoded) > MAX_PICTURE:
        return ""
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return ""
    kind = kind_of_thumbnail(data)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}" if kind else ""


def _options(sample: Sample) -> str:
    """The options, lettered as the model sees them; the one that is the answer, by text or letter, is marked."""
    answer = sample.answer.strip().casefold()
    texts = [option.strip().casefold() for option in sample.options]
    named = texts if answer in texts else list(string.ascii_lowercase)
    right = named.index(answer) if answer in named else -1
    return _list(sample.options, 26, "ol", "options", right)


def _list(texts: Sequence[str], most: int, tag: str, css: str, marked: int = -1) -> str:
    items = [
        f'<li dir="auto"{" class=right" if index == marked else ""}>{safe(text, 160)}</li>'
        for index, text in enumerate(texts[:most])
    ]
    if len(texts) > most:
        items.append(f"<li>… and {len(texts) - most:,} more</li>")
    return f'<{tag} class="{css}">{"".join(items)}</{tag}>' if items else ""


def _problem_list(sample: Sample, fatal: set[str]) -> str:
    items = [
        f'<li class="{"fatal" if _code(problem) in fatal else "warning"}" dir="auto">{safe(problem, 260)}</li>'
        for problem in sample.problems[:12]
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _code(problem: str) -> str:
    """Of "code: sentence"."""
    return problem.partition(":")[0]
