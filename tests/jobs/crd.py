"""Manifests held against the operators' own CRDs, read strictly: a key that a CRD does not know is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

TYPES = {"string": str, "boolean": bool, "array": list, "object": dict}
FILES = {"PyTorchJob": "kubeflow.org_pytorchjobs.yaml", "TrainJob": "trainer.kubeflow.org_trainjobs.yaml"}


def faults(value: Any, schema: dict, path: str = "") -> Iterator[str]:
    """What an API server with strict field validation would refuse; only what these CRDs' schemas use."""
    if "anyOf" in schema or schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{path}: neither int nor string"
        elif isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
            yield f"{path}: {value!r} does not match"
        return
    kind = schema.get("type")
    if kind == "integer":
        if isinstance(value, bool) or not isinstance(value, int):
            yield f"{path}: {value!r} is no integer"
    elif kind in TYPES and not isinstance(value, TYPES[kind]):
        yield f"{path}: {value!r} is no {kind}"
    elif isinstance(value, str):
        if len(value) > schema.get("maxLength", len(value)) or not re.search(schema.get("pattern", ""), value):
            yield f"{path}: {value!r} is too long, or does not match"
    elif isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            yield f"{path}: more than {schema['maxItems']} items"
        keys = schema.get("x-kubernetes-list-map-keys", ())
        names = [tuple(item.get(key) for key in keys) for item in value if keys]
        if len(set(names)) < len(names):
            yield f"{path}: two items with the same {' and '.join(keys)}"
        for index, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), f"{path}[{index}]")
    elif isinstance(value, dict):
        known, extra = schema.get("properties"), schema.get("additionalProperties")
        yield from (f"{path}.{key}: missing" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            if known is not None and key in known:
                yield from faults(item, known[key], f"{path}.{key}")
            elif isinstance(extra, dict):
                yield from faults(item, extra, f"{path}.{key}")
            elif known is not None:
                yield f"{path}.{key}: unknown"


def strict(folder: Path) -> Callable[[Mapping[str, Any]], list[str]]:
    """Gives the faults of a manifest, by the CRDs in a folder. A CRD says no more of metadata than that it is an
    object."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    schemas = {}
    for kind, file in FILES.items():
        crd = yaml.load((folder / file).read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
        schemas[kind] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return lambda manifest: list(faults(manifest, schemas[manifest["kind"]]))
