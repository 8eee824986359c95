"""What a launcher leaves in storage of a job that failed: for people, and for the next try of the same step.

A job that failed stays in the cluster, where the next try finds it. One that the launcher deleted is gone, and nothing
else says that it has had its time already, or that its image cannot be pulled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from vqa_grpo.contract.failure import FailureReason
from vqa_grpo.storage.store import open_store

FILE = "failure.json"


@dataclass(frozen=True)
class Record:
    """A failed job, and what the cluster does not know of the attempts at it.

    `spec_hash`  what it runs
    `workflow`   uid of the pipeline run's Workflow, in which a step is tried again; empty outside of one
    `job`        the attempt to go on with, by name, after one that the launcher deleted; empty where it deleted none
    `seconds`    that all attempts before that one have had, and what it had itself if it was deleted
    `final`      whether another try would end alike
    `reason`, `sentence`  of the failure
    """

    spec_hash: str
    workflow: str
    job: str
    seconds: float
    final: bool
    reason: FailureReason
    sentence: str


def leave(uri: str, record: Record) -> None:
    open_store(uri).write(FILE, json.dumps(asdict(record), indent=1).encode())


def read(uri: str) -> Record | None:
    """The record at a job's `status_uri`; None where there is none, or one of other code."""
    try:
        found = json.loads(open_store(uri).read(FILE) or b"null")
        return Record(**{**found, "reason": FailureReason(found["reason"])}) if found else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def forget(uri: str) -> None:
    """For a job whose result is there, and for a run that is over."""
    open_store(uri).delete(FILE)
