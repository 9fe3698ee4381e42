"""The policies that ship with the package: they are there, small, fit for drawn horizons, and play by default."""

import pytest

from envs.live.places import KINDS
from esper_ray.keeping.export import load_export
from esper_ray.live import grow
from esper_ray.live.policies import SHIPPED, shipped_export
from tests.esper_ray.live.models import ARCHITECTURES, Loop

OF_KIND = {"image": "LeNet"}
KINDS = {name: kind for name, kind in KINDS.items() if name in OF_KIND}  # the others' policy is being trained


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_kind_of_slot_has_one(kind):
    path = shipped_export(kind)
    card, policy = load_export(path)
    assert kind.topology in card.topologies
    assert (card.env.horizons[0], card.env.horizons[-1]) == (15, 150)
    assert policy.slot_config.num_slots >= 3
    assert sum(file.stat().st_size for file in path.iterdir()) < 2_000_000
    assert card.git_commit is not None
    assert card.env.data_dir is None


def test_no_other_export_ships():
    assert set(SHIPPED.iterdir()) == {shipped_export(kind) for kind in KINDS.values()}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_it_plays_by_default(kind):
    model, data, slots = ARCHITECTURES[OF_KIND[kind.name]]
    loop = Loop(model, data)
    grower = grow(loop.model, loop.optimizer, slots, example=loop.example, evaluate=loop.evaluate, max_epochs=15)
    ops = {grower.decision.op}
    for _ in range(15):
        loop.epoch()
        ops.add(grower.end_epoch().op)
    assert len(ops) > 1, "it does nothing at all"
    report = grower.commit()
    assert report.policy == f"the shipped policy for {kind.name}s"
