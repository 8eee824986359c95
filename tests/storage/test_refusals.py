"""A store that refuses: what a new pod may cure is worth a retry, and what a person must mend is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vqa_grpo.contract.failure import ConfigurationError, RetryError, StepError
from vqa_grpo.storage import store
from vqa_grpo.storage.store import open_store


class Refusing(ThreadingHTTPServer):
    """An S3 that answers each request with the same error."""

    daemon_threads = True
    status, code = 403, ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Refusing

    def do_GET(self) -> None:
        body = f"<Error><Code>{self.server.code}</Code><Message>No</Message></Error>".encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    with Refusing(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "k")
        store._client.cache_clear()
        yield server
        store._client.cache_clear()
        server.shutdown()


SKEW, KEY = "this node's clock is wrong", "the access key is wrong, or was replaced since this process began"
TOKEN, PERSON = "the session token is wrong, or has run out", "check the credentials and policy"


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (403, "RequestTimeTooSkewed", RetryError, SKEW),
        (403, "InvalidAccessKeyId", RetryError, KEY),
        (400, "ExpiredToken", RetryError, TOKEN),
        (403, "ExpiredToken", RetryError, TOKEN),  # stores differ
        (403, "InvalidTokenId", RetryError, TOKEN),
        (403, "AccessDenied", ConfigurationError, PERSON),
        (403, "SignatureDoesNotMatch", ConfigurationError, PERSON),
    ],
)
def test_a_refusal_that_a_new_pod_may_not_meet_is_worth_a_retry(
    refusing: Refusing, status: int, code: str, kind: type[StepError], words: str
) -> None:
    refusing.code, refusing.status = code, status
    kept = open_store("s3://bucket/run")
    for call in (lambda: kept.read("name"), lambda: kept.read_range("name", 0, 1)):  # boto3, obstore
        with pytest.raises(StepError, match=words) as caught:
            call()
        assert caught.type is kind
        assert f"({code})" in str(caught.value)
