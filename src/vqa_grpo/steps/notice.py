"""A word to people when a run fails: one JSON object, sent to the address that VQA_GRPO_NOTIFY_URL holds."""

from __future__ import annotations

import json
import os
import urllib.request

from vqa_grpo.contract.failure import StepError
from vqa_grpo.contract.layout import EVALUATION_STATUS, TRAINING_STATUS, step_uri
from vqa_grpo.report.progress import announce

URL = "VQA_GRPO_NOTIFY_URL"  # a secret as a rule: who knows a webhook's address may write to it
_SECONDS = 10.0


def send_notice(run_id: str, root: str, status: str, said: str = "") -> None:
    """Say that a run ended as `status` and why, where somebody asked to be told; never raises.

    `said` is Kubeflow's own word. What a launcher left in storage says more, and goes first.
    """
    url = os.environ.get(URL, "")
    if not url:
        return
    try:
        data = json.dumps(notice(run_id, root, status, said)).encode()
        if not url.startswith(("http://", "https://")):
            raise ValueError("it is no http(s) address")
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - looked at above
        with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310
            pass
    except Exception as error:  # a run's end must not depend on a chat server
        announce("finish", "could not send its notice", why=str(error).replace(url, URL)[:200])


def notice(run_id: str, root: str, status: str, said: str = "") -> dict[str, str]:
    """`run`, `status`, `reason` and `link`, where summary and report lie; `text` is all of it for chat servers."""
    of_a_job = "" if status == "CANCELLED" else _of_a_job(root, run_id)  # what was overcome before is no reason
    reason = of_a_job or " ".join(said.split())[:1000] or "see the log of the step that failed"
    link = step_uri(root, run_id, "summary")
    text = f"vqa-grpo run {run_id} ended as {status}: {reason} ({link})"
    return {"run": run_id, "status": status, "reason": reason, "link": link, "text": text}


def _of_a_job(root: str, run_id: str) -> str:
    """What the launcher of the job that failed left word of; a job with a result has its word taken back."""
    from vqa_grpo.jobs import record

    for job in (EVALUATION_STATUS, TRAINING_STATUS):
        try:
            if found := record.read(step_uri(root, run_id, job)):
                return found.sentence
        except StepError:
            continue
    return ""
