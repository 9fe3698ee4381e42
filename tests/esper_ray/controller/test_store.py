"""A decision and its run's state are on disk together or not at all, and what can be read is read."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.full_disk import files_of_at_most
from esper_ray.controller.records import FILE, Decision, Fate, Records, StoredRun, StoreFailed, Unreadable
from esper_ray.controller.store import Store
from esper_ray.controller.tables import VERSION
from tests.esper_ray.keeping.places import mounted, read_only
from tests.places import ROOT

NAMES = st.text(min_size=1, max_size=8)
DECISIONS = st.builds(
    Decision,
    run_id=st.sampled_from(("run", "läuft")),
    packet_id=NAMES,
    epoch=st.integers(0, 2**53),
    command_id=st.uuids().map(str),
    decided_at_ns=st.integers(0, 2**63 - 1),
    level=st.text(max_size=8),
    policy_version=st.none() | NAMES,
    action=st.none() | st.lists(st.integers(0, 255), max_size=8).map(tuple),
    log_prob=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    proposal=st.none() | st.binary(max_size=20),
    mask=st.none() | st.lists(st.integers(0, 1), max_size=60).map(tuple),
    signals=st.binary(max_size=20),
    breakers=st.binary(max_size=20),
    command=st.binary(max_size=20),
    packet=st.binary(max_size=20),
)
STATES = st.builds(StoredRun, memory=st.binary(max_size=9), hidden=st.none() | st.binary(max_size=9))
CALM = StoredRun(memory=b"calm", hidden=None)


def decision(at=0, run_id="run", **fields):
    known = {
        "run_id": run_id,
        "packet_id": str(at),
        "epoch": at,
        "command_id": f"{run_id} {at}",
        "decided_at_ns": at,
        "level": "Green",
        "policy_version": "heuristic",
        "action": (1, 0, 2),
        "log_prob": -0.5,
        "proposal": b"proposal",
        "mask": (1, 0, 1),
        "signals": b"[]",
        "breakers": b"{}",
        "command": b"command",
        "packet": b"packet",
    }
    return Decision(**(known | fields))


def fates(store, run_id="run"):
    return [record.fate for record in store.records(run_id)]


def refusal(act):
    with pytest.raises(StoreFailed) as refused:
        act()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@settings(max_examples=25)  # each brings its decisions to disk
@given(st.lists(st.tuples(DECISIONS, STATES), max_size=6, unique_by=lambda pair: pair[0].command_id))
def test_what_was_recorded_is_read_back_by_run_and_in_order(tmp_path_factory, recorded):
    directory = tmp_path_factory.mktemp("state")
    with Store(directory) as store:
        for one, state in recorded:
            store.record(one, state)
    with Store(directory) as again, Records.open(directory) as beside:
        runs = list(dict.fromkeys(one.run_id for one, _ in recorded))
        assert again.runs() == beside.runs() == runs
        for run_id in runs:
            own = [pair for pair in recorded if pair[0].run_id == run_id]
            for reader in (again, beside):
                assert [record.decision for record in reader.records(run_id)] == [one for one, _ in own]
                assert reader.state(run_id) == own[-1][1]
        assert again.state("unknown") is None


def test_a_command_goes_its_way_once(tmp_path):
    with Store(tmp_path) as store:
        assert store.record(decision(), CALM) == ()
        assert fates(store) == [Fate.PENDING]
        assert store.mark_sent("run 0")
        assert not store.mark_sent("run 0"), "nothing is sent twice"
        assert store.attach_result("run 0", b"applied")
        assert not store.attach_result("run 0", b"again")
        assert not store.attach_result("unknown", b"applied")
        (record,) = store.records("run")
        assert (record.fate, record.reason, record.result) == (Fate.ANSWERED, "", b"applied")


def test_a_command_without_a_result_is_lost_after_three_epochs_of_its_run(tmp_path):
    with Store(tmp_path) as store:
        store.record(decision(0), CALM)
        store.mark_sent("run 0")
        assert store.record(decision(9, "other"), CALM) == ()
        assert store.record(decision(1), CALM) == store.record(decision(2), CALM) == ()
        store.attach_result("run 1", b"applied")
        assert store.record(decision(3), CALM) == ("run 0",)
        assert store.record(decision(4), CALM) == ()
        assert fates(store) == [Fate.LOST, Fate.ANSWERED, Fate.PENDING, Fate.PENDING, Fate.PENDING]
        assert next(store.records("run")).reason == "no_result"
        assert not store.attach_result("run 0", b"too late")


def test_after_a_restart_nothing_that_was_not_sent_is_ever_sent(tmp_path):
    with Store(tmp_path) as store:
        for at in range(3):
            store.record(decision(at), CALM, withheld=at == 2)
        store.mark_sent("run 0")
    with Store(tmp_path) as store:
        assert store.aborted == ("run 1",)
        assert fates(store) == [Fate.SENT, Fate.ABORTED, Fate.WITHHELD]
        assert [record.reason for record in store.records("run")] == ["", "not_delivered", ""]
        assert not any(store.mark_sent(f"run {at}") for at in range(3))
    with Store(tmp_path) as store:
        assert store.aborted == ()


DIES = """
import os, signal, sys
from pathlib import Path
from esper_ray.controller.store import Store
from tests.esper_ray.controller.test_store import CALM, StoredRun, decision
store = Store(Path(sys.argv[1]))
store.record(decision(0), CALM)
def at(statement):
    if statement.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
store._connection.set_trace_callback(at)
store.record(decision(1), StoredRun(memory=b"conservative", hidden=b"h"))
"""


@pytest.mark.parametrize("statement", ["INSERT INTO runs", "UPDATE deliveries", "COMMIT"])
def test_a_process_that_is_killed_within_a_decision_has_not_decided(tmp_path, statement):
    command = [sys.executable, "-c", DIES, str(tmp_path), statement]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    with Store(tmp_path) as store:
        assert [record.decision.packet_id for record in store.records("run")] == ["0"]
        assert store.state("run") == CALM
        assert store.aborted == ("run 0",)
        store.record(decision(1), CALM)


def test_a_second_service_is_refused_until_the_first_has_gone(tmp_path):
    with Store(tmp_path) as store:
        store.record(decision(), CALM)
        said = refusal(lambda: Store(tmp_path))
        assert said == (
            f"{tmp_path} is in use by another controller, process {os.getpid()}: stop it, or give another directory"
        )
        with Records.open(tmp_path) as beside:
            assert len(list(beside.records("run"))) == 1, "whoever only reads is let in"
    Store(tmp_path).close()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    with read_only(tmp_path / "disk") as disk:
        for directory in (disk, disk / "deeper"):
            assert f"cannot write {directory}" in refusal(lambda at=directory: Store(at))
    (tmp_path / "file").touch()
    assert "a file is in the way" in refusal(lambda: Store(tmp_path / "file"))


@pytest.mark.parametrize("full", ["disk", "file"])
def test_what_does_not_fit_leaves_what_was_there(tmp_path, full):
    def unaffected(store):
        assert [record.decision.packet_id for record in store.records("run")] == ["0"]
        assert store.state("run") == CALM

    def fill(store, disk):
        store.record(decision(0), CALM)
        large = decision(1, packet=bytes(2**21))
        assert str(disk / FILE) in refusal(lambda: store.record(large, StoredRun(memory=b"", hidden=b"")))
        unaffected(store)
        store.record(decision(2), CALM)  # a small one does fit
        assert len(list(store.records("run"))) == 2

    if full == "disk":
        with mounted(tmp_path / "disk", "size=1m") as disk, Store(disk) as store:
            fill(store, disk)
    else:
        with files_of_at_most(2**20), Store(tmp_path) as store:
            fill(store, tmp_path)


def test_a_damaged_record_hides_no_later_one(tmp_path):
    with Store(tmp_path) as store:
        for at in range(12):
            store.record(decision(at, packet=bytes(3000)), CALM)
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("UPDATE decisions SET epoch = 'three' WHERE sequence = 4")
        connection.execute("UPDATE decisions SET level = CAST(x'ff' AS TEXT) WHERE sequence = 6")
        connection.execute("DELETE FROM deliveries WHERE sequence = 8")
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray((tmp_path / FILE).read_bytes())
    start = content.index(b"run9\x09run 9") // page_size * page_size  # the page of the table that has this row
    content[start : start + 8] = b"\xff" * 8
    (tmp_path / FILE).write_bytes(content)
    with Records.open(tmp_path) as store:
        found = {record.sequence: record for record in store.records("run")}
    assert sorted(found) == list(range(1, 13))
    unreadable = {sequence: record.reason for sequence, record in found.items() if isinstance(record, Unreadable)}
    assert set(unreadable) == {4, 6, 8, 10}
    assert "row 4 of decisions is not as it was written" in unreadable[4]
    assert "UTF-8" in unreadable[6]
    assert "row 8 of deliveries is gone" in unreadable[8]
    assert "malformed" in unreadable[10]


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + bytes(500)])
def test_a_file_that_is_no_store_is_refused_and_kept(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert str(tmp_path / FILE) in refusal(lambda: Store(tmp_path))
    assert (tmp_path / FILE).read_bytes() == content
    assert str(tmp_path / FILE) in refusal(lambda: Records.open(tmp_path).__enter__())


def test_tables_of_another_version_are_refused(tmp_path):
    Store(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.execute("PRAGMA user_version = 1")
    assert f"is of format 1, this program's is {VERSION}" in refusal(lambda: Store(tmp_path))
    assert "holds no decisions" in refusal(lambda: Records.open(tmp_path / "empty").__enter__())


def test_the_log_is_moved_into_the_file_when_asked_and_not_by_deciding(tmp_path):
    with Store(tmp_path) as store:
        for at in range(30):
            store.record(decision(at, packet=bytes(2**16)), CALM)
        assert (tmp_path / FILE).stat().st_size < 2**18
        store.checkpoint()
        assert (tmp_path / FILE).stat().st_size > 30 * 2**16
        assert len(list(store.records("run"))) == 30
