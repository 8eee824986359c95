"""Lets the tests here import `cases` and `references` beside them, under names that no other folder's can take."""

import importlib.util
import sys
from pathlib import Path

for name in ("cases", "references"):
    spec = importlib.util.spec_from_file_location(f"metric_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
