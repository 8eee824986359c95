"""One self-contained HTML page: no script, no network, light and dark. Every text on it is treated as hostile."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
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
pre{margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere;font:12.5px/1.45 ui-monospace,Menlo,Consolas,monospace;
unicode-bidi:isolate}
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'">
<title>{title}</title><style>{style}</style></head><body>
{body}
</body></html>
"""


def page(title: str, sections: Iterable[str], style: str = "") -> str:
    """The whole file; sections are HTML, and empty ones are passed over. `style` is CSS beyond the house's own."""
    return _PAGE.format(title=safe(title, 200), style=_STYLE + style, body="\n".join(filter(None, sections)))


def section(title: str, parts: Iterable[str]) -> str:
    """A heading over parts, which are HTML; nothing where all of them are empty."""
    body = "\n".join(filter(None, parts))
    return f"<section><h2>{title}</h2>\n{body}</section>" if body else ""


def paragraph(text: str) -> str:
    return f'<p class="soft">{safe(text, 600)}</p>'


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = "".join(
        f"<tr><th>{safe(str(name), 100)}</th><td>{safe(str(value), 400)}</td></tr>"
        for name, value in list(values.items())[:60]
    )
    return f'<table class="pairs"><tbody>{rows}</tbody></table>' if rows else ""


def safe(text: str, limit: int) -> str:
    """Escaped, without characters that HTML forbids, and cut with a note of what was left out."""
    text = plain(text)
    shown = text[:limit]
    if len(html.escape(shown).encode()) > 2 * limit:
        shown = shown[: limit // 3]  # a quote takes six bytes: text made of them must not blow up the page
    left_out = f" … ({len(text) - len(shown):,} more characters)" if len(shown) < len(text) else ""
    return html.escape(shown + left_out, quote=True)


def plain(text: str) -> str:
    """The text without characters that HTML forbids."""
    return _CONTROL.sub("\ufffd", text)
