"""What a learner was told survives it, once, within its limits."""

import sqlite3
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_ray.controller.learner.experience_store import ExperienceStore
from esper_ray.controller.learner.score import ScoreTerms
from esper_ray.controller.records import Decision, StoreFailed
from tests.esper_ray.controller.field import experience

TERMS, SLOTS = ScoreTerms(50.0, 1, 100, 1000), "2 False"


def told(run_id, epoch, **decision):
    """A report and its decision, whose packet nobody reads."""
    known = {
        "run_id": run_id,
        "packet_id": f"p{epoch}",
        "epoch": epoch,
        "command_id": str(uuid4()),
        "decided_at_ns": epoch,
        "level": "GREEN",
        "policy_version": "a policy",
        "action": (0,) * 8,
        "log_prob": -0.5,
        "proposal": b"{}",
        "mask": (1, 0),
        "signals": b"[]",
        "breakers": b"{}",
        "command": b"",
        "packet": b"\x00\xff",
    }
    of = Decision(**(known | decision))
    return experience(of, command_id=UUID(of.command_id), report_id=uuid4())


@pytest.fixture
def store(tmp_path):
    with ExperienceStore(tmp_path, 100) as store:
        yield store


def epochs(store, run_id="a run"):
    return [told.decision.epoch for told in store.steps(run_id)]


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(6)), again=st.lists(st.integers(0, 5), max_size=4))
def test_in_whatever_order_and_however_often_reports_come_the_same_is_kept(order, again, tmp_path_factory):
    run = [told("a run", epoch) for epoch in range(6)]
    directory = tmp_path_factory.mktemp("store")
    with ExperienceStore(directory, 100) as store:
        assert all(store.add(run[at], TERMS, SLOTS) for at in order)
        before = store.steps("a run"), store.new_steps()
        assert not any(store.add(run[at], TERMS, SLOTS) for at in again)
        assert (store.steps("a run"), store.new_steps()) == before
        assert [told.decision for told in before[0]] == [of.decision for of in run]
        assert [told.report for told in before[0]] == [of.report for of in run]
    with ExperienceStore(directory, 100) as store:
        assert epochs(store) == [*range(6)]
        assert store.new_steps() == 5


def test_a_decision_counts_once_its_neighbour_is_there_with_a_score_and_the_same_slots(store):
    for epoch in (0, 2, 4, 5, 6, 7):
        store.add(told("a run", epoch), TERMS, SLOTS)
    assert store.new_steps() == 3
    store.add(told("a run", 1), TERMS, SLOTS)
    assert store.new_steps() == 5
    store.add(told("a run", 3), ScoreTerms(None, 0, 0, 1000), SLOTS)
    assert store.new_steps() == 5, "its score is not known"
    store.add(told("a run", 8), TERMS, "3 False")
    store.add(told("another", 8), TERMS, SLOTS)
    assert store.new_steps() == 5
    store.add(told("a run", 9), TERMS, None)
    assert epochs(store) == [*range(9)], "nothing can be learnt from the last one"


def test_a_hosts_parameters_are_known_from_any_packet_of_its_run(store):
    unknown = ScoreTerms(50.0, 1, 100, None)
    for run_id in ("a run", "another"):
        for epoch in range(3):
            store.add(told(run_id, epoch), unknown, SLOTS)
    assert store.new_steps() == 0
    store.add(told("a run", 9), ScoreTerms(None, 0, 0, 1000), SLOTS)
    assert store.new_steps() == 2
    assert [of.terms for of in store.steps("a run")[:3]] == [ScoreTerms(50.0, 1, 100, 1000)] * 3
    assert [of.terms.host for of in store.steps("another")] == [None] * 3


def test_of_an_epoch_the_decision_of_a_policy_counts_or_else_the_first(store):
    acted = told("a run", 3, decided_at_ns=9)
    late, early = (told("a run", 3, action=None, decided_at_ns=at) for at in (8, 7))
    for each, expected in ((late, late), (early, early), (acted, acted)):
        store.add(each, TERMS, SLOTS)
        (step,) = store.steps("a run")
        assert step.decision == expected.decision


def test_what_an_update_has_learnt_from_is_new_no_more(store, tmp_path):
    for run_id in ("a", "b"):
        for epoch in range(4):
            store.add(told(run_id, epoch), TERMS, SLOTS)
    assert store.runs() == (["a", "b"], [])
    assert store.latest_update() is None
    store.updated(7, "three decisions", [of.sequence for of in store.steps("a")[:3]])
    assert store.new_steps() == 3
    assert store.runs() == (["b"], ["a"])
    assert [of.is_new for of in store.steps("a")] == [False, False, False, True]
    assert store.latest_update() == (7, "three decisions", False)
    store.mark_sent(7)
    store.close()
    with ExperienceStore(tmp_path, 100) as again:
        assert again.latest_update() == (7, "three decisions", True)
        with pytest.raises(StoreFailed):
            again.updated(7, "twice", [])
        assert again.new_steps() == 3


def test_beyond_its_capacity_what_was_learnt_from_goes_first_then_the_oldest(tmp_path):
    with ExperienceStore(tmp_path, 5) as store:
        run = [told("a run", epoch) for epoch in range(9)]
        for of in run[:5]:
            store.add(of, TERMS, SLOTS)
        store.updated(1, "", [store.steps("a run")[at].sequence for at in (2, 3)])
        kept = []
        for of in run[5:]:
            store.add(of, TERMS, SLOTS)
            kept.append(epochs(store))
        assert kept == [[0, 1, 3, 4, 5], [0, 1, 4, 5, 6], [1, 4, 5, 6, 7], [4, 5, 6, 7, 8]]
        assert not store.add(run[2], TERMS, SLOTS), "it was taken once, and is gone"
        assert epochs(store) == kept[-1]


def test_what_somebody_elses_transaction_takes_back_is_not_there(store, tmp_path):
    of = told("a run", 0)
    connection = sqlite3.connect(store.path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    assert store.add_within(connection, of, TERMS, SLOTS)
    connection.execute("ROLLBACK")
    assert store.steps("a run") == []
    connection.execute("BEGIN IMMEDIATE")
    assert store.add_within(connection, of, TERMS, SLOTS)
    connection.execute("COMMIT")
    connection.close()
    assert epochs(store) == [0]


def test_a_file_of_another_program_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / "learner.sqlite")
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StoreFailed, match="is of format 9"):
        ExperienceStore(tmp_path, 5)


def test_a_second_report_on_a_decision_takes_the_place_of_the_first(store):
    first = told("a run", 0)
    second = first.model_copy(
        update={"report": first.report.model_copy(update={"report_id": uuid4(), "notes": ("x",)})}
    )
    store.add(first, TERMS, SLOTS)
    assert store.add(second, TERMS, SLOTS)
    (step,) = store.steps("a run")
    assert step.report == second.report
