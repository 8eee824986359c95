"""The process in which math-verify works: a question a line on stdin, an answer a line on stdout, both JSON.

Run by its path and on its own; it imports nothing of ours. See `math_equivalence.py`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

# Whole seconds for one parse and for one comparison: the library sets `signal.alarm` for them, in its main thread.
PATIENCE_S = 2
# What the alarm cannot interrupt (one long operation inside C) ends the process after this much processor time.
PROCESSOR_S = 8
MEMORY_BYTES = 4 * 2**30


def main() -> None:
    # The parent decides when to stop; Ctrl-C reaches the whole group, and closes stdin soon enough.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not land among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    try:
        from math_verify import parse, verify
    except ImportError as problem:
        say({"missing": str(problem)})
        return
    _limit_memory()
    say({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        _limit_processor(PROCESSOR_S)
        try:
            prediction = parse(question["prediction"], parsing_timeout=PATIENCE_S)
            equal = bool(prediction) and any(
                verify(parse(gold, parsing_timeout=PATIENCE_S), prediction, timeout_seconds=PATIENCE_S)
                for gold in question["golds"]
            )
        except (Exception, MemoryError):
            # The library answers for all it knows how to handle; what it does not can only be unequal.
            equal = False
        _limit_processor(0)
        say({"equal": equal})


def _limit_processor(seconds: float) -> None:
    """SIGPROF's default is to end the process, wherever it is."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main()
