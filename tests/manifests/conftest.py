"""Lets the tests here import `checking` beside them, and the CRDs' check from the jobs' tests."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "jobs")]
