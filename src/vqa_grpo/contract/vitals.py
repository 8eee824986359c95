"""What a worker process tells the program that started it: that it lives, and why it failed.

Small JSON files in the folder that VQA_GRPO_VITALS names, one of each kind for each rank, each written whole or not
at all. Where the variable is not set nobody asks, and nothing is written.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqa_grpo.contract.failure import FailureReason, StepError, reason_of

FOLDER = "VQA_GRPO_VITALS"
SENTENCE_LIMIT = 1000

# What gloo, NCCL and torch's store say on a process whose peer is gone or does not come. All are RuntimeErrors; a
# store or a web service that hangs up raises an OSError.
_LOST_PEER = re.compile(
    r"connection (closed|reset|refused) by peer|connection reset|broken pipe|remote process exited|ncclRemoteError|"
    r"socket (timeout|closed)|timed out|collective operation timeout|pair closure|recvvalue|wait timeout",
    re.IGNORECASE,
)
# gloo's own source line, and its guesses
_NOISE = re.compile(r"\[/\S+\.(cc|cpp):\d+\] | This is typically caused by.*")


@dataclass(frozen=True)
class Failure:
    """Why a rank failed. `peer`: it only lost another rank, or waited for one in vain, so that one is to blame.

    `time` is in seconds since the epoch, `step` the last one that began, None before the first.
    """

    reason: FailureReason
    sentence: str
    rank: int = 0
    host: str = ""
    time: float = 0.0
    step: int | None = None
    peer: bool = False


@dataclass(frozen=True)
class Beat:
    """A rank's last sign of life, its `count`th: at which step it was, and what it was about to do.

    `patience`: the longest pause in seconds after which the rank, and with it every other, counts as hung; None for
    no limit.
    """

    rank: int
    count: int
    time: float
    step: int
    doing: str
    patience: float | None


_last: Beat | None = None


def beat(step: int, doing: str, patience: float | None) -> None:
    """Show that this rank lives and what it turns to now."""
    global _last
    count = _last.count + 1 if _last else 1
    _last = Beat(rank(), count, time.time(), step, doing, patience)
    with suppress(OSError):  # a full disk must not end a run that needs none
        _write("beat", asdict(_last))


def still(doing: str) -> None:
    """The same step as the last beat, another thing to do; nothing before the first beat."""
    if _last:
        beat(_last.step, doing, _last.patience)


def fail(error: BaseException) -> None:
    """Leave the reason why this rank fails; the first one counts."""
    reason, sentence, peer = diagnose(error)
    step = _last.step if _last else None
    failure = Failure(reason, sentence[:SENTENCE_LIMIT], rank(), socket.gethostname(), time.time(), step, peer)
    folder = os.environ.get(FOLDER)
    if folder and not (Path(folder) / f"failure-{failure.rank}.json").exists():
        with suppress(OSError):
            _write("failure", asdict(failure))


def diagnose(error: BaseException) -> tuple[FailureReason, str, bool]:
    """Reason, one line for a person, and whether only a peer was lost."""
    text = _NOISE.sub("", " ".join(str(error).split()))
    if isinstance(error, StepError):
        return error.reason, text, False
    sentence = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        return reason_of(code), f"exit code {code}", False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return FailureReason.OUT_OF_MEMORY, sentence, False
    if isinstance(error, ImportError):
        return FailureReason.CONFIGURATION, f"{sentence}: the image or environment lacks it", False
    if isinstance(error, KeyboardInterrupt):
        return FailureReason.CANCELLED, sentence, False
    if isinstance(error, RuntimeError) and _LOST_PEER.search(text):
        return FailureReason.RETRY, sentence, True
    return FailureReason.INTERNAL, sentence, False


def reason_for(error: BaseException) -> FailureReason:
    return diagnose(error)[0]


def rank() -> int:
    return int(os.environ.get("RANK") or 0)


def failures(folder: Path) -> list[Failure]:
    """Every rank's failure, the first in time first."""
    found = [Failure(**(fields | {"reason": FailureReason(fields["reason"])})) for fields in _read(folder, "failure")]
    return sorted(found, key=lambda failure: failure.time)


def beats(folder: Path) -> list[Beat]:
    """Every rank's last sign of life, by rank."""
    return sorted((Beat(**fields) for fields in _read(folder, "beat")), key=lambda found: found.rank)


def _write(kind: str, content: dict[str, Any]) -> None:
    if folder := os.environ.get(FOLDER):
        final = Path(folder) / f"{kind}-{content['rank']}.json"
        staged = final.with_suffix(".part")
        staged.write_text(json.dumps(content), encoding="utf-8")
        staged.replace(final)


def _read(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    for path in folder.glob(f"{kind}-*.json"):
        with suppress(OSError, ValueError):
            yield json.loads(path.read_text(encoding="utf-8"))
