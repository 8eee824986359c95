"""How a step ends when it fails: one line for a person, and an exit code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from vqa_grpo.contract.failure import FailureReason, StepError
from vqa_grpo.report.progress import announce
from vqa_grpo.storage.store import explain_os_error, is_about_the_disk

P = ParamSpec("P")
R = TypeVar("R")


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Turn an error that a person can act on into one line and its exit code, as every pod and shell expects."""

    step = function.__name__.split("_")[0]  # train_model announces itself as train

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except StepError as error:
            raise SystemExit(_tell(step, error)) from None
        except Exception as error:
            if isinstance(error, OSError) and is_about_the_disk(error):
                raise SystemExit(_tell(step, explain_os_error(error))) from None
            # A mistake of ours: the traceback goes to the log, one line to the person.
            announce(step, "failed", error=_one_line(error), reason=str(FailureReason.INTERNAL))
            raise

    return run


def _tell(step: str, error: StepError) -> int:
    announce(step, "failed", error=str(error), reason=str(error.reason))
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.reason.exit_code


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
