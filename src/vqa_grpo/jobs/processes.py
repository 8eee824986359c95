"""Find and end processes by a mark in their environment, whatever session or family they are in."""

from __future__ import annotations

import os
import time

import psutil

_LIMIT_SECONDS = 10.0  # a process in the kernel's hands cannot be killed; waiting for it would hang whoever ends a run
_POLL_SECONDS = 0.05


def kill_marked(variable: str, value: str) -> None:
    """Kill every process whose environment holds `variable=value`, but not this one. Gives up after ten seconds."""
    give_up = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < give_up:  # again, for a process may have started another meanwhile
        left = [process for process in psutil.process_iter() if _has_mark(process, variable, value)]
        if not left:
            return
        for process in left:
            try:
                process.kill()
            except (psutil.Error, OSError):
                continue  # gone already
        time.sleep(_POLL_SECONDS)


def _has_mark(process: psutil.Process, variable: str, value: str) -> bool:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.environ().get(variable) == value
    except (psutil.Error, OSError):
        return False  # gone already, or not ours to look at
