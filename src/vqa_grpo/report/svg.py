"""Small charts as inline SVG. Colours are CSS variables, so that a page can serve light and dark screens."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from vqa_grpo.report.run import Interval, is_interval, is_number

MAX_POINTS = 240  # more than a chart of this size can show


@dataclass(frozen=True)
class Bar:
    """One labelled pair of bars, rates from 0 to 1; `marker` is drawn across both."""

    label: str
    base: float | None
    tuned: float | None
    base_ci: Interval = None
    tuned_ci: Interval = None
    marker: float | None = None


def line_chart(
    points: Sequence[tuple[float, float | None]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    width: int = 340,
    height: int = 200,
) -> str:
    """One line over steps; a point that is None or NaN leaves a gap. `y_range` is the least that the axis shows."""
    known = [(x, y) for x, y in points if _drawable(x) and _drawable(y)]
    if not known:
        return _frame(width, height, title, [_text(width / 2, height / 2, "nothing was logged", anchor="middle")])
    ys = [y for _, y in known] + list(y_range or ())
    x_ticks = _ticks(min(x for x, _ in known), max(x for x, _ in known), 5)
    y_ticks = _ticks(min(ys), max(ys), 4)
    left, right, top, bottom = 56, 12, 26, 38

    def across(x: float) -> float:
        return left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (width - left - right)

    def up(y: float) -> float:
        return height - bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - top - bottom)

    parts = [_text(left, 14, title, css="name")]
    for y in y_ticks:
        parts.append(_line(left, up(y), width - right, up(y), "grid"))
        parts.append(_text(left - 6, up(y) + 3.5, _short(y), anchor="end"))
    parts += [_text(across(x), height - bottom + 14, _short(x), anchor="middle") for x in x_ticks]
    parts.append(_text((left + width - right) / 2, height - 6, x_label, anchor="middle"))
    middle = (top + height - bottom) / 2
    parts.append(_text(12, middle, y_label, anchor="middle", extra=f' transform="rotate(-90 12 {middle:.1f})"'))
    for run in _runs(_thinned(points)):
        dots = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in run)
        if len(run) > 1:
            parts.append(f'<polyline class="curve" points="{dots}"/>')
        else:
            parts.append(f'<circle class="dot" cx="{across(run[0][0]):.1f}" cy="{up(run[0][1]):.1f}" r="2.5"/>')
    return _frame(width, height, f"{title}: {y_label} over {x_label}", parts)


def bar_chart(bars: Sequence[Bar], *, title: str, marker_label: str, width: int = 720) -> str:
    """Base and tuned rates side by side, with their intervals and a marker for each pair."""
    left, right, top, row = 150, 60, 34, 46
    height = top + row * len(bars) + 34

    def across(rate: float) -> float:
        return left + min(1.0, max(0.0, rate)) * (width - left - right)

    parts = [_legend(left, marker_label)]
    for tick in range(0, 101, 20):
        x = across(tick / 100)
        parts.append(_line(x, top, x, height - 30, "grid"))
        parts.append(_text(x, height - 14, f"{tick} %", anchor="middle"))
    for index, bar in enumerate(bars):
        y = top + index * row + 6
        parts.append(_text(left - 10, y + 21, _clipped(bar.label, 22), anchor="end"))
        for css, rate, bounds, at in (("base", bar.base, bar.base_ci, y), ("tuned", bar.tuned, bar.tuned_ci, y + 18)):
            if not is_number(rate):
                parts.append(_text(left + 6, at + 12, "no value"))
                continue
            parts.append(
                f'<rect class="{css}" x="{left}" y="{at:.1f}" width="{across(rate) - left:.1f}" height="15" rx="2"/>'
            )
            end = across(rate)
            if is_interval(bounds):
                low, high = across(bounds[0]), across(bounds[1])
                end = max(end, high)
                parts.append(_line(low, at + 7.5, high, at + 7.5, "whisker"))
                parts += [_line(x, at + 4, x, at + 11, "whisker") for x in (low, high)]
            parts.append(_text(end + 6, at + 11.5, f"{100 * rate:.1f} %"))
        if is_number(bar.marker):
            parts.append(_line(across(bar.marker), y - 3, across(bar.marker), y + 36, "marker"))
    return _frame(width, height, title, parts)


def histogram(edges: Sequence[float], counts: Sequence[int], *, title: str, width: int = 330, height: int = 190) -> str:
    """A bar for each of the given bins, all equally wide; empty bins at both ends are left out.

    `counts[i]` whole numbers lie in edges[i] ≤ number < edges[i + 1]; the last bin also holds what is beyond.
    """
    filled = [index for index, count in enumerate(counts) if count > 0]
    if not filled or len(edges) != len(counts) + 1:
        return _frame(width, height, title, [_text(width / 2, height / 2, "nothing to count", anchor="middle")])
    bins = range(filled[0], filled[-1] + 1)
    names = [_bin_name(edges, index) for index in bins]
    left, right, top, bottom = 48, 12, 40, 24
    y_ticks = [tick for tick in _ticks(0, max(counts), 4) if tick == int(tick)]
    step = min((width - left - right) / len(bins), 60)

    def up(count: float) -> float:
        return height - bottom - count / y_ticks[-1] * (height - top - bottom)

    parts = [_text(left, 14, title, css="name"), _text(left, 29, _middle(edges, counts))]
    for tick in y_ticks:
        parts.append(_line(left, up(tick), width - right, up(tick), "grid"))
        parts.append(_text(left - 6, up(tick) + 3.5, _thousands(tick), anchor="end"))
    free = 0.0  # where the next label may begin
    for place, (index, name) in enumerate(zip(bins, names, strict=True)):
        x, y = left + place * step, up(counts[index])
        parts.append(
            f'<rect class="tuned" x="{x + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}" '
            f'height="{height - bottom - y:.1f}"><title>{name}: {counts[index]:,}</title></rect>'
        )
        half = 3.2 * len(name)  # about half of its width
        if x + step / 2 - half >= free and x + step / 2 + half <= width:
            parts.append(_text(x + step / 2, height - 8, name, anchor="middle"))
            free = x + step / 2 + half + 6
    return _frame(width, height, title, parts)


def count_bars(counts: Sequence[tuple[str, int]], total: int, *, title: str, width: int = 330) -> str:
    """A bar for each value, beside it the count and its share of the total; the commonest fills the width."""
    left, right, top, row = 106, 114, 26, 20
    height = top + row * len(counts) + 6
    longest = max((count for _, count in counts), default=0) or 1
    parts = [_text(0, 14, title, css="name")]
    for index, (label, count) in enumerate(counts):
        y = top + index * row
        length = max(0, count) / longest * (width - left - right)
        parts.append(
            f"<g><title>{html.escape(label)}</title>{_text(left - 8, y + 12, _clipped(label, 16), anchor='end')}</g>"
        )
        parts.append(f'<rect class="tuned" x="{left}" y="{y + 1}" width="{max(1.0, length):.1f}" height="14" rx="2"/>')
        parts.append(_text(left + length + 6, y + 12, f"{count:,} ({100 * count / (total or 1):.1f} %)"))
    return _frame(width, height, title, parts)


def _bin_name(edges: Sequence[float], index: int) -> str:
    """
    >>> [_bin_name([0, 1, 3, 8], index) for index in range(3)]
    ['0', '1–2', '3+']
    """
    low, high = edges[index], edges[index + 1] - 1
    if index == len(edges) - 2:
        return f"{low:g}+"
    return f"{low:g}" if high <= low else f"{low:g}–{high:g}"


def _middle(edges: Sequence[float], counts: Sequence[int]) -> str:
    """How many values there are, and the bin that the middle one lies in.

    >>> _middle([0, 1, 3, 8], [4, 3, 2]), _middle([0, 1, 3, 8], [0, 3, 0])
    ('9 values, half of them up to 1–2', '3 values, all 1–2')
    """
    total, passed = sum(counts), 0
    if total in counts:
        return f"{total:,} values, all {_bin_name(edges, list(counts).index(total))}"
    for index, count in enumerate(counts):
        passed += count
        if 2 * passed >= total:
            return f"{total:,} values, half of them up to {_bin_name(edges, index)}"
    return ""


def _thousands(count: float) -> str:
    """
    >>> [_thousands(count) for count in (0, 950, 1500, 20000, 3e6)]
    ['0', '950', '1.5k', '20k', '3M']
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return f"{count:g}"


def _legend(left: float, marker_label: str) -> str:
    parts = []
    for offset, css, label in ((0, "base", "base"), (80, "tuned", "tuned")):
        parts.append(f'<rect class="{css}" x="{left + offset}" y="6" width="14" height="12" rx="2"/>')
        parts.append(_text(left + offset + 20, 16, label))
    parts.append(_line(left + 167, 4, left + 167, 20, "marker"))
    parts.append(_text(left + 176, 16, marker_label))
    return "".join(parts)


def _frame(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    name = html.escape(title)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "", extra: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}{extra}>{html.escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that enclose low and high; at least two, so that an axis always has a length.

    >>> _ticks(0, 1, 4), _ticks(3, 3, 4), _ticks(0.12, 0.47, 4)
    ([0.0, 0.5, 1.0], [2.0, 2.5, 3.0, 3.5, 4.0], [0.1, 0.2, 0.3, 0.4, 0.5])
    """
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-30):
        spread = size / 3 if size > 1e-30 else 1.0
        low, high = low - spread, high + spread
    rough = (high - low) / about
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Every k-th point and the last one."""
    stride = -(-len(points) // MAX_POINTS)
    kept = list(points[::stride])
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Stretches of known points between the gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if _drawable(x) and _drawable(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _drawable(value: float | None) -> TypeGuard[float]:
    """Not missing, and small enough that an axis around it does not overflow."""
    return is_number(value) and abs(value) < 1e100


def _short(value: float) -> str:
    return f"{value:.4g}"


def _clipped(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
