"""Whether two answers are the same mathematics, decided by PyPI `math-verify`.

The library guards itself with `signal.alarm`, which works in the main thread alone, takes away whatever alarm its
caller had set, and cannot interrupt a power of integers that runs for hours inside C. So it works in a process of its
own (`math_worker.py`), which any thread may ask, and which is replaced when an answer kills it.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vqa_grpo.scoring.metrics.shape import Scored, metric, shown

# Nothing longer is an answer, and parsing takes the square of the length.
MAX_CHARACTERS = 512
MAX_GOLDS = 16
# The worker gives itself 8 seconds of processor time; a machine that stalls for this long has lost it.
PATIENCE_S = 60.0
REMEMBERED = 4096


class Unavailable(RuntimeError):
    """math-verify is not installed, or its process cannot be started."""


class _Worker:
    """One process, asked one question at a time."""

    def __init__(self) -> None:
        here = Path(__file__).with_name("math_worker.py")
        # -P: the worker's folder must not come before the libraries; the caller's path must be the worker's too.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(here)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        hello = self._answer()
        if hello is None or "missing" in hello:
            self.close()
            raise Unavailable(str((hello or {}).get("missing", "its process ended before it began")))

    def ask(self, golds: Sequence[str], prediction: str) -> bool | None:
        """Whether the prediction equals a gold; None when the worker died of the question."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"golds": list(golds), "prediction": prediction}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        reply = self._answer()
        return None if reply is None else bool(reply["equal"])

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        descriptor, line, end = self._process.stdout.fileno(), b"", time.monotonic() + PATIENCE_S
        with selectors.DefaultSelector() as waiting:
            waiting.register(descriptor, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not waiting.select(max(0.0, end - time.monotonic())):
                    return None
                piece = os.read(descriptor, 65536)
                if not piece:
                    return None
                line += piece
        reply: dict[str, Any] = json.loads(line)
        return reply

    def died(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


_lock = threading.Lock()
_worker: _Worker | None = None


def _forget() -> None:
    """After a fork the pipe belongs to the parent, and the lock may have been held by a thread that is gone."""
    global _lock, _worker
    _lock, _worker = threading.Lock(), None


@atexit.register
def close() -> None:
    """End the worker, if there is one; the next question starts another. Waits for nobody: it also runs at exit."""
    global _worker
    worker, _worker = _worker, None
    if worker is not None:
        worker.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@lru_cache(maxsize=REMEMBERED)
def _asked(golds: tuple[str, ...], prediction: str) -> bool | None:
    global _worker
    with _lock:
        # One that something else has killed since the last question says nothing about this one.
        if _worker is None or _worker.died():
            _worker = _Worker()
        worker = _worker
        equal = worker.ask(golds, prediction)
        if equal is None:
            worker.close()
            _worker = None
        return equal


@lru_cache(maxsize=1)
def missing() -> str:
    """Why math-verify cannot be used here, or "" when it can. Asks once for each process."""
    global _worker
    try:
        with _lock:
            _worker = _worker or _Worker()
    except (Unavailable, OSError) as problem:
        return str(problem)
    return ""


_PROSE = re.compile(r"(?:^|\s)[A-Za-z]{2,}(?=\s|$)")


def as_latex(text: str) -> str:
    r"""Bare LaTeX put between dollar signs, without which math-verify reads 2^{10} as 2; all else as it stands.

    >>> as_latex(r"\sqrt{4}"), as_latex(r"the side is \sqrt{4}"), as_latex("1/2")
    ('$\\sqrt{4}$', 'the side is \\sqrt{4}', '1/2')
    """
    bare = any(mark in text for mark in "\\^{") and not any(mark in text for mark in ("$", "\\(", "\\[", "\\boxed"))
    return f"${text}$" if bare and not _PROSE.search(text) else text


def _plain(text: str) -> str:
    """Spaces, dollar signs and a final period aside. Case matters in mathematics, but not in words."""
    plain = " ".join(text.split()).strip(" $").rstrip(" .")
    return plain.casefold() if len(plain) > 1 and plain.replace(" ", "").isalpha() else plain


def _letter(text: str, options: Sequence[str]) -> int | None:
    """The option that a text names by its letter, or by its own text when no other option reads the same."""
    letter = _plain(text).strip("()").upper()
    if len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(options):
        return ord(letter) - ord("A")
    same = [at for at, option in enumerate(options) if _plain(option) == _plain(text)]
    return same[0] if len(same) == 1 else None


@metric("math", lambda golds, options: "choice" if options else "math")
def math(prediction: str, golds: list[str], options: list[str]) -> Scored:
    """1 when the answer is the gold's text, the gold's option, or mathematically equal to it; else 0."""
    if len(prediction) > MAX_CHARACTERS:
        return Scored(0.0, "too_long", f"an answer of {len(prediction)} characters is not parsed")
    golds = [gold for gold in golds if len(gold) <= MAX_CHARACTERS][:MAX_GOLDS]
    said = _plain(prediction)
    if any(said == _plain(gold) for gold in golds):
        return Scored(1.0, "same_text", f"{shown(prediction)} is the gold's text")
    if options:
        picked = _letter(prediction, options)
        keys = sorted({at for at in (_letter(gold, options) for gold in golds) if at is not None})
        if picked is not None and keys:
            why = f"option {picked + 1} is chosen, {' or '.join(str(at + 1) for at in keys)} is right"
            return Scored(float(picked in keys), "choice", why)
        # A letter has no mathematics; what it stands for has.
        golds = [options[at] for at in keys if len(options[at]) <= MAX_CHARACTERS] or golds
    why = missing()
    if why:
        return Scored(0.0, "library_missing", f"mathematical equality needs the package math-verify: {why}")
    try:
        equal = _asked(tuple(map(as_latex, golds)), as_latex(prediction))
    except (Unavailable, OSError) as problem:
        return Scored(0.0, "library_missing", f"math-verify's process does not start: {problem}")
    if equal is None:
        return Scored(0.0, "gave_up", f"comparing {shown(prediction)} took too long or too much memory")
    relation = "equals" if equal else "differs from"
    return Scored(float(equal), "equivalence", f"{shown(prediction)} {relation} {' or '.join(map(shown, golds[:3]))}")
