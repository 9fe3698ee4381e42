"""Where the repository is, wherever the test that asks lies."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
