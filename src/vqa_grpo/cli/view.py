"""What a person sees of a run: a line for each step, bars on a terminal, plain lines elsewhere, one log file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from vqa_grpo.report.progress import describe

_PLAIN_SECONDS = 10.0


class View:
    """Follows one pipeline. A context manager: bars are drawn only inside. `quiet` keeps stdout for programs."""

    def __init__(self, run_id: str, log: Path, quiet: bool) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8")
        self._out = sys.stderr if quiet else sys.stdout
        self._tasks: dict[str, tuple[float, float]] = {}  # task → when it began, when it was last shown
        self._bars: Any = None
        self._ids: dict[str, Any] = {}
        self.say(f"run {run_id}, log {log}")

    def __enter__(self) -> View:
        if self._out.isatty():
            self._bars = _bars(self._out)
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        self.log(text)
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._out, flush=True)

    def complain(self, text: str) -> None:
        """The last word on a run that failed, for the log and for standard error."""
        self.log(text)
        print(text, file=sys.stderr, flush=True)

    def log(self, line: str) -> None:
        self._log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        self._log.flush()

    def event(self, event: dict[str, Any]) -> None:
        if event["event"] in ("started", "failed"):
            self.log(f"{event['step']} {event['event']} {event.get('error', '')}".rstrip())
            return
        self._clear_bars()
        if event["event"] not in ("finished", "reused"):
            self.say(f"! {event['step']:<10}{event['event']}" + (f": {event['why']}" if "why" in event else ""))
            return
        seconds = f" {event['seconds']:.1f} s" if "seconds" in event and event["event"] != "reused" else ""
        mark = "=" if event["event"] == "reused" else "✓"
        words = "unchanged, reused" if event["event"] == "reused" else "done"
        self.say(f"{mark} {event['step']:<10}{words}{seconds}")

    def progress(self, report: dict[str, Any]) -> None:
        task, done, total, note = report["task"], report["done"], report["total"], report.get("note", "")
        now = time.monotonic()
        began, shown = self._tasks.setdefault(task, (now, now))
        if self._bars is not None:
            self._show_bar(task, done, total, note)
        if now - shown >= _PLAIN_SECONDS or (total and done == total):
            line = "  " + describe(task, done, total, now - began, note)
            self.log(line)
            if self._bars is None:
                print(line, file=self._out, flush=True)
            self._tasks[task] = (began, now)

    def _show_bar(self, task: str, done: int, total: int, note: str) -> None:
        if task not in self._ids:
            self._ids[task] = self._bars.add_task(task, total=total or None, note="")
        self._bars.update(self._ids[task], completed=done, note=note[:60])

    def _clear_bars(self) -> None:
        if self._bars is not None:
            for number in self._ids.values():
                self._bars.remove_task(number)
        self._ids = {}


def _bars(out: Any) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description:<24}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(file=out))


def summary_text(
    summary: dict[str, Any], folder: Path, tracking_uri: str, runs: Path, storage: str, seconds: float
) -> str:
    """The end of a run in a dozen lines: before and after, verdict, where to look, what to do next."""
    base, tuned, blind = summary["base"], summary["tuned"], summary["blind"]
    comparison, gate, model = summary["comparison"], summary["gate"], summary["model"]
    lines = ["", f"{'':<28}{'base':>8}{'tuned':>8}{'blind':>8}"]
    lines.append(_row("accuracy", base["accuracy"], tuned["accuracy"], blind["accuracy"]))
    for name in sorted(tuned["by_type"]):
        levels = (side["by_type"].get(name, {}).get("accuracy") for side in (base, tuned))
        lines.append(_row(f"  {name}", *levels, blind["by_type"].get(name)))
    lines.append(_row("well-formed answers", base["format_rate"], tuned["format_rate"]))
    lines.append(_row("accuracy among well-formed", base["accuracy_given_format"], tuned["accuracy_given_format"]))
    low, high = comparison["gain_ci"] or (None, None)
    lines += [
        "",
        f"accuracy {_points(comparison['gain'])} points, 95 % interval [{_points(low)}, {_points(high)}]: "
        f"{_points(comparison['from_format'])} from format, {_points(comparison['from_answers'])} from better answers "
        f"({tuned['n']} held-out questions)",
        f"gate: {gate['decision']}" + "".join(f"\n  - {reason}" for reason in gate["reasons"]),
    ]
    if model["version"]:
        lines.append(f"registered: {model['name']} version {model['version']}, which this run made @{model['alias']}")
    again = f" --storage {storage}" if storage else ""
    lines += [
        "",
        f"report:  {folder / 'report.html'}",
        f"numbers: {runs / 'latest' / 'summary.json'}",
        f"MLflow:  {Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {tracking_uri}",
        f"your own data: {Path(sys.argv[0])} run{again} --set data.source=FOLDER   (made by datasets.save_to_disk)",
        f"{seconds:.0f} s in all",
    ]
    return "\n".join(lines)


def _row(name: str, *rates: float | None) -> str:
    return f"{name:<28}" + "".join(f"{'-' if rate is None else f'{rate:.3f}':>8}" for rate in rates)


def _points(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:+.1f}"
