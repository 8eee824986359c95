"""Manifests held against the operators' own CRDs as under strict field validation: an unknown key is an error."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

FILES = {
    "PyTorchJob": "kubeflow.org_pytorchjobs.yaml",
    "TrainJob": "trainer.kubeflow.org_trainjobs.yaml",
    "TrainingRuntime": "trainer.kubeflow.org_trainingruntimes.yaml",
}


def strict(folder: Path) -> Callable[[Mapping[str, Any]], list[str]]:
    """Gives the faults of a manifest, by the CRDs in a folder. CEL rules are not evaluated."""
    return lambda manifest: [_said(error) for error in _validator(folder, manifest["kind"]).iter_errors(manifest)]


@functools.cache
def _validator(folder: Path, kind: str) -> Any:
    text = (folder / FILES[kind]).read_text(encoding="utf-8")
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    (version,) = (each for each in crd["spec"]["versions"] if each["storage"])
    schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # a CRD says no more of it, and strictly that is nothing
    extended = jsonschema.validators.extend(
        jsonschema.Draft202012Validator, {"x-kubernetes-list-map-keys": _no_two_with_the_same_keys}
    )
    return extended(schema)


def _closed(schema: Any) -> Any:
    """In place: an object that lists its fields has no others."""
    if isinstance(schema, dict):
        listed = isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema
        if listed and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema["additionalProperties"] = False
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None)
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _closed(part)
    return schema


def _no_two_with_the_same_keys(_validator: Any, keys: list[str], items: Any, schema: Mapping[str, Any]) -> Iterator:
    defaults = {key: part.get("default") for key, part in schema["items"]["properties"].items()}
    for found, count in Counter(tuple(item.get(key, defaults[key]) for key in keys) for item in items).items():
        if count > 1:
            yield jsonschema.ValidationError(f"{count} items with the same {' and '.join(keys)}: {found}")


def _said(error: jsonschema.ValidationError) -> str:
    return f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
