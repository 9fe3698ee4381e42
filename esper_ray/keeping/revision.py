"""Which code is running."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """Commit of the code that runs, with ``-dirty`` if it was changed since; None outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
