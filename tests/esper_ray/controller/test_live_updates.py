"""The same with processes: a candidate's worker is ready before it decides, so that no evaluation finds none."""

import os

from esper_ray.controller.commands import Kind, Reason
from esper_ray.controller.service import Controller
from esper_ray.controller.updates.considering import PolicyUpdates
from esper_ray.controller.updates.probation import MOST_ANOMALIES
from tests.esper_ray.controller.sealing import NOW
from tests.esper_ray.controller.test_attending import UNHURRIED
from tests.esper_ray.controller.test_isolated_policy import is_gone
from tests.esper_ray.controller.updating import RARE, base, packet, poisoned, saved, sent, verifier, version_of


def test_a_candidate_takes_over_and_goes_again_without_a_gap(tmp_path):
    first, second = saved(base(), tmp_path / "first"), saved(poisoned(base()), tmp_path / "second")
    with Controller(str(first), tmp_path / "state", config=UNHURRIED) as controller:
        updates = PolicyUpdates(controller.live, verifier(), lambda: NOW)
        own = controller.workers
        commands = [controller.evaluate_epoch(packet(0))]
        assert updates.consider(sent(second, 1)).accepted
        others = controller.workers
        assert os.getpid() not in (*own, *others)
        assert not set(own) & set(others)
        commands.append(controller.evaluate_epoch(packet(1)))
        for epoch in range(MOST_ANOMALIES):
            command = controller.evaluate_epoch(packet(2, f"run {epoch}", RARE))
            assert (command.kind, command.reason) == (Kind.PAUSE, Reason.POLICY_NOT_FINITE)
        assert controller.workers == own
        commands.append(controller.evaluate_epoch(packet(2)))
        assert [one.policy.version for one in commands] == [version_of(at) for at in (first, second, first)]
        updates.close()
    assert all(map(is_gone, (*own, *others)))
