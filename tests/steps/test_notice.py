"""People are told when a run fails, where they asked for it, and a run's end never depends on it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vqa_grpo import steps
from vqa_grpo.contract.failure import FailureReason
from vqa_grpo.contract.layout import step_uri
from vqa_grpo.jobs import record
from vqa_grpo.steps.notice import notice


class Chat(http.server.HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heard: list[dict[str, Any]] = []
        self.code = 200


class Handler(http.server.BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.code)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    with Chat() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("VQA_GRPO_NOTIFY_URL", f"http://127.0.0.1:{server.server_port}/token-hush")
        yield server
        server.shutdown()
        thread.join()


def test_a_failed_run_is_told_of_and_a_good_one_is_not(chat: Chat, tmp_path: Path) -> None:
    steps.finish_run("good", str(tmp_path), "SUCCEEDED")
    steps.finish_run("bad", str(tmp_path), "FAILED", "task train-model\nfailed")
    (told,) = chat.heard
    assert told["run"] == "bad"
    assert (told["status"], told["reason"]) == ("FAILED", "task train-model failed")
    assert told["link"] == f"{tmp_path}/bad/summary"
    assert all(told[part] in told["text"] for part in ("run", "status", "reason", "link"))


@pytest.mark.parametrize("wrong", ["http://127.0.0.1:9/hush", "ftp://hush", "hush", "500"])
def test_a_chat_server_that_is_away_or_refuses_costs_the_run_nothing(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    if wrong == "500":
        chat.code = 500
    else:
        monkeypatch.setenv("VQA_GRPO_NOTIFY_URL", wrong)
    steps.finish_run("bad", str(tmp_path), "FAILED")
    assert (tmp_path / "bad" / "summary" / "summary.json").is_file()
    out = "".join(capsys.readouterr())
    assert "could not send its notice" in out
    assert "hush" not in out


def test_people_are_told_though_nothing_can_be_written(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_grpo.contract.failure import RetryError
    from vqa_grpo.steps import finish

    def away(*_: Any) -> None:
        raise RetryError("storage does not answer")

    monkeypatch.setattr(finish, "found", away)
    with pytest.raises(RetryError):
        steps.finish_run("bad", str(tmp_path), "FAILED")
    assert [told["run"] for told in chat.heard] == ["bad"]


def test_the_reason_is_the_launcher_s_and_the_next_try_is_not_held_to_it(chat: Chat, tmp_path: Path) -> None:
    assert notice("r", str(tmp_path), "FAILED")["reason"] == "see the log of the step that failed"
    for job, sentence in (("status", "row 7 has no image"), ("status-evaluate", "out of memory")):
        uri = step_uri(str(tmp_path), "r", job)
        record.leave(uri, record.Record("hash", "w", "j-a0", 1.0, True, FailureReason.DATA, sentence))
        assert notice("r", str(tmp_path), "FAILED", "task failed")["reason"] == sentence
    assert notice("r", str(tmp_path), "CANCELLED", "stopped")["reason"] == "stopped"
    steps.finish_run("r", str(tmp_path), "FAILED", "task failed")
    assert [told["reason"] for told in chat.heard] == ["out of memory"]
    assert record.read(uri) is None


def test_a_run_whose_end_failed_tells_the_reason_again(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqa_grpo.contract.failure import RetryError
    from vqa_grpo.steps import finish

    def away(*_: Any) -> None:
        raise RetryError("storage does not answer")

    uri = step_uri(str(tmp_path), "r", "status")
    record.leave(uri, record.Record("hash", "w", "j-a0", 1.0, True, FailureReason.DATA, "row 7 has no image"))
    with monkeypatch.context() as patch:
        patch.setattr(finish, "found", away)
        with pytest.raises(RetryError):
            steps.finish_run("r", str(tmp_path), "FAILED")
    steps.finish_run("r", str(tmp_path), "FAILED")
    assert [told["reason"] for told in chat.heard] == ["row 7 has no image"] * 2
