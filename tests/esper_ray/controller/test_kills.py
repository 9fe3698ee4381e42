"""A service may be killed at any moment: its store opens whole, with all that it ever said was committed."""

from benchmarks.killed_service import A_STORE, service_kills
from benchmarks.killing import kills

KILLS = 10
"""``python -m benchmarks.damage --kills N`` makes more, of both."""


def test_after_every_kill_a_store_is_whole_and_has_all_that_was_committed(tmp_path):
    assert kills(tmp_path, KILLS) >= KILLS


def test_what_a_killed_service_has_sent_is_on_record_and_no_packet_is_decided_on_twice(tmp_path):
    found = service_kills(tmp_path, A_STORE)
    assert found.kills >= A_STORE
    assert found.told > 0
