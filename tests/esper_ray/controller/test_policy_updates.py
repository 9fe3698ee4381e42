"""An update decides only after all was checked, is watched, and goes again by itself; whatever else leaves no trace."""

import dataclasses
import logging
import shutil
import threading
from types import SimpleNamespace

import pytest

from benchmarks.full_disk import files_of_at_most
from esper_ray.bus.streams import Stream
from esper_ray.cli import parse
from esper_ray.controller import telemetry
from esper_ray.controller.commands import Kind, Reason, Severity
from esper_ray.controller.emitting import CallingSink, Telemetry
from esper_ray.controller.records import Records, StoreFailed
from esper_ray.controller.service import Controller
from esper_ray.controller.updates.considering import PolicyUpdates
from esper_ray.controller.updates.history import UpdateState, order_rollback, updates_in
from esper_ray.controller.updates.making import update_of
from esper_ray.controller.updates.probation import MOST_ANOMALIES, PROBATION_INFERENCES
from esper_ray.controller.updates.shadow import SNAPSHOTS, reference_snapshots, snapshots_of
from esper_ray.controller.updates.verdicts import UpdateReason
from esper_ray.errors import UserError
from esper_ray.terminal import output
from policies.strategic.messages import SystemState
from tests.esper_ray.bus.patience import wait_for
from tests.esper_ray.controller.sealing import DAY, NOW
from tests.esper_ray.controller.test_attending import UNHURRIED
from tests.esper_ray.controller.updating import (
    RARE,
    Here,
    answers,
    base,
    enveloped,
    learnt,
    packet,
    poisoned,
    saved,
    sent,
    verifier,
    version_of,
)

FIXED = [packet(epoch, "fixed") for epoch in range(3)]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Directories of checkpoints, by what they are."""
    root, first = tmp_path_factory.mktemp("policies"), base()
    risky = {name: of.clone() for name, of in learnt(first, 0.03).weights.items()}
    names = [name for name in risky if name.startswith("heads.") and "risk" in name]
    assert names, sorted(risky)
    risky[names[-1]][-1] += 1e3
    kinds = {
        "first": first,
        "second": learnt(first),
        "third": learnt(first, 0.05),
        "poisoned": poisoned(first),
        "risky": dataclasses.replace(first, weights=risky),
    }
    return SimpleNamespace(**{name: saved(checkpoint, root / name) for name, checkpoint in kinds.items()})


FEW = 4
"""Packets of a shadow run here."""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """A worker takes seconds to start: here policies answer in this process, and all else is as it is."""
    monkeypatch.setattr("esper_ray.controller.service.IsolatedPolicy", lambda name, **_: Here(name))
    monkeypatch.setattr("esper_ray.controller.service.try_policy", lambda *_: None)
    few = "esper_ray.controller.updates.considering.snapshots_of"
    monkeypatch.setattr(few, lambda records: snapshots_of(records, FEW))


class Service:
    """A controller in a directory, and who considers updates for it."""

    def __init__(self, policy, directory, now=NOW):
        self.told, self.directory = [], directory
        self.telemetry = Telemetry([CallingSink(self.told.append)])
        self.controller = Controller(str(policy), directory, config=UNHURRIED, telemetry=self.telemetry)
        self.updates = PolicyUpdates(self.controller.live, verifier(now), lambda: now)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.updates.close()
        self.controller.close()
        self.telemetry.close()

    def evaluate(self, *packets):
        return [self.controller.evaluate_epoch(one) for one in packets]

    def bits(self):
        """What the live policy says of fixed packets, to the last bit."""
        return answers(self.controller.live.incumbent.policy, FIXED)

    def history(self):
        self.controller._disk.within(lambda: None, 60.0)
        with Records.open(self.directory) as records:
            return updates_in(records)

    def events(self, item):
        return [(one.part, one.severity) for one in self.told if one.item is item]


def proposer_of(command):
    return command.policy.version


def test_an_accepted_update_decides_and_is_delivered_twice_in_vain(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        before = service.bits()
        assert proposer_of(service.evaluate(packet(0))[0]) == version_of(policies.first)
        content = sent(policies.second, 3)
        verdict = service.updates.consider(content)
        assert verdict.accepted, verdict
        assert (verdict.version, verdict.policy_version) == (3, version_of(policies.second))
        assert proposer_of(service.evaluate(packet(1))[0]) == version_of(policies.second)
        assert service.bits() != before
        assert service.updates.consider(content) == verdict
        (record,) = service.history()
        assert (record.state, record.inferences, record.before) == (
            UpdateState.PROBATION,
            1,
            version_of(policies.first),
        )
        wait_for(lambda: service.events(telemetry.UPDATE_ACCEPTED))
        assert len(service.events(telemetry.UPDATE_ACCEPTED)) == 1


def test_what_the_policy_before_remembered_is_not_read_by_the_one_after(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        remembered = packet(0, metrics={"samples_per_s": 9000.0})
        service.evaluate(remembered)
        assert service.updates.consider(sent(policies.second, 1)).accepted
        asked = []
        policy = service.controller.live.incumbent.policy
        answering, policy.ask = policy.ask, lambda request, _: asked.append(request) or answering(request)
        service.evaluate(packet(1), packet(2))
        assert asked[0].hidden is None
        assert asked[1].hidden is not None
        order_rollback(tmp_path)
        policy = service.controller.live._before.policy
        answering, policy.ask = policy.ask, lambda request, _: asked.append(request) or answering(request)
        service.evaluate(packet(3))
        assert len(asked) == 3
        assert asked[2].hidden is None


def test_whatever_is_wrong_has_its_reason_and_leaves_the_live_policy_to_the_bit(policies, tmp_path, monkeypatch):
    good = update_of(policies.second, 5).framed()
    manifest_only = update_of(policies.second, 5)
    with Service(policies.first, tmp_path) as service:
        service.evaluate(*(packet(epoch) for epoch in range(3)), *(packet(9, "odd", RARE),))
        before, live = service.bits(), service.controller.live.incumbent
        other = update_of(policies.third, 5)
        cases = [
            (b"", UpdateReason.ENVELOPE),
            (enveloped(good)[:-32] + bytes(32), UpdateReason.ENVELOPE),
            (enveloped(good, kind=Stream.REPORTS), UpdateReason.ENVELOPE),
            (enveloped(good, audience="run"), UpdateReason.ENVELOPE),
            (enveloped(good, NOW - 8 * DAY), UpdateReason.ENVELOPE),
            (enveloped(b"no update"), UpdateReason.MALFORMED),
            (
                enveloped(manifest_only.model_copy(update={"weights": other.weights}).framed()),
                UpdateReason.WEIGHTS_SHA256,
            ),
            (sent(policies.poisoned, 5), UpdateReason.SHADOW_FAILED),
        ]
        for content, reason in cases:
            assert service.updates.consider(content).reason is reason
        recorded = [record.reason for record in service.history()]
        assert recorded == [reason for _, reason in cases if reason is not UpdateReason.ENVELOPE]
        with monkeypatch.context() as ours:
            ours.setattr("esper_ray.controller.updates.considering.shadow_run", _raises)
            assert service.updates.consider(sent(policies.second, 5)).reason is UpdateReason.FAILED
        with files_of_at_most(1):
            assert service.updates.consider(sent(policies.second, 5)).reason is UpdateReason.STORE_FAILED
        assert service.controller.live.incumbent is live
        assert service.bits() == before
        assert {path.name for path in (tmp_path / "updates").iterdir()} == {version_of(policies.first)[:16]}
        wait_for(lambda: len(service.events(telemetry.UPDATE_REJECTED)) == len(cases) + 2)
        told = [part for part, _ in service.events(telemetry.UPDATE_REJECTED)]
        assert told == [*(reason for _, reason in cases), UpdateReason.FAILED, UpdateReason.STORE_FAILED]


def _raises(*_):
    raise RuntimeError("a mistake of ours")


def test_answers_that_come_too_late_are_a_reason(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        service.controller.live.start = lambda name: Here(name, deadline_s=0.0)
        assert service.updates.consider(sent(policies.second, 1)).reason is UpdateReason.SHADOW_LATE
        assert not service.controller.live.update


def test_only_the_checkpoint_of_a_graph_policy_takes_updates(policies, tmp_path):
    with Service("heuristic", tmp_path) as service:
        assert service.updates.consider(sent(policies.second, 1)).reason is UpdateReason.NOT_TAKEN
        assert not (tmp_path / "updates").exists()


def test_a_poisoned_policy_that_looked_well_is_rolled_back_by_itself_and_for_good(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        before = service.bits()
        assert service.updates.consider(sent(policies.poisoned, 1)).accepted
        assert service.bits() != before
        commands = service.evaluate(*(packet(epoch, f"run {epoch}", RARE) for epoch in range(MOST_ANOMALIES)))
        assert {(one.kind, one.reason) for one in commands} == {(Kind.PAUSE, Reason.POLICY_NOT_FINITE)}
        assert service.bits() == before
        (after,) = service.evaluate(packet(1, "another"))
        assert proposer_of(after) == version_of(policies.first)
        (record,) = service.history()
        assert (record.state, record.reason) == (UpdateState.ROLLED_BACK, "anomalies")
        assert (record.inferences, record.anomalies) == (MOST_ANOMALIES, MOST_ANOMALIES)
        wait_for(lambda: service.events(telemetry.UPDATE_ROLLED_BACK))
        assert service.events(telemetry.UPDATE_ROLLED_BACK) == [("anomalies", Severity.HIGH)]
        assert service.updates.consider(sent(policies.poisoned, 2)).reason is UpdateReason.ROLLED_BACK
        assert service.updates.consider(sent(policies.second, 1)).reason is UpdateReason.VERSION
        assert service.bits() == before
    with Service(policies.first, tmp_path) as service:
        assert service.updates.consider(sent(policies.poisoned, 3)).reason is UpdateReason.ROLLED_BACK
        assert service.updates.consider(sent(policies.second, 1)).reason is UpdateReason.VERSION
        assert service.bits() == before
        assert service.updates.consider(sent(policies.second, 2)).accepted


def test_a_policy_that_expects_the_worst_of_itself_is_rolled_back(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        assert service.updates.consider(sent(policies.risky, 1)).accepted
        service.evaluate(*(packet(epoch) for epoch in range(MOST_ANOMALIES)))
        (record,) = service.history()
        assert (record.state, record.anomalies) == (UpdateState.ROLLED_BACK, MOST_ANOMALIES)


def test_within_probation_no_other_is_admitted_and_after_it_one_is(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        assert service.updates.consider(sent(policies.second, 1)).accepted
        assert service.updates.consider(sent(policies.third, 2)).reason is UpdateReason.PROBATION
        service.evaluate(packet(20, max_epochs=20))  # the run is over: nobody is asked
        service.evaluate(*(packet(epoch, f"run {epoch}") for epoch in range(PROBATION_INFERENCES - 1)))
        assert service.updates.consider(sent(policies.third, 2)).reason is UpdateReason.PROBATION
        service.evaluate(packet(1))
        first, *_ = service.history()
        assert (first.state, first.inferences) == (UpdateState.ACCEPTED, PROBATION_INFERENCES)
        assert service.updates.consider(sent(policies.second, 1)).reason is UpdateReason.VERSION
        assert service.updates.consider(sent(policies.third, 2)).accepted
        order_rollback(tmp_path)
        assert proposer_of(service.evaluate(packet(2))[0]) == version_of(policies.second)
        order_rollback(tmp_path)
        assert proposer_of(service.evaluate(packet(3))[0]) == version_of(policies.first)
        with pytest.raises(StoreFailed, match="nothing to be rolled back"):
            order_rollback(tmp_path)


def test_probation_goes_on_after_a_restart_and_the_update_decides_there(policies, tmp_path, caplog):
    with Service(policies.first, tmp_path) as service:
        before = service.bits()
        assert service.updates.consider(sent(policies.poisoned, 1)).accepted
        service.evaluate(packet(0), *(packet(epoch, f"run {epoch}", RARE) for epoch in range(MOST_ANOMALIES - 1)))
        poisoned_bits = service.bits()
    with caplog.at_level(logging.WARNING), Service(policies.first, tmp_path) as service:
        assert [line for line in caplog.messages if "update 1 (policy" in line and str(policies.first) in line]
        assert service.bits() == poisoned_bits
        assert service.updates.consider(sent(policies.third, 2)).reason is UpdateReason.PROBATION
        service.evaluate(packet(5, layer_type=RARE))
        assert service.bits() == before
        record, _ = service.history()
        assert (record.state, record.inferences) == (UpdateState.ROLLED_BACK, MOST_ANOMALIES + 1)


def test_the_policy_before_comes_back_bit_for_bit_though_its_directory_has_changed(policies, tmp_path):
    given = shutil.copytree(policies.first, tmp_path / "given")
    with Service(given, tmp_path / "state") as service:
        before = service.bits()
        assert service.updates.consider(sent(policies.second, 1)).accepted
    learnt(base(), 0.5).save(given)
    with Service(given, tmp_path / "state") as service:
        order_rollback(tmp_path / "state")
        service.evaluate(packet(0))
        assert service.bits() == before


def test_a_word_while_no_service_runs_holds_for_the_next_start(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        before = service.bits()
        assert service.updates.consider(sent(policies.second, 1)).accepted
    order_rollback(tmp_path)
    with Service(policies.first, tmp_path) as service:
        assert service.bits() == before
        (record,) = service.history()
        assert (record.state, record.reason, record.ordered) == (UpdateState.ROLLED_BACK, "operator", False)
        assert service.updates.consider(sent(policies.second, 2)).reason is UpdateReason.ROLLED_BACK


def test_a_service_with_another_kind_of_policy_leaves_updates_alone(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        assert service.updates.consider(sent(policies.second, 1)).accepted
        second = service.bits()
    with Service("heuristic", tmp_path) as service:
        assert service.controller.live.incumbent.policy.version == "heuristic"
    with Service(policies.first, tmp_path) as service:
        assert service.bits() == second


def test_an_update_whose_files_are_gone_is_a_line(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        assert service.updates.consider(sent(policies.second, 1)).accepted
    shutil.rmtree(tmp_path / "updates" / version_of(policies.second)[:16])
    with pytest.raises(UserError, match="cannot be used") as refused:
        Service(policies.first, tmp_path)
    assert "\n" not in str(refused.value)
    order_rollback(tmp_path)
    with Service(policies.first, tmp_path) as service:
        assert service.controller.live.update is None


def test_what_a_service_that_was_killed_left_of_a_candidate_is_tidied_away(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        update = update_of(policies.second, 1)
        left = service.controller.live.files.keep(update.head.manifest.encode(), "weights", update.weights)
        (left.parent / ".half.unfinished").mkdir()
        assert left.is_dir()
    with Service(policies.first, tmp_path) as service:
        assert {path.name for path in left.parent.iterdir()} == {version_of(policies.first)[:16]}


def test_decisions_go_on_while_an_update_is_considered(policies, tmp_path):
    tried, go_on, verdicts = threading.Event(), threading.Event(), []

    class Slow(Here):
        def ask(self, request, deadline_s=None):
            tried.set()
            assert go_on.wait(60.0)
            return super().ask(request, deadline_s)

    with Service(policies.first, tmp_path) as service:
        service.controller.live.start = Slow
        service.updates.later(sent(policies.second, 1), verdicts.append)
        assert tried.wait(60.0)
        commands = service.evaluate(*(packet(epoch) for epoch in range(3)))
        assert {proposer_of(one) for one in commands} == {version_of(policies.first)}
        assert not verdicts
        go_on.set()
        wait_for(lambda: verdicts)
        assert verdicts[0].accepted
        assert proposer_of(service.evaluate(packet(3))[0]) == version_of(policies.second)


def test_a_disk_that_fails_with_a_rollback_holds_nobody_up_and_it_is_written_later(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        assert service.updates.consider(sent(policies.poisoned, 1)).accepted
        service.evaluate(packet(0, "a", RARE), packet(0, "b", RARE))
        service.history()
        with files_of_at_most(1):
            service.evaluate(packet(0, "c", RARE))
            service.controller._disk.within(lambda: None, 60.0)
        (after,) = service.evaluate(packet(0, "d"))
        assert proposer_of(after) == version_of(policies.first)
        (record,) = service.history()
        assert record.state is UpdateState.ROLLED_BACK


def test_an_update_of_which_nobody_knows_whether_it_is_written_does_not_decide_nor_after_a_restart(
    policies, tmp_path, monkeypatch
):
    with Service(policies.first, tmp_path) as service:
        before, content = service.bits(), sent(policies.second, 1)

        def fails(*_, **__):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as ours:  # the row is committed by then
            ours.setattr("esper_ray.controller.head_file.HeadFile.write", fails)
            assert service.updates.consider(content).reason is UpdateReason.STORE_FAILED
        (record,) = service.history()
        assert record.state is UpdateState.PROBATION
        assert service.bits() == before
        assert proposer_of(service.evaluate(packet(0))[0]) == version_of(policies.first)
        (record,) = service.history()
        assert (record.state, record.reason) == (UpdateState.REJECTED, UpdateReason.STORE_FAILED)
        assert service.updates.consider(content).reason is UpdateReason.STORE_FAILED
    with Service(policies.first, tmp_path) as service:
        assert service.bits() == before
        assert service.updates.consider(sent(policies.second, 1)).accepted


def test_a_policy_that_fails_in_probation_is_rolled_back(policies, tmp_path):
    with Service(policies.first, tmp_path) as service:
        before = service.bits()
        assert service.updates.consider(sent(policies.second, 1)).accepted
        service.evaluate(packet(0))
        service.controller.live.incumbent.policy.closed = True
        commands = service.evaluate(*(packet(epoch) for epoch in range(1, 1 + MOST_ANOMALIES)))
        assert {one.reason for one in commands} == {Reason.POLICY_FAILED}
        assert service.bits() == before
        (record,) = service.history()
        assert (record.state, record.inferences) == (UpdateState.ROLLED_BACK, 1 + MOST_ANOMALIES)


def test_a_shadow_run_is_on_the_last_packets_and_on_reference_packets_where_those_are_few(policies, tmp_path):
    references = reference_snapshots()
    assert len(references) == SNAPSHOTS
    for one in references:
        read = SystemState.model_validate_json(one.packet)
        assert (read.run_id, read.packet_id) == (one.run_id, one.packet_id)
        assert read.graph is not None
        assert read.action_mask
    with Service(policies.first, tmp_path) as service:
        policy = service.controller.live.incumbent.policy
        service.evaluate(*(packet(epoch) for epoch in range(3)))
        policy.closed = True
        assert service.evaluate(packet(4))[0].reason is Reason.POLICY_FAILED
        policy.closed = False
        shots = snapshots_of(service.controller.live.store)
        assert [one.run_id for one in shots] == [one.run_id for one in references[: SNAPSHOTS - 3]] + ["run"] * 3
        assert [one.packet_id for one in shots[-3:]] == ["0", "1", "2"]
        service.evaluate(*(packet(epoch, "other") for epoch in range(40)))
        shots = snapshots_of(service.controller.live.store)
        assert [one.packet_id for one in shots] == [str(epoch) for epoch in range(8, 40)]


def test_updates_are_listed_shown_and_gone_back_from(policies, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def said(*words):
        parse(["updates", *words, "--directory", str(tmp_path)]).run(output())
        return capsys.readouterr().out

    with Service(policies.first, tmp_path) as service:
        service.updates.consider(enveloped(b"nothing"))
        service.updates.consider(sent(policies.second, 7))
        listed = said("list")
        assert "malformed" in listed
        assert version_of(policies.second)[:16] in listed
        shown = said("show", "2")
        assert version_of(policies.second) in shown
        assert "a test" in shown
        assert "update 7: rolled back" in said("rollback")
        assert "probation, to be rolled back" in said("list")
        service.evaluate(packet(0))
        assert "rolled_back" in said("list")
    for words, why in ((("show",), "needs one"), (("list", "1"), "is for show"), (("show", "9"), "no update 9")):
        with pytest.raises(UserError, match=why):
            said(*words)
    with pytest.raises(UserError, match="nothing to be rolled back"):
        said("rollback")
