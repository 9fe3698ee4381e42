"""The policies that ship with the package: they are there, small, fit for drawn horizons, and play by default."""

import warnings

import pytest

from envs.live.places import IMAGE, KINDS
from envs.tasks import make_task
from esper_ray.keeping.export import load_export
from esper_ray.keeping.strategic_policy import load_strategic
from esper_ray.live import grow
from esper_ray.live.policies import SHIPPED, shipped_policy
from esper_ray.measuring.trained import Trained
from tests.esper_ray.live.models import ARCHITECTURES, Loop

OF_KIND = {"image": "LeNet", "sequence": "TransformerEncoder", "vector": "LSTM, its last state"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_kind_of_slot_has_one(kind):
    path = shipped_policy(kind)
    assert kind.topology in {make_task(name).host.topology for name in Trained.open(path, "latest").tasks}
    assert sum(file.stat().st_size for file in path.iterdir()) < 2_000_000


def test_that_for_images_is_an_export():
    card, policy = load_export(shipped_policy(IMAGE))
    assert (card.env.horizons[0], card.env.horizons[-1]) == (15, 150)
    assert policy.slot_config.num_slots >= 3
    assert card.git_commit is not None
    assert card.env.data_dir is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind != IMAGE], ids=lambda kind: kind.name)
def test_that_for_the_others_has_learnt_by_imitation(kind):
    checkpoint = load_strategic(shipped_policy(kind))
    assert (checkpoint.min_epochs, checkpoint.max_epochs) == (15, 150)
    assert checkpoint.taught.risk
    assert checkpoint.commit is not None


def test_nothing_else_ships():
    assert set(SHIPPED.iterdir()) == {shipped_policy(kind) for kind in KINDS.values()}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_it_plays_by_default(kind):
    model, data, slots = ARCHITECTURES[OF_KIND[kind.name]]
    loop = Loop(model, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        grower = grow(loop.model, loop.optimizer, slots, example=loop.example, evaluate=loop.evaluate, max_epochs=15)
    decisions = [grower.decision]
    for _ in range(15):
        loop.epoch()
        decisions.append(grower.end_epoch())
    assert not any("not possible" in decision.note or "not measured" in decision.note for decision in decisions)
    assert kind != IMAGE or len({decision.op for decision in decisions}) > 1, "it does nothing at all"
    assert grower.commit().policy == f"the shipped policy for {kind.name}s"
