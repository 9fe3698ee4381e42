"""The whole circle: a policy decides on runs, their reports teach it, it comes to decide, and goes again if it is bad.

All parts are the real ones, with a bus between them; only the bus's own process is left out.
"""

import dataclasses
import time
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import nn

from esper_ray.bus.in_process import InProcessBus
from esper_ray.bus.streams import Stream
from esper_ray.controller import telemetry as items
from esper_ray.controller.commanding import sent_command
from esper_ray.controller.commands import Reason
from esper_ray.controller.emitting import CallingSink, Telemetry
from esper_ray.controller.envelope import seal
from esper_ray.controller.learner.at_bus import LearnerAtBus
from esper_ray.controller.learner.learner import Learner
from esper_ray.controller.learner.settings import ReportLearning
from esper_ray.controller.records import Records
from esper_ray.controller.remote.run_end import RemoteController
from esper_ray.controller.remote.service_end import ServiceEnd
from esper_ray.controller.reports.delivery import ReportDelivery
from esper_ray.controller.reports.outbox import DeliveryState
from esper_ray.controller.reports.taking import TakesReports
from esper_ray.controller.service import Controller
from esper_ray.controller.updates.history import UpdateState, updates_in
from esper_ray.controller.updates.making import update_of
from esper_ray.controller.updates.policy_update import AUDIENCE
from esper_ray.controller.updates.probation import MOST_ANOMALIES, PROBATION_INFERENCES
from esper_ray.controller.updates.shadow import SNAPSHOTS
from esper_ray.controller.updates.verdicts import RollbackReason, UpdateReason
from tests.envs.live.loops import Loop
from tests.esper_ray.bus.patience import until, wait_for
from tests.esper_ray.controller.field import greenhouse, policy
from tests.esper_ray.controller.reporting import found
from tests.esper_ray.controller.sealing import RING
from tests.esper_ray.controller.test_attending import UNHURRIED, episode
from tests.esper_ray.controller.updating import answers, packet, poisoned, saved, version_of

torch.set_num_threads(1)

FOREVER, PATIENCE_S = 1e4, 300.0
RUNS, EPOCHS = 4, 65
"""Each run's last packet is nobody's reward: 256 decisions, and not one too many."""
RARE = "groupnorm"
"""A type of layer that the policy knows, and that no run has until one comes."""
FIXED = [packet(epoch, "fixed") for epoch in range(3)]


def keys():
    return RING


@contextmanager
def service(bus, policy, directory):
    """As ``esper-ray control serve`` puts one together."""
    told = []
    with (
        Telemetry([CallingSink(told.append)]) as telemetry,
        Controller(str(policy), directory, config=UNHURRIED, keys=keys, telemetry=telemetry) as controller,
        ReportDelivery(controller.store, bus, keys, telemetry=telemetry),
        ServiceEnd(controller, bus, keys) as end,
    ):
        yield SimpleNamespace(controller=controller, end=end)
    outcomes = (items.UPDATE_ACCEPTED, items.UPDATE_REJECTED, items.UPDATE_ROLLED_BACK)
    end.told = [(one.item, one.part) for one in told if one.item in outcomes]


def decisions(directory, run_id):
    with Records.open(directory) as records:
        assert records.faults() == []
        return [record.decision for record in records.records(run_id)]


def history(directory):
    with Records.open(directory) as records:
        return updates_in(records)


def test_what_a_policy_decided_teaches_it_and_what_it_learnt_decides(tmp_path):
    first, state = saved(policy(), tmp_path / "first"), tmp_path / "state"
    settings = ReportLearning(passes=1)
    with (
        InProcessBus() as bus,
        service(bus, first, state) as serving,
        Learner(first, greenhouse(tmp_path / "greenhouse"), tmp_path / "learner", settings) as learner,
        TakesReports(bus, keys, learner.path, learner.take_within) as reports,
    ):
        at_bus, made = LearnerAtBus(learner, bus, keys, reports.step), []

        def learn_until(done):
            for _ in until(done, PATIENCE_S):
                if (learnt := at_bus.step(0.05)) is not None:
                    made.append(learnt)

        def taken():
            return reports.connection.execute("SELECT count(*) FROM taken_reports").fetchone()[0]

        def run(run_id, epochs):
            """And all reports on it are delivered, one per decision."""
            expected = taken() + epochs
            with RemoteController(bus, keys, run_id, wait_s=FOREVER) as remote:
                episode(remote, epochs)
            learn_until(lambda: taken() >= expected)
            wait_for(lambda: not found(state, DeliveryState.PENDING), PATIENCE_S)
            assert taken() == expected

        for number in range(RUNS):
            run(f"run {number}", EPOCHS)
        learn_until(lambda: made)
        (learnt,) = made
        decided = RUNS * (EPOCHS - 1)
        assert (learnt.version, learnt.runs, learnt.decisions, learnt.new) == (1, RUNS, decided, decided)
        assert learnt.undecided < decided / 4
        wait_for(lambda: serving.controller.live.update is not None, PATIENCE_S)
        run("later", PROBATION_INFERENCES + 2)
        assert serving.end.refused == 0
    before, after = version_of(first), version_of(tmp_path / "learner" / "policy")
    for number in range(RUNS):
        assert {each.policy_version for each in decisions(state, f"run {number}")} == {before}
    later = decisions(state, "later")
    assert [each.epoch for each in later] == [*range(PROBATION_INFERENCES + 2)]
    assert {each.policy_version for each in later} == {after} != {before}
    told = found(state, DeliveryState.DELIVERED).values()
    assert {each.report.policy_version for each in told if each.report.run_id == "later"} == {after}
    (update,) = history(state)
    assert (update.state, update.policy, update.before) == (UpdateState.ACCEPTED, after, before)
    assert (update.inferences, update.anomalies) == (PROBATION_INFERENCES, 0)
    assert serving.end.told == [(items.UPDATE_ACCEPTED, "")]


class Host:
    """A small network somewhere, that is grown by what a service says, epoch by epoch."""

    def __init__(self, bus, run_id, epochs, norm=None):
        loop = self.loop = Loop("cnn")
        if norm is not None:
            loop.model[1] = norm
            loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.05)
        self.remote = RemoteController(bus, keys, run_id, wait_s=FOREVER)
        self.grower = loop.grow(None, controller=self.remote, max_epochs=epochs)

    def train(self, epochs):
        for _ in range(epochs):
            self.loop.epoch()
            self.grower.end_epoch()

    def end(self):
        self.grower.commit()
        self.remote.close()


def test_a_bad_update_that_looks_good_goes_again_by_itself_and_all_is_as_before(tmp_path):
    """Whoever has a key can sign: weights that do as those before, but on a layer that comes later overflow."""
    plain, state = policy(), tmp_path / "state"
    knowing = dataclasses.replace(plain, registries=plain.registries.extended({"layer_type": [RARE]}))
    first, bad = saved(knowing, tmp_path / "first"), saved(poisoned(knowing, RARE), tmp_path / "bad")

    def publish(version):
        payload = update_of(bad, version, "a poisoned learner").framed()
        bus.send(Stream.UPDATES, seal(RING.signing, Stream.UPDATES, AUDIENCE, payload, time.time_ns()).content)

    with InProcessBus() as bus, service(bus, first, state) as serving:
        live, own = serving.controller.live, serving.controller.workers
        before = answers(live.incumbent.policy, FIXED)
        usual = Host(bus, "usual", SNAPSHOTS + 8)
        usual.train(SNAPSHOTS)
        publish(1)
        wait_for(lambda: live.update is not None, PATIENCE_S)
        usual.train(8)
        usual.end()
        assert answers(live.incumbent.policy, FIXED) != before
        other = Host(bus, "other", 12, nn.GroupNorm(1, 5))
        other.train(12)
        other.end()
        assert live.update is None
        assert serving.controller.workers == own
        assert answers(live.incumbent.policy, FIXED) == before
        publish(2)
        wait_for(lambda: len(history(state)) == 2, PATIENCE_S)
    good, poison = version_of(first), version_of(bad)
    versions = [each.policy_version for each in decisions(state, "usual")]
    assert versions == [good] * (SNAPSHOTS + 1) + [poison] * 7
    later = decisions(state, "other")
    assert [each.policy_version for each in later] == [None] * MOST_ANOMALIES + [good] * (12 - MOST_ANOMALIES)
    paused = [sent_command(each.command).reason for each in later[:MOST_ANOMALIES]]
    assert paused == [Reason.POLICY_NOT_FINITE] * MOST_ANOMALIES
    rolled_back, rejected = history(state)
    assert (rolled_back.state, rolled_back.reason) == (UpdateState.ROLLED_BACK, RollbackReason.ANOMALIES)
    assert (rolled_back.anomalies, rolled_back.trained_on) == (MOST_ANOMALIES, "a poisoned learner")
    assert (rejected.state, rejected.reason) == (UpdateState.REJECTED, UpdateReason.ROLLED_BACK)
    assert serving.end.told == [
        (items.UPDATE_ACCEPTED, ""),
        (items.UPDATE_ROLLED_BACK, RollbackReason.ANOMALIES),
        (items.UPDATE_REJECTED, UpdateReason.ROLLED_BACK),
    ]
