"""The few calls on a cluster that a job needs, as a Protocol, and the kubernetes client behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vqa_grpo.contract.failure import ConfigurationError
from vqa_grpo.jobs.outcome import CONTAINER
from vqa_grpo.jobs.pytorchjob import KIND

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # Kubernetes puts it in every pod
_TIMEOUT = (5, 30)  # seconds to connect and to read
_URGENT_TIMEOUT = (0.5, 0.5)  # a pipeline step that is terminated has about one second


class ApiError(Exception):
    """A call that failed, with its HTTP status; 0 where there was no answer."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(f"{status} {message}".strip())
        self.status = status

    @property
    def transient(self) -> bool:
        # 401: a service account's token is replaced about hourly; the client reads the new one on the next call.
        return self.status in (0, 401, 408, 429) or self.status >= 500


class ClusterApi(Protocol):
    """PyTorchJobs and pods of one namespace, as plain dictionaries. Every method raises ApiError and nothing else."""

    def create(self, manifest: Mapping[str, Any]) -> None: ...

    def get(self, name: str) -> dict[str, Any]: ...

    def delete(self, name: str, urgent: bool = False) -> None:
        """Delete a job and, with it, its pods. `urgent` gives up after a second."""

    def jobs(self, selector: str) -> list[dict[str, Any]]: ...

    def pod(self, name: str) -> dict[str, Any]: ...

    def pods(self, selector: str) -> list[dict[str, Any]]: ...

    def log(self, pod: str, since_seconds: int | None = None, tail_lines: int | None = None) -> str:
        """The training container's log, a timestamp before each line."""


def own_namespace() -> str:
    try:
        return _OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    except OSError:
        raise ConfigurationError("job.namespace is empty, and this is no pod that has one: set job.namespace") from None


class KubernetesApi:
    """ClusterApi through the `kubernetes` client, with the pod's service account or else the current kubeconfig."""

    def __init__(self, namespace: str) -> None:
        try:
            from kubernetes import client, config
        except ImportError:
            raise ConfigurationError(
                "the kubernetes package is missing: pip install 'vqa-grpo[cluster]', or set job.launcher=local"
            ) from None
        try:
            try:
                config.load_incluster_config()
            except config.ConfigException:
                config.load_kube_config()
        except (config.ConfigException, OSError) as error:
            raise ConfigurationError(f"no cluster to be reached from here ({error}): set job.launcher=local") from None
        self._where = {"group": KIND.group, "version": KIND.version, "namespace": namespace, "plural": KIND.plural}
        self._namespace = namespace
        self._custom = client.CustomObjectsApi()
        self._core = client.CoreV1Api()
        # A signal handler deletes while a call may be under way: with a connection pool of its own it cannot wait for
        # a lock that the interrupted call holds.
        hasty = client.Configuration.get_default_copy()
        hasty.retries = False
        self._urgent = client.CustomObjectsApi(client.ApiClient(hasty))

    def create(self, manifest: Mapping[str, Any]) -> None:
        with _errors():
            self._custom.create_namespaced_custom_object(**self._where, body=dict(manifest), _request_timeout=_TIMEOUT)

    def get(self, name: str) -> dict[str, Any]:
        with _errors():
            found: dict[str, Any] = self._custom.get_namespaced_custom_object(
                **self._where, name=name, _request_timeout=_TIMEOUT
            )
            return found

    def delete(self, name: str, urgent: bool = False) -> None:
        api, timeout = (self._urgent, _URGENT_TIMEOUT) if urgent else (self._custom, _TIMEOUT)
        with _errors():
            api.delete_namespaced_custom_object(
                **self._where, name=name, propagation_policy="Background", _request_timeout=timeout
            )

    def jobs(self, selector: str) -> list[dict[str, Any]]:
        with _errors():
            found = self._custom.list_namespaced_custom_object(
                **self._where, label_selector=selector, _request_timeout=_TIMEOUT
            )
            return list(found["items"])

    def pod(self, name: str) -> dict[str, Any]:
        with _errors():
            return _plain(self._core.read_namespaced_pod(name, self._namespace, **_RAW))

    def pods(self, selector: str) -> list[dict[str, Any]]:
        with _errors():
            found = self._core.list_namespaced_pod(self._namespace, label_selector=selector, **_RAW)
            return list(_plain(found)["items"])

    def log(self, pod: str, since_seconds: int | None = None, tail_lines: int | None = None) -> str:
        bounds = {"since_seconds": since_seconds, "tail_lines": tail_lines}
        given = {key: value for key, value in bounds.items() if value is not None}
        with _errors():
            answer = self._core.read_namespaced_pod_log(
                pod, self._namespace, container=CONTAINER, timestamps=True, **given, **_RAW
            )
            text: str = answer.data.decode(errors="replace")
            return text


# The client would turn pods into objects of its own, and a log that happens to be JSON into a Python literal.
_RAW: dict[str, Any] = {"_preload_content": False, "_request_timeout": _TIMEOUT}


def _plain(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.data)
    return found


@contextmanager
def _errors() -> Iterator[None]:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise ApiError(int(error.status or 0), _message(error)) from error
    except (HTTPError, OSError) as error:
        raise ApiError(0, f"{type(error).__name__}: {error}") from error


def _message(error: Any) -> str:
    """The API server's own sentence, where it sent one."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason or "")
