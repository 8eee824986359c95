"""Exit codes, places and prediction rows: what programs on both sides of a file or a process rely on."""

from __future__ import annotations

import signal
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.contract import failure, layout
from vqa_grpo.contract.failure import FailureReason, reason_of
from vqa_grpo.contract.verdict import Prediction, prediction_schema

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("reason", list(FailureReason))
def test_a_reason_survives_its_exit_code(reason: FailureReason) -> None:
    assert reason_of(reason.exit_code) is reason
    assert 0 < reason.exit_code < 256


def test_no_two_reasons_share_an_exit_code() -> None:
    assert len({reason.exit_code for reason in FailureReason}) == len(FailureReason)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (-signal.SIGKILL, FailureReason.OUT_OF_MEMORY),
        (-signal.SIGTERM, FailureReason.CANCELLED),
        (130, FailureReason.CANCELLED),
        (-signal.SIGINT, FailureReason.CANCELLED),
        (1, FailureReason.INTERNAL),
        (-signal.SIGSEGV, FailureReason.INTERNAL),
    ],
)
def test_signals_and_strange_codes_have_a_reason_too(code: int, reason: FailureReason) -> None:
    assert reason_of(code) is reason


def test_a_mistake_of_the_user_is_never_retried_and_a_lost_node_always_is() -> None:
    assert not FailureReason.CONFIGURATION.retryable
    assert not FailureReason.DATA.retryable
    assert not FailureReason.CANCELLED.retryable
    assert FailureReason.RETRY.retryable


def test_each_error_carries_its_reason() -> None:
    assert failure.ConfigurationError("x").reason is FailureReason.CONFIGURATION
    assert failure.DataError("x").reason is FailureReason.DATA
    assert failure.RetryError("x").reason is FailureReason.RETRY
    assert failure.JobError("x", FailureReason.OUT_OF_MEMORY).reason is FailureReason.OUT_OF_MEMORY


def test_a_step_lies_below_its_run_whatever_the_slashes() -> None:
    assert layout.step_uri("s3://b/p/", "run", "train") == layout.step_uri("s3://b/p", "run", "train")
    assert layout.step_uri("s3://b/p", "run", "train") == "s3://b/p/run/train"


@given(JSON, JSON)
def test_a_key_depends_on_its_parts_alone(a: object, b: object) -> None:
    assert layout.key_of(a, b) == layout.key_of(a, b)
    assert layout.key_of({"x": a, "y": b}) == layout.key_of({"y": b, "x": a})
    assert layout.key_of(a) != layout.key_of([a])
    assert layout.key_of(a, b) != layout.key_of(a)


def test_a_prediction_file_has_one_column_for_each_field() -> None:
    assert prediction_schema().names == [field.name for field in fields(Prediction)]
