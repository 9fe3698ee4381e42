"""Keys of the model are its own while no seed lives, and its state dict alone says what it computes."""

import io

import numpy as np
import pytest
import torch

from envs.live.errors import LiveError
from envs.vocabulary import Blueprint
from tests.envs.helpers import advance, fossilize, germinate, grow_inside
from tests.envs.live.loops import NETWORKS, Eager, Loop, Script, prune, same

NORMS = {0: germinate(1, Blueprint.NORM), 1: advance(1), 3: prune(1)}
LADDER = {0: germinate(1, Blueprint.CONV_LADDER, style=3), 1: advance(1), 2: grow_inside(1), 4: advance(1)}
LADDER |= {7: advance(1), 8: fossilize(1)}


def _loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("network", NETWORKS)
def test_without_a_seed_the_keys_are_the_models_own_and_old_checkpoints_load(network):
    old = Loop(network)
    old.epoch()
    checkpoint = _loaded(old.model.state_dict())
    loop = Loop(network)
    keys = list(loop.model.state_dict())
    grower = loop.grow(Script(NORMS))
    for epoch in range(8):
        assert (list(loop.model.state_dict()) == keys) == (epoch not in (1, 2)), epoch
        loop.epoch()
        grower.end_epoch()
    loop.model.load_state_dict(checkpoint, strict=True)
    assert same(_loaded(loop.model.state_dict()), checkpoint)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_state_dict_alone_makes_a_fresh_model_of_the_same_slots_compute_the_same(network):
    loop = Loop(network)
    grower = loop.grow(Eager(5, internal_levels=network != "mlp"))
    grown = set()
    for _ in range(14):
        loop.epoch()
        grower.end_epoch()
        other = Loop(network, seed=1)
        other.grow(Script({}))
        other.model.load_state_dict(_loaded(loop.model.state_dict()), strict=True)
        for training in (False, True):
            outputs = []
            for model in (loop.model, other.model):
                torch.manual_seed(0)
                outputs.append(model.train(training)(loop.x).detach())
            assert same(*outputs)
        assert same(other.model.state_dict(), loop.model.state_dict())
        grown.add(frozenset(name for name in loop.model.state_dict() if name.startswith("growth.")))
    assert len(grown) > 1


def test_a_seed_that_incubates_is_in_the_state_dict_and_not_among_the_parameters():
    loop = Loop("cnn")
    grower = loop.grow(Script(LADDER, internal_levels=True))
    own = len(list(loop.model.parameters()))
    for epoch in range(8):
        stage = grower.decision.slots["4"]
        state = [name for name in loop.model.state_dict() if name.startswith("growth.slot/4.conv")]
        shown = len(list(loop.model.parameters())) - own
        assert bool(state) == bool(stage and "germinated" not in stage), epoch
        assert bool(shown) == (epoch >= 4), epoch
        loop.epoch()
        grower.end_epoch()


def test_a_state_with_other_seeds_is_refused_at_the_epochs_end_until_the_growers_is_loaded():
    loop = Loop("cnn", "AdamW")
    grower = loop.grow(Script(LADDER, internal_levels=True))
    loop.epoch()
    grower.end_epoch()
    early = _loaded(
        {"grower": grower.state_dict(), "model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}
    )
    loop.epoch()
    grower.end_epoch()
    loop.model.load_state_dict(early["model"])
    loop.epoch()
    before = grower.epoch
    for call in (grower.end_epoch, grower.commit):
        with pytest.raises(LiveError, match=r"'4' is not the one that grew in this run.*grower"):
            call()
    assert grower.epoch == before
    grower.load_state_dict(early["grower"])
    loop.model.load_state_dict(early["model"])
    loop.optimizer.load_state_dict(early["optimizer"])
    loop.epoch()
    grower.end_epoch()
    assert len(loop.model.state_dict()) == len(early["model"]) + 5


def test_a_grower_refuses_a_state_whose_seeds_do_not_fit_and_stays_as_it_is():
    loop = Loop("cnn", "AdamW")
    grower = loop.grow(Script(LADDER, internal_levels=True))
    for _ in range(5):
        loop.epoch()
        grower.end_epoch()
    state = _loaded(grower.state_dict())
    before = _loaded({"grower": state, "model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()})
    edited = _loaded(grower.state_dict())
    edited["host"]["order"] = edited["host"]["order"][1:]
    edited["watch"]["steps"]["epoch"] += 1
    with pytest.raises(LiveError, match="does not fit"):
        grower.load_state_dict(edited)
    after = {"grower": grower.state_dict(), "model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}
    assert same(_loaded(after), before)
    loop.epoch()
    grower.end_epoch()
    assert np.isfinite(loop.evaluate()[0])
