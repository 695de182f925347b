"""These tests use the tiny notebooks of tests/batch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "batch"))
