"""The greenhouse's part of an update."""

import dataclasses
import itertools

import pytest
import torch

from envs.vocabulary import LifecycleOp
from esper_ray.controller.learner.greenhouse import Greenhouse
from policies.strategic.imitation import decision_loss
from policies.strategic.labels import ACTIONS
from policies.strategic.replay_store import Replay, held_out
from policies.strategic.seen import OPS
from tests.esper_ray.controller.field import greenhouse, policy

torch.set_num_threads(1)
SHARE = 0.3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return greenhouse(tmp_path_factory.mktemp("g") / "store")


@pytest.fixture(scope="module")
def record(store):
    (world,) = Replay.open(store).worlds.values()
    return world


def read(store, checkpoint):
    return Greenhouse(store, checkpoint.network(), checkpoint, SHARE)


def drawn(of, size, seed=0):
    """The batches of a pass."""
    generator = torch.Generator().manual_seed(seed)
    return [*itertools.islice(of.batches(size, generator), -(-of.decisions // size))]


def test_hosts_that_are_held_out_teach_nothing_and_all_others_everything(store, record):
    of = read(store, policy())
    learnt = [at for at, host in enumerate(record.hosts) if not held_out(host, SHARE)]
    assert 0 < len(learnt) < len(record.hosts)
    rows = torch.cat([rows for _, rows in drawn(of, 7)])
    assert sorted(rows.tolist()) == record.rows_of(learnt).tolist()
    assert of.tasks == ("tabular",)
    assert of.decisions == len(of.risks) == 6 * len(learnt)


def test_its_batches_never_end(store):
    of = read(store, policy())
    generator = torch.Generator().manual_seed(0)
    rows = [rows for _, rows in itertools.islice(of.batches(7, generator), 20)]
    assert sum(map(len, rows)) > of.decisions


def test_what_the_policy_may_never_do_is_no_example_and_all_else_is_as_recorded(store, record):
    checkpoint = policy()
    without = dataclasses.replace(checkpoint.seen, ops=frozenset(OPS) - {"GERMINATE"})
    ((world, rows),) = drawn(read(store, checkpoint), 1000)
    germinates = record.column(ACTIONS)[rows][:, 0] == LifecycleOp.GERMINATE
    assert germinates.any()
    _, whole = read(store, checkpoint).read(world, rows)
    assert whole.exemplary.all()
    assert whole.actions.equal(record.column(ACTIONS)[rows])
    result, some = read(store, dataclasses.replace(checkpoint, seen=without)).read(world, rows)
    assert some.exemplary.equal(~germinates)
    assert some.actions[~germinates].equal(whole.actions[~germinates])
    assert some.risk.equal(whole.risk)
    assert decision_loss(result, some.actions, some.exemplary).isfinite()
