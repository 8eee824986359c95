"""A Kubernetes API for tests: kmock's emulator, and what it lacks for a launcher that is to be followed closely.

Added to kmock 0.8: watches by Python clients (they send `watch=True`), label and field selectors, uid and creation
time, validation of a created body, a pod's log, the rights of the launcher's Role, and troubles on request. Everything
that comes over HTTP is the launcher's; the tests' own operator changes objects through `read`, `put`, `set_status` and
`remove`.
"""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import os
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import kmock
import yaml
from aiohttp import web
from crd import strict

NAMESPACE = "team"
RESOURCES = {
    "pytorchjobs": kmock.resource("kubeflow.org", "v1", "pytorchjobs"),
    "trainjobs": kmock.resource("trainer.kubeflow.org", "v1alpha1", "trainjobs"),
    "workflows": kmock.resource("argoproj.io", "v1alpha1", "workflows"),
    "pods": kmock.resource("", "v1", "pods"),
    "events": kmock.resource("", "v1", "events"),
}
JOB_KINDS = ("pytorchjobs", "trainjobs")
ROLE = Path(__file__).parents[2] / "manifests" / "base" / "launcher.yaml"
_TICK_SECONDS = 0.01
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request, in the words of a Role: `create pytorchjobs`, `get pods/log`."""

    number: int
    verb: str
    resource: str
    name: str
    query: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


def _nothing() -> None: ...


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with a call: it is answered with `status`, or its connection is reset where that is 0, or it is
    answered as ever where that is None.

    `happens`      whether what was asked for is done; it may be done and only the answer lost
    `first`, `then`  called before and after that, to kill a launcher for instance
    """

    status: int | None = 0
    happens: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    first: Callable[[], None] = _nothing
    then: Callable[[], None] = _nothing


ALL_WELL = Trouble(None, happens=True)


@dataclass
class Log:
    """A container's log as its node keeps it."""

    pod: str
    lines: list[tuple[datetime, str]] = field(default_factory=list)
    ended: bool = False

    def add(self, text: str, at: datetime | None = None) -> None:
        self.lines.append((at or datetime.now(UTC), text))


class Cluster(kmock.KubernetesEmulator):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.logs: dict[str, Log] = {}  # by their pods' uids
        crds = os.environ.get("CRD_DIR")  # without it, whatever is sent is taken
        self.validate = strict(Path(crds)) if crds else lambda _body: []
        self.trouble: Callable[[Call], Trouble | None] = lambda _call: None
        self.on_call: Callable[[Call], None] = lambda _call: None
        self.log_cuts: list[int] = []  # the next streams are reset after so many lines
        self.log_repeats = False  # whether streams begin at the beginning, whatever they were asked for
        self.on_unauthorized: Callable[[], None] = _nothing
        self.bearer = ""  # what must stand in the Authorization header, where it is not empty
        self._rights = _rights()
        self._loop: asyncio.AbstractEventLoop | None = None
        for resource in RESOURCES.values():
            self.resources[resource] = {"namespaced": True}

    # --- the operator's side: from any thread -----------------------------------------------------------------------

    def do(self, action: Callable[[], T]) -> T:
        """Run it in the server's thread, between two requests."""
        assert self._loop is not None

        async def run() -> T:
            return action()

        with suppress(RuntimeError):
            if asyncio.get_running_loop() is self._loop:
                return action()
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def read(self, plural: str) -> list[dict[str, Any]]:
        def do() -> list[dict[str, Any]]:
            found = [thing for key, thing in self.objects.items() if key[0] == RESOURCES[plural]]
            return copy.deepcopy([thing.raw for thing in found if not thing.deleted])

        return self.do(do)

    def put(self, plural: str, thing: dict[str, Any]) -> None:
        """Create or replace."""

        def do() -> None:
            _complete(thing)
            self.objects[RESOURCES[plural], NAMESPACE, thing["metadata"]["name"]] = copy.deepcopy(thing)

        self.do(do)

    def remove(self, plural: str, name: str) -> None:
        def do() -> None:
            with suppress(KeyError):
                self.objects[RESOURCES[plural], NAMESPACE, name].delete()

        self.do(do)

    def set_status(self, plural: str, name: str, status: dict[str, Any]) -> None:
        """Nothing where the object is gone meanwhile."""

        def do() -> None:
            with suppress(KeyError):
                if not (thing := self.objects[RESOURCES[plural], NAMESPACE, name]).deleted:
                    thing["status"] = copy.deepcopy(status)

        self.do(do)

    def log(self, pod: Mapping[str, Any]) -> Log:
        """Another pod under the same name has another one."""
        return self.logs.setdefault(pod["metadata"]["uid"], Log(pod["metadata"]["name"]))

    def history(self) -> list[Any]:
        """Every version of every object, those that were deleted since included."""
        return self.do(lambda: [version.raw for thing in self.objects.values() for version in thing.history if version])

    @property
    def created(self) -> list[str]:
        """The names of the jobs that were made, in order, those that were deleted since included."""
        kinds = [str(RESOURCES[plural].plural) for plural in JOB_KINDS]
        return self.do(
            lambda: [
                name
                for (resource, _, name), thing in self.objects.items()
                if resource.plural in kinds
                for before, version in zip([None, *thing.history], thing.history, strict=False)
                if before is None and version is not None
            ]
        )

    # --- the API ----------------------------------------------------------------------------------------------------

    async def __call__(self, raw: web.BaseRequest) -> web.StreamResponse:  # type: ignore[override]
        if raw.query.get("watch") == "True":
            raw = raw.clone(rel_url=raw.rel_url.update_query(watch="true"))
        if self.bearer and raw.headers.get("Authorization", "").partition(" ")[2] != self.bearer:
            self.on_unauthorized()
            return _status(401, "Unauthorized")
        call = _call(len(self.calls), raw)
        self.calls.append(call)
        if (call.resource, call.verb) not in self._rights:
            return _status(403, f"forbidden: the launcher's Role does not let it {call} in namespace {NAMESPACE}")
        trouble = self.trouble(call) or ALL_WELL
        trouble.first()
        answer: web.StreamResponse = web.Response()
        if trouble.happens:
            self.on_call(call)
            answer = await super().__call__(raw)
        trouble.then()
        if trouble.status is None:
            return answer
        return _status(trouble.status, "a trouble of the test's", trouble.headers) if trouble.status else _reset(raw)

    async def _handle(self, request: kmock.Request) -> web.StreamResponse:
        if request.subresource == "log":
            return await self._log(request)
        if request.action == kmock.action.CREATE:
            _complete(request.data)
            if faults := self.validate(request.data):
                raise kmock.KubernetesError(422, "Invalid", f"{request.data['kind']} is invalid: {'; '.join(faults)}")
        return await super()._handle(request)

    async def _serve_list(self, request: kmock.Request) -> Any:
        answer: Any = await super()._serve_list(request)
        answer["items"] = [item for item in answer["items"] if _selected(item, request.params)]
        return answer

    async def _log(self, request: kmock.Request) -> web.StreamResponse:
        key = (RESOURCES["pods"], request.namespace, request.name)
        if key not in self.objects or (pod := self.objects[key]).deleted:
            raise kmock.KubernetesObjectNotFoundError()
        if pod.raw.get("status", {}).get("phase") == "Pending":
            message = f"container {request.params.get('container')} in pod {request.name} is waiting to start"
            raise kmock.KubernetesError(400, "BadRequest", message)
        log = self.log(pod.raw)
        cut = self.log_cuts.pop(0) if self.log_cuts else None
        raw: Any = request._raw_request
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(raw)
        start = 0 if self.log_repeats else _start(log, request.params)
        sent = 0
        while True:
            for at, text in log.lines[start + sent :]:
                if sent == cut:
                    return _reset(raw)
                stamp = at.strftime("%Y-%m-%dT%H:%M:%S.%f000Z ") if _is_true(request.params.get("timestamps")) else ""
                await response.write(f"{stamp}{text}\n".encode())
                sent += 1
            gone = pod.deleted or log.ended
            if (gone and len(log.lines) == start + sent) or not _is_true(request.params.get("follow")):
                break
            await asyncio.sleep(_TICK_SECONDS)
        await response.write_eof()
        return response


def _rights() -> set[tuple[str, str]]:
    """What the Role that we ship lets a launcher do. A component adds TrainJobs, with the verbs of PyTorchJobs."""
    role = next(iter(yaml.safe_load_all(ROLE.read_text(encoding="utf-8"))))
    rights = {(what, verb) for rule in role["rules"] for what in rule["resources"] for verb in rule["verbs"]}
    return rights | {("trainjobs", verb) for what, verb in rights if what == "pytorchjobs"}


def _call(number: int, raw: web.BaseRequest) -> Call:
    parts = raw.path.strip("/").split("/")
    at = parts.index("namespaces") + 2 if "namespaces" in parts else len(parts) - 1
    plural, *rest = parts[at:]
    name = rest[0] if rest else ""
    verbs = {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch", "PUT": "update"}
    verb = "watch" if raw.query.get("watch") == "true" else verbs.get(raw.method, raw.method.lower())
    return Call(number, verb, "/".join([plural, *rest[1:]]), name, dict(raw.query))


def _complete(thing: dict[str, Any]) -> None:
    metadata = thing.setdefault("metadata", {})
    metadata.setdefault("namespace", NAMESPACE)
    metadata.setdefault("uid", str(uuid.uuid4()))
    metadata.setdefault("creationTimestamp", now())


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_true(word: str | None) -> bool:
    return (word or "").lower() == "true"


def _selected(item: Mapping[str, Any], params: Mapping[str, str]) -> bool:
    labels = item.get("metadata", {}).get("labels") or {}
    wanted = [part for part in params.get("labelSelector", "").split(",") if part]
    return all(_matches(labels.get, part) for part in wanted) and all(
        _matches(lambda path: _field(item, path), part) for part in params.get("fieldSelector", "").split(",") if part
    )


def _matches(value_of: Callable[[str], Any], term: str) -> bool:
    """One term of a selector; only the forms that are used here."""
    if "!=" in term:
        key, _, value = term.partition("!=")
        return value_of(key) != value
    if "=" in term:
        key, _, value = term.replace("==", "=").partition("=")
        return value_of(key) == value
    assert " " not in term, f"the emulator does not know the selector {term!r}"
    return value_of(term.removeprefix("!")) is None if term.startswith("!") else value_of(term) is not None


def _field(item: Any, path: str) -> Any:
    for key in path.split("."):
        item = (item or {}).get(key)
    return item


def _start(log: Log, params: Mapping[str, str]) -> int:
    """The first line that was asked for. A time is taken in whole seconds, as the API server does."""
    start = 0
    since = 0.0
    if seconds := params.get("sinceSeconds"):
        since = datetime.now(UTC).timestamp() - int(seconds)
    if moment := params.get("sinceTime"):
        since = datetime.fromisoformat(moment).replace(microsecond=0).timestamp()
    while start < len(log.lines) and log.lines[start][0].timestamp() < since:
        start += 1
    if tail := params.get("tailLines"):
        start = max(start, len(log.lines) - int(tail))
    return start


def _status(code: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}
    return web.json_response(body, status=code, headers=dict(headers or {}))


def _reset(raw: web.BaseRequest) -> web.Response:
    if raw.transport is not None:
        raw.transport.abort()
    return web.Response()  # nobody gets it


@contextmanager
def serve(cluster: Cluster, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Answer on a port of this machine, in a thread; gives the URL."""
    started = threading.Event()
    url = ""
    stop: asyncio.Event

    async def main() -> None:
        nonlocal url, stop
        stop, cluster._loop = asyncio.Event(), asyncio.get_running_loop()
        async with cluster:
            runner = web.ServerRunner(web.Server(cluster))  # type: ignore[arg-type]
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls, shutdown_timeout=0.1)
            await site.start()
            port = runner.addresses[0][1]
            url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
            started.set()
            await stop.wait()
            await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="emulator", daemon=True)
    thread.start()
    assert started.wait(30), "the emulator did not start"
    try:
        yield url
    finally:
        assert cluster._loop is not None
        cluster._loop.call_soon_threadsafe(stop.set)
        thread.join(30)


def certificate(path: Path) -> ssl.SSLContext:
    """TLS for 127.0.0.1, and at `path` whom a client has to trust for it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    began, address = datetime.now(UTC) - timedelta(hours=1), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(began).not_valid_after(began + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([address]), True)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    private = path.with_suffix(".key")
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, private)
    return context


def write_kubeconfig(path: Path, url: str, token: str = "") -> Path:
    """What a client finds the emulator by, through the KUBECONFIG variable."""
    context = {"cluster": "emulator", "user": "launcher", "namespace": NAMESPACE}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "emulator",
        "contexts": [{"name": "emulator", "context": context}],
        "clusters": [{"name": "emulator", "cluster": {"server": url}}],
        "users": [{"name": "launcher", "user": {"token": token} if token else {}}],
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
