"""A report is in the store if and only if the decision that closed its window is, and it goes only when it may."""

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from uuid import UUID

import pytest

from esper_ray.controller.chain import erase, write
from esper_ray.controller.commands import CommandResult, Outcome, Refusal
from esper_ray.controller.records import FILE, Fate, Records
from esper_ray.controller.reports.field_report import ReportOutcome
from esper_ray.controller.reports.observing import end_within, observe_within
from esper_ray.controller.reports.outbox import read_experience
from esper_ray.controller.store import Store
from tests.esper_ray.controller.reporting import CONFIG, FALLING, found, record, reported, seen
from tests.esper_ray.controller.sealing import NOW
from tests.esper_ray.controller.test_store import CALM, decision, refusal
from tests.places import ROOT

DIES = """
import os, signal, sys
from pathlib import Path
from esper_ray.controller.store import Store
from tests.esper_ray.controller.reporting import record, seen
store = Store(Path(sys.argv[1]))
for epoch in range(3):
    record(store, seen(epoch, 1.0))
def at(statement):
    if statement.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2]:
    store._connection.set_trace_callback(at)
record(store, seen(3, 1.0))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("statement", "reports"), [("INSERT INTO reports", 0), ("INSERT INTO windows", 0), ("", 1)])
def test_a_process_that_is_killed_has_both_the_decision_and_its_reports_or_neither(tmp_path, statement, reports):
    command = [sys.executable, "-c", DIES, str(tmp_path), statement]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    with Store(tmp_path) as store:
        assert len(list(store.records("run"))) == 3 + reports
        assert len(found(tmp_path)) == reports
        record(store, seen(4, 1.0))
        assert [entry.report.epoch for entry in found(tmp_path).values()] == [0, 1][: 1 + reports]


def test_reports_come_with_the_decisions_that_close_their_windows_and_outlive_the_service(tmp_path):
    seen_ids = []
    for start in (0, 10, 20):
        with Store(tmp_path) as store:
            for epoch in range(start, start + 10):
                record(store, seen(epoch, FALLING[epoch % 6]))
            seen_ids.append(list(found(tmp_path)))
    assert [len(ids) for ids in seen_ids] == [7, 17, 27], "windows that were open go on"
    assert seen_ids[2][:17] == seen_ids[1]
    assert seen_ids[1][:7] == seen_ids[0]
    with Store(tmp_path) as store:
        assert store.faults() == []
        decisions = [each.decision for each in store.records("run")]
        for report_id, decided in zip(found(tmp_path), decisions, strict=False):
            experience = read_experience(store, report_id)
            assert experience.decision == decided
            assert str(experience.report.command_id) == decided.command_id
        with store.transaction() as connection:
            end_within(connection, "run", NOW)
        assert len(found(tmp_path)) == 30, "the run is over"
        assert [entry.report.outcome for entry in found(tmp_path).values()][-3:] == [ReportOutcome.ABORTED] * 3
        with store.transaction() as connection:
            end_within(connection, "run", NOW)
            end_within(connection, "nobody", NOW)
        assert len(found(tmp_path)) == 30


def test_runs_have_windows_of_their_own(tmp_path):
    with Store(tmp_path) as store:
        for epoch in range(4):
            for run_id in ("a", "b"):
                record(store, seen(epoch, 1.0, run_id=run_id))
        assert sorted(entry.report.run_id for entry in found(tmp_path).values()) == ["a", "b"]
        for entry in found(tmp_path).values():
            assert len(entry.report.overlaps) == 2


def test_what_became_of_a_command_is_said(tmp_path):
    def result(decided, outcome, reason):
        return CommandResult(
            command_id=UUID(decided.command_id),
            run_id="run",
            outcome=outcome,
            reason=reason,
            epoch=0,
            stages_before={},
            stages_after={},
        )

    with Store(tmp_path) as store:
        applied, refused, late, unsent = (record(store, seen(0, 1.0)) for _ in range(4))
        for decided, outcome, reason in (
            (applied, Outcome.APPLIED, None),
            (refused, Outcome.REFUSED, Refusal.SEED_CHANGED),
            (late, Outcome.EXPIRED, Refusal.TOO_LATE),
        ):
            store.mark_sent(decided.command_id)
            content = result(decided, outcome, reason).model_dump_json().encode()
            assert store.attach_result(decided.command_id, content)
        assert store.abort(unsent.command_id)
        lost = record(store, seen(0, 1.0))
        for epoch in (1, 2, 3):
            record(store, seen(epoch, 1.0, opens=epoch != 1))
        with store.transaction() as connection:
            end_within(connection, "run", NOW)
        became = {str(entry.report.command_id): entry.report.applied for entry in found(tmp_path).values()}
        named = [became[of.command_id] for of in (applied, refused, late, unsent, lost)]
        assert named == [True, False, False, False, None]
        assert list(became.values()).count(None) == 3
        notes = {str(entry.report.command_id): entry.report.notes for entry in found(tmp_path).values()}
        assert not any("its command" in note for note in notes[applied.command_id])
        assert notes[refused.command_id][0] == "its command was refused: seed_changed"
        assert notes[late.command_id][0] == "its command was expired: too_late"
        assert notes[unsent.command_id][0] == "its command was aborted: not_delivered"
        assert notes[lost.command_id][0] == "its command was lost: no_result"
        assert sum(said[0] == "its command has no result yet" for said in notes.values()) == 2


def test_what_is_only_recorded_is_not_followed(tmp_path):
    with Store(tmp_path) as store:
        record(store, seen(0, 1.0))
        for epoch in range(1, 6):
            each = seen(epoch, 1.0, opens=False)
            what = decision(epoch, command_id=str(each.command.command_id))
            store.record(what, CALM, withheld=True, also=lambda at, one=each: observe_within(at, one, CONFIG, NOW))
        (report,) = (entry.report for entry in found(tmp_path).values())
        assert report.epoch == 0, "a window from before closes all the same"
        assert [one.fate for one in store.records("run")][1:] == [Fate.WITHHELD] * 5


@pytest.mark.parametrize(
    "change",
    ["UPDATE windows SET content = x'7b7d'", "DELETE FROM windows", "INSERT INTO windows VALUES ('new', x'7b7d')"],
)
def test_windows_that_were_changed_are_not_gone_by(tmp_path, change):
    with Store(tmp_path) as store:
        record(store, seen(0, 1.0))
        with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
            connection.execute(change)
        run_id = "new" if "'new'" in change else "run"
        assert "of windows" in refusal(lambda: record(store, seen(1, 1.0, run_id=run_id)))
        assert len(store.faults()) == 1
    assert "is not as it was written, and was left alone" in refusal(lambda: Store(tmp_path))


def test_windows_of_another_version_are_said_to_be(tmp_path):
    with Store(tmp_path) as store:
        record(store, seen(0, 1.0))
        with store.transaction() as connection:
            write(connection, "windows", "UPDATE windows SET content = x'7b2261223a317d'")
        assert "of windows is of another version" in refusal(lambda: record(store, seen(1, 1.0)))


def test_a_report_that_went_is_no_fault_and_one_that_is_gone_is(tmp_path):
    with Store(tmp_path) as store:
        reported(store, 3)
        first, second, third = found(tmp_path)
        with store.transaction() as connection:
            assert erase(connection, "reports", first)
            assert not erase(connection, "reports", first)
        assert list(found(tmp_path)) == [second, third]
        assert store.faults() == []
    with Store(tmp_path) as store:
        assert read_experience(store, first) is None
        with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
            connection.execute("DELETE FROM reports WHERE report_id = ?", (second,))
        assert store.faults() == [f"row {second} of reports is gone"]
        with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
            connection.execute(
                "INSERT INTO reports SELECT ?, run_id, sequence, content, state, attempts, due_ns, note FROM reports",
                (first,),
            )
        assert f"row {first} of reports is not as it was written" in store.faults()
        with store.transaction() as connection, pytest.raises(Exception, match="is not as it was written"):
            erase(connection, "reports", first)
    assert "was left alone" in refusal(lambda: Store(tmp_path))


def test_nonces_that_are_lost_are_no_fault_of_the_records(tmp_path):
    with Store(tmp_path) as store, store.transaction() as connection:
        connection.execute("INSERT INTO nonces VALUES ('anybody', x'00', 1, x'00')")
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("DELETE FROM nonces")
    Store(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("DROP TABLE nonces")
    assert "its tables are not as they were made" in refusal(lambda: Store(tmp_path))


def test_a_report_that_cannot_be_read_hides_no_other(tmp_path):
    with Store(tmp_path) as store:
        reported(store, 5)
        ids = list(found(tmp_path))
        with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
            connection.execute("UPDATE reports SET content = x'00' WHERE report_id = ?", (ids[0],))
            connection.execute("UPDATE reports SET note = CAST(x'ff' AS TEXT) WHERE report_id = ?", (ids[1],))
            connection.execute("UPDATE decisions SET level = 'RED' WHERE sequence = 3")
        assert list(found(tmp_path)) == ids[2:]
        assert "is not as it was written" in refusal(lambda: read_experience(store, ids[0]))
        assert "UTF-8" in refusal(lambda: read_experience(store, ids[1]))
        assert "row 3 of decisions is not as it was written" in refusal(lambda: read_experience(store, ids[2]))
        assert read_experience(store, ids[3]).report.epoch == 3
        with Records.open(tmp_path) as beside:
            assert read_experience(beside, ids[4]).report.epoch == 4
