"""Calls on an API server that is busy, restarting or out of reach for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from vqa_grpo.contract.failure import FailureReason, JobError
from vqa_grpo.jobs.kubernetes_api import ApiError

# How long the API server may be away: a running job does not need it, and a step that fails may be the end of the run.
SECONDS = 3600.0
_UNAUTHORIZED_SECONDS = 120.0  # a token is replaced faster than this; longer, and nobody knows us
_LONGEST_PAUSE = 30.0
_LONGEST_WISH = 120.0  # of a server that says itself when to come back
T = TypeVar("T")


class Patience:
    """Tries a call again, with growing pauses, while its failure is one that passes.

    `say` gets a line for every failure. Raises the ApiError that no retry will change, and JobError when the server
    stays away.
    """

    def __init__(self, sleep: Callable[[float], None], clock: Callable[[], float], say: Callable[[str], None]) -> None:
        self._sleep, self._clock, self._say = sleep, clock, say

    def __call__(self, call: Callable[[], T], what: str, seconds: float = SECONDS, had_rights: bool = False) -> T:
        """`had_rights`: that we may do this is known, so a refusal passes: a Role that is being applied anew."""
        pause, began = 1.0, self._clock()
        while True:
            try:
                return call()
            except ApiError as error:
                waited = self._clock() - began
                refused = error.status == 401 or (had_rights and error.status == 403)
                if not (error.transient or refused) or (refused and waited >= _UNAUTHORIZED_SECONDS):
                    raise
                if waited >= seconds:
                    text = f"{what}: the API server does not answer ({error}); what runs there may still run"
                    raise JobError(text, FailureReason.RETRY) from error
                self._say(f"{what}: {error}; trying again")
                wished = min(error.retry_after or 0.0, _LONGEST_WISH)
            self._sleep(max(pause, wished))
            pause = min(2 * pause, _LONGEST_PAUSE)


@contextmanager
def missing_is_fine() -> Iterator[None]:
    """Deleting what is gone is no error."""
    try:
        yield
    except ApiError as error:
        if error.status != 404:
            raise
