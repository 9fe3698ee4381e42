"""Places where writing fails: real ones, which a machine has or is given for a while."""

import os
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def mounted(path, options):
    """A file system of its own in memory; who is not root, or may not mount, skips the test."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@contextmanager
def read_only(path):
    """A directory in which nobody may write, root neither."""
    if os.geteuid():
        path.mkdir(mode=0o555)
        yield path
        path.chmod(0o755)
    else:
        with mounted(path, "ro,size=64k"):
            yield path
