"""For what comes soon, however busy the machine is, or never."""

import time

import pytest

LONG_S = 20.0


def until(done):
    """Go on until something holds; a test that waits for what never comes fails."""
    ends = time.monotonic() + LONG_S
    while not done():
        if time.monotonic() > ends:
            pytest.fail(f"it did not come about within {LONG_S:g} s")
        yield


def wait_for(done):
    """Wait until something holds."""
    for _ in until(done):
        time.sleep(0.01)
