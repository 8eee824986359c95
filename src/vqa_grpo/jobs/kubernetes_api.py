"""The few calls on a cluster that a job needs, as a Protocol, and the kubernetes client behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs.kind import JobKind

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # Kubernetes puts it in every pod
_TIMEOUT = (5, 30)  # seconds to connect and to read
_STREAM_TIMEOUT = (5, 60)  # a stream that is silent for longer is opened again: it may have died without a word
_URGENT_TIMEOUT = (0.3, 0.5)  # a pipeline step that is terminated has about one second,
_GLANCE_TIMEOUT = (0.2, 0.25)  # and what it looks at first must leave time for the rest
_WORKFLOW = {"group": "argoproj.io", "version": "v1alpha1", "plural": "workflows"}
_CHUNK = 1 << 16
_UNBROKEN = 1 << 20  # bytes without a line's end, which then count as a line


class ApiError(Exception):
    """A call that failed, with its HTTP status; 0 where there was no answer.

    `retry_after`: seconds that the server asks for before the next try, where it does.
    """

    def __init__(self, status: int, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(" ".join(f"{status} {message}".split()))
        self.status = status
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        # 401: a service account's token is replaced about hourly; the next call takes the new one.
        return self.status in (0, 401, 408, 429) or self.status >= 500


class ClusterApi(Protocol):
    """Jobs of one kind and pods, of one namespace, as plain dictionaries. Every method raises ApiError, nothing else.

    `urgent` gives up within a second, and never waits for a call that is under way.
    """

    def create(self, manifest: Mapping[str, Any]) -> None: ...

    def get(self, name: str) -> dict[str, Any]: ...

    def delete(self, name: str, urgent: bool = False) -> None:
        """Delete a job and, with it, its pods."""

    def jobs(self, selector: str) -> list[dict[str, Any]]: ...

    def pod(self, name: str, urgent: bool = False) -> dict[str, Any]: ...

    def pods(self, selector: str) -> list[dict[str, Any]]: ...

    def warnings(self) -> list[dict[str, Any]]:
        """The namespace's events of type Warning."""

    def workflow(self, name: str, urgent: bool = False) -> dict[str, Any]:
        """The Argo Workflow that a pipeline run is."""

    def log(self, pod: str, since: datetime | None = None, tail_lines: int | None = None) -> str:
        """The training container's log, a timestamp before each line; `since` counts from its whole second on."""

    def follow_log(self, pod: str, since: datetime | None = None, tail_lines: int | None = None) -> Iterator[str]:
        """The same line by line, as it is written, whole lines only. Raises at once when there is no log to be had, and
        later when the stream breaks."""


def own_namespace(option: str = "job.namespace") -> str:
    try:
        return _OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    except OSError:
        raise ConfigurationError(f"{option} is not given, and this is no pod that has a namespace: give it") from None


class KubernetesApi:
    """ClusterApi through the `kubernetes` client, with the pod's service account or else the current kubeconfig."""

    def __init__(self, namespace: str, kind: JobKind) -> None:
        try:
            from kubernetes import client
        except ImportError:
            raise ConfigurationError(
                "the kubernetes package is missing: pip install 'vqa-grpo[cluster]', or set job.launcher=local"
            ) from None
        self._configuration = client.Configuration()
        # The client's own retries know no bound for Retry-After; ours do.
        self._configuration.retries = False
        self._load_credentials()
        self._namespace = namespace
        self._kind = kind
        self._where = {"group": kind.group, "version": kind.version, "namespace": namespace, "plural": kind.plural}
        self._calm = client.ApiClient(self._configuration)
        # A signal handler calls while another call may be under way: with a connection pool of its own it cannot wait
        # for a lock that the interrupted call holds.
        self._hasty = client.ApiClient(self._configuration)

    def create(self, manifest: Mapping[str, Any]) -> None:
        with self._errors():
            self._custom().create_namespaced_custom_object(**self._where, body=dict(manifest), **_raw(_TIMEOUT))

    def get(self, name: str) -> dict[str, Any]:
        with self._errors():
            return _plain(self._custom().get_namespaced_custom_object(**self._where, name=name, **_raw(_TIMEOUT)))

    def delete(self, name: str, urgent: bool = False) -> None:
        with self._errors():
            self._custom(urgent).delete_namespaced_custom_object(
                **self._where,
                name=name,
                propagation_policy="Background",
                **_raw(_URGENT_TIMEOUT if urgent else _TIMEOUT),
            )

    def jobs(self, selector: str) -> list[dict[str, Any]]:
        with self._errors():
            found = self._custom().list_namespaced_custom_object(
                **self._where, label_selector=selector, **_raw(_TIMEOUT)
            )
            return list(_plain(found)["items"])

    def pod(self, name: str, urgent: bool = False) -> dict[str, Any]:
        with self._errors():
            return _plain(self._core(urgent).read_namespaced_pod(name, self._namespace, **_raw(_glance(urgent))))

    def pods(self, selector: str) -> list[dict[str, Any]]:
        with self._errors():
            found = self._core().list_namespaced_pod(self._namespace, label_selector=selector, **_raw(_TIMEOUT))
            return list(_plain(found)["items"])

    def warnings(self) -> list[dict[str, Any]]:
        with self._errors():
            found = self._core().list_namespaced_event(self._namespace, field_selector="type=Warning", **_raw(_TIMEOUT))
            return list(_plain(found)["items"])

    def workflow(self, name: str, urgent: bool = False) -> dict[str, Any]:
        with self._errors():
            found = self._custom(urgent).get_namespaced_custom_object(
                **_WORKFLOW, namespace=self._namespace, name=name, **_raw(_glance(urgent))
            )
            return _plain(found)

    def log(self, pod: str, since: datetime | None = None, tail_lines: int | None = None) -> str:
        with self._errors():
            text: str = self._open_log(pod, since, tail_lines, follow=False).data.decode(errors="replace")
            return text

    def follow_log(self, pod: str, since: datetime | None = None, tail_lines: int | None = None) -> Iterator[str]:
        with self._errors():
            response = self._open_log(pod, since, tail_lines, follow=True)
        return self._lines(response)

    def _open_log(self, pod: str, since: datetime | None, tail_lines: int | None, follow: bool) -> Any:
        query: list[tuple[str, Any]] = [("container", self._kind.container), ("timestamps", "true")]
        if follow:
            query.append(("follow", "true"))
        if since:
            query.append(("sinceTime", since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
        if tail_lines is not None:
            query.append(("tailLines", tail_lines))
        # Not through CoreV1Api: its read_namespaced_pod_log knows no sinceTime.
        return self._calm.call_api(
            "/api/v1/namespaces/{namespace}/pods/{name}/log",
            "GET",
            {"namespace": self._namespace, "name": pod},
            query,
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            **_raw(_STREAM_TIMEOUT if follow else _TIMEOUT),
        )

    def _lines(self, response: Any) -> Iterator[str]:
        rest = b""
        try:
            with self._errors():
                while chunk := response.read1(_CHUNK):
                    *lines, rest = (rest + chunk).split(b"\n")
                    if len(rest) > _UNBROKEN:
                        lines, rest = [*lines, rest], b""
                    for line in lines:
                        yield line.decode(errors="replace")
        finally:
            response.close()  # not given back: what is left in it is another stream's no more

    def _custom(self, urgent: bool = False) -> Any:
        from kubernetes import client

        return client.CustomObjectsApi(self._hasty if urgent else self._calm)

    def _core(self, urgent: bool = False) -> Any:
        from kubernetes import client

        return client.CoreV1Api(self._hasty if urgent else self._calm)

    def _load_credentials(self) -> None:
        from kubernetes import config

        try:
            try:
                config.load_incluster_config(client_configuration=self._configuration)
            except config.ConfigException:
                config.load_kube_config(client_configuration=self._configuration)
        except (config.ConfigException, OSError) as error:
            raise ConfigurationError(
                f"no cluster to be reached from here ({error}): set KUBECONFIG, or job.launcher=local"
            ) from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            status = int(error.status or 0)
            if status == 401:  # the token was replaced: the client would look only after a minute
                with suppress(ConfigurationError):
                    self._load_credentials()
            raise ApiError(status, _message(error), _retry_after(error)) from error
        except (HTTPError, OSError) as error:
            raise ApiError(0, f"{type(error).__name__}: {error}") from error


def _glance(urgent: bool) -> tuple[float, float]:
    return _GLANCE_TIMEOUT if urgent else _TIMEOUT


def _raw(timeout: tuple[float, float]) -> dict[str, Any]:
    """The answer as it came: the client would turn pods into objects of its own, a log that happens to be JSON into a
    Python literal, and half an answer into text."""
    return {"_preload_content": False, "_request_timeout": timeout}


def _plain(answer: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(answer.data)
    except ValueError:
        raise ApiError(0, "an answer that is no JSON") from None
    return found


def _message(error: Any) -> str:
    """The API server's own sentence, where it sent one."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason or "")


def _retry_after(error: Any) -> float | None:
    try:
        return float(error.headers["Retry-After"])
    except (TypeError, KeyError, ValueError):
        return None  # absent, or a date, which the API server does not send
