"""The room's tests share a scripted cluster."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
