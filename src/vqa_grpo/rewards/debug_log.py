"""The guide's debug logs: DEBUG_MODE=true writes one text file per reward beside LOG_PATH, and a JSONL twin.

`LOG_PATH=logs/training_debug.txt` gives `logs/training_debug_format_vqa.txt`, `…_accuracy_vqa.txt` and
`…_reasoning_vqa.txt`, each with the same records as `….jsonl` for programs. Several processes appending to one file
would mix their records, so every rank but the first adds its number: `…_format_vqa_rank1.txt`.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

DEFAULT_PATH = "training_debug.txt"

logger = logging.getLogger(__name__)


def enabled() -> bool:
    return os.environ.get("DEBUG_MODE", "").lower() == "true"


def path_of(reward: str, suffix: str = ".txt") -> Path:
    base = Path(os.environ.get("LOG_PATH") or DEFAULT_PATH)
    stem = base.stem if base.suffix == ".txt" else base.name
    return base.with_name(f"{stem}_{reward}_vqa{f'_rank{_rank()}' if _rank() else ''}{suffix}")


def write(reward: str, completion: Any, fields: dict[str, Any]) -> None:
    """Append one record. A log that cannot be written is said once and never stops the training."""
    if not enabled():
        return
    now = datetime.now()
    title = f"------------- {now:%d-%H-%M-%S-%f} {reward.capitalize()} VQA reward -------------"
    lines = [title, f"Content: {completion}", *(f"{key}: {value}" for key, value in fields.items()), ""]
    record = {
        "time": now.isoformat(),
        "rank": _rank(),
        "reward": reward,
        "content": str(completion),
        **{key.lower().replace(" ", "_"): value for key, value in fields.items()},
    }
    _append(path_of(reward), "\n".join(lines))
    _append(path_of(reward, ".jsonl"), json.dumps(record, default=str) + "\n")


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        _complain(str(path), str(error))


def _rank() -> int:
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() and os.environ.get("WORLD_SIZE", "1") != "1" else 0


@cache
def _complain(path: str, error: str) -> None:
    logger.error("debug log %s cannot be written: %s", path, error)
