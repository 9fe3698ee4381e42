"""For what comes soon, however busy the machine is, or never."""

import time

import pytest

LONG_S = 120.0
"""A busy machine starts a process that loads torch in a minute."""


def until(done, seconds=LONG_S):
    """Go on until something holds; a test that waits for what never comes fails."""
    ends = time.monotonic() + seconds
    while not done():
        if time.monotonic() > ends:
            pytest.fail(f"it did not come about within {seconds:g} s")
        yield


def wait_for(done, seconds=LONG_S):
    """Wait until something holds."""
    for _ in until(done, seconds):
        time.sleep(0.01)
