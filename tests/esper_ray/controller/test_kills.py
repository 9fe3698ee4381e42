"""A service may be killed at any moment: its store opens whole, with all that it ever said was committed."""

from benchmarks.killing import kills

KILLS = 10
"""``python -m benchmarks.damage --kills N`` makes more."""


def test_after_every_kill_a_store_is_whole_and_has_all_that_was_committed(tmp_path):
    assert kills(tmp_path, KILLS) >= KILLS
