"""A small HTTP proxy between us and the real S3, which records what is sent, and spoils what it is told to."""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

FAULTS = ("500", "503", "429", "reset", "lost", "short")
_ANSWERS = {
    "500": "InternalError",
    "503": "SlowDown",
    "429": "TooManyRequests",
    "501": "NotImplemented",
    "301": "PermanentRedirect",
}


class Request(NamedTuple):
    number: int  # from 0, in the order of arrival
    method: str
    path: str
    headers: dict[str, str]  # names in small letters


# What goes wrong with a request: one of FAULTS or _ANSWERS, "unconditional" (the precondition is dropped), or "".
Spoil = Callable[[Request], str]


class Proxy:
    """`spoil` and `requests` may be looked at and changed while it runs."""

    def __init__(self, target: str) -> None:
        self.requests: list[Request] = []
        self.spoil: Spoil = lambda request: ""
        self._target, self._lock = target, threading.Lock()

    def take(self, method: str, path: str, headers: dict[str, str]) -> tuple[Request, str]:
        with self._lock:
            request = Request(len(self.requests), method, path, headers)
            self.requests.append(request)
            return request, self.spoil(request)

    def restart(self, spoil: Spoil = lambda request: "") -> None:
        with self._lock:
            self.requests, self.spoil = [], spoil

    def ask(self, request: Request, body: bytes) -> http.client.HTTPResponse:
        server = http.client.HTTPConnection(urlsplit(self._target).netloc, timeout=60)
        server.request(request.method, request.path, body, request.headers)
        return server.getresponse()


def _signed_again(request: Request, body: bytes) -> dict[str, str]:
    """The headers of a request that lost one: the signature covers them."""
    import botocore.session
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    kept = {name: value for name, value in request.headers.items() if name not in ("authorization", "x-amz-date")}
    again = AWSRequest(request.method, f"http://{kept['host']}{request.path}", kept, body)
    S3SigV4Auth(botocore.session.get_session().get_credentials(), "s3", "us-east-1").add_auth(again)
    return dict(again.headers.items())


@contextmanager
def between(target: str, tls: ssl.SSLContext | None = None) -> Iterator[tuple[Proxy, str]]:
    """A proxy before `target`, and the URL that reaches it, with `tls` an https one."""
    proxy = Proxy(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            headers.pop("expect", None)
            request, fault = proxy.take(self.command, self.path, headers)
            if fault in _ANSWERS:
                self.say(
                    int(fault), f"<Error><Code>{_ANSWERS[fault]}</Code><Message>Told so</Message></Error>".encode()
                )
                return
            if fault == "reset":
                self.hang_up()
                return
            if fault == "unconditional" and headers.pop("if-none-match", None):
                request = request._replace(headers=_signed_again(request, body))
            found = proxy.ask(request, body)
            data = found.read()
            if fault == "lost" or (fault == "short" and not data):
                self.hang_up()
                return
            self.send_response(found.status)
            for name, value in found.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = found.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if fault == "short" else data)
            if fault == "short":
                self.hang_up()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def hang_up(self) -> None:
            """Break the connection off: the other side gets a reset once it has read what was sent."""
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # connections that were broken off on purpose

    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy, f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
