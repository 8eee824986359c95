"""Being told to stop, by SIGTERM or SIGINT: act at once, then unwind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """We were told to stop. No Exception, so that nothing on the way takes it for one of its own.

    `kept`: what ran was left running.
    """

    def __init__(self, by: str, kept: bool) -> None:
        super().__init__(by)
        self.kept = kept


@contextmanager
def stopped_by_signal(let_go: Callable[[int], bool]) -> Iterator[None]:
    """Call `let_go` with the signal's number from within its handler, for a terminated step has about one second, then
    raise Stopped; what it returned is `kept`. Further signals are ignored meanwhile. Only the main thread gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: object) -> NoReturn:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        kept = let_go(number)
        raise Stopped(signal.Signals(number).name, kept)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
