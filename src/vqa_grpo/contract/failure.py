"""Why a step or a training job stopped: one vocabulary for exceptions, exit codes and pod status.

The exit codes follow sysexits.h where it has a fitting one, so that an operator can tell a mistake in the
configuration (never worth a retry) from a lost node (always worth one).
"""

from __future__ import annotations

from enum import StrEnum


class FailureReason(StrEnum):
    CONFIGURATION = "configuration"
    DATA = "data"
    RETRY = "retry"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELLED = "cancelled"
    INTERNAL = "internal"

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self]

    @property
    def retryable(self) -> bool:
        return self in (FailureReason.RETRY, FailureReason.OUT_OF_MEMORY, FailureReason.INTERNAL)


_EXIT_CODES = {
    FailureReason.CONFIGURATION: 78,  # EX_CONFIG
    FailureReason.DATA: 65,  # EX_DATAERR
    FailureReason.RETRY: 75,  # EX_TEMPFAIL
    FailureReason.OUT_OF_MEMORY: 137,  # what the kernel's OOM killer leaves behind
    FailureReason.CANCELLED: 143,  # 128 + SIGTERM
    FailureReason.INTERNAL: 70,  # EX_SOFTWARE
}


def reason_of(exit_code: int) -> FailureReason:
    """The reason behind a process's exit code; a negative code is a signal, as `subprocess` reports it."""
    if exit_code < 0:
        exit_code = 128 - exit_code
    for reason, code in _EXIT_CODES.items():
        if code == exit_code:
            return reason
    return FailureReason.CANCELLED if exit_code == 130 else FailureReason.INTERNAL


class StepError(Exception):
    """An error that a person can act on: one line that names the thing, the value and the fix."""

    reason = FailureReason.INTERNAL


class ConfigurationError(StepError):
    reason = FailureReason.CONFIGURATION


class DataError(StepError):
    reason = FailureReason.DATA


class RetryError(StepError):
    """Something outside failed in a way that may pass: a store that does not answer, a lost node."""

    reason = FailureReason.RETRY


class JobError(StepError):
    """A training or evaluation job ended badly; `reason` says how."""

    def __init__(self, message: str, reason: FailureReason) -> None:
        super().__init__(message)
        self.reason = reason
