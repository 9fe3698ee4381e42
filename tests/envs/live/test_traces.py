"""Growing measures a host without a trace: statistics, modes, gradients, weights and all randomness stay."""

import copy
import random

import numpy as np
import pytest
import torch

from esper_ray.live import LiveError
from policies.bundle import PolicySettings
from policies.factory import build_policy
from tests.envs.live.loops import NETWORKS, Eager, Loop, same


def _randomness():
    return {
        "torch": torch.get_rng_state(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
        "python": list(random.getstate()),
    }


def _trace(loop):
    """All of a loop that nobody but the loop itself may change."""
    model = loop.model
    return copy.deepcopy(
        {
            "host": loop.own_state(),
            "modes": {name: module.training for name, module in model.named_modules() if "growth" not in name},
            "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
            "grad_enabled": torch.is_grad_enabled(),
            **_randomness(),
        }
    )


class Restless(Loop):
    """Its evaluation draws from every source of chance, and looks for itself that it runs in evaluation."""

    fails = False

    def evaluate(self):
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in self.model.modules())
        loss, accuracy = super().evaluate()
        if self.fails:
            raise RuntimeError("out of data")
        return loss, accuracy


@pytest.mark.parametrize("network", NETWORKS)
def test_growing_leaves_no_trace(network):
    loop = Restless(network, "AdamW")
    loop.epoch()
    _mix_modes(loop)
    before = _trace(loop)
    grower = loop.grow(Eager(2))
    assert same(_trace(loop), before)
    for epoch in range(12):
        loop.epoch()
        _mix_modes(loop)
        before = _trace(loop)
        loop.fails = epoch == 5
        if loop.fails:
            with pytest.raises(LiveError, match="out of data"):
                grower.end_epoch()
            loop.fails = False
            assert _same_host(_trace(loop), before)
        grower.end_epoch()
        assert _same_host(_trace(loop), before), epoch
    before = _trace(loop)
    grower.commit()
    assert _same_host(_trace(loop), before)


def _mix_modes(loop):
    """A loop that keeps a part of its model in evaluation, as a frozen batch norm is."""
    loop.model.train()
    next(iter(loop.model.children())).eval()


def _same_host(left, right):
    """Seeds may come and go; of those that stay the gradients too stay."""
    both = left["gradients"].keys() & right["gradients"].keys()
    assert {name for name in left["gradients"].keys() ^ right["gradients"].keys() if "growth" not in name} == set()
    gradients = [{name: side["gradients"][name] for name in both} for side in (left, right)]
    return same(*({**side, "gradients": None} for side in (left, right))) and same(*gradients)


def test_a_learned_policy_draws_from_its_own_randomness():
    loop = Loop("mlp")
    policy = build_policy("learned", PolicySettings(Eager(0).slot_config, 40))
    before = _randomness()
    grower = loop.grow(policy)
    for _ in range(3):
        grower.end_epoch()
    assert same(_randomness(), before)


@pytest.mark.parametrize("network", ["cnn", "mlp"], ids=["the LSTM ships", "a graph policy ships"])
@pytest.mark.parametrize("policy", [None, "learned", "heuristic", "random_valid"])
def test_beginning_draws_nothing_of_the_users(policy, network):
    """A network draws initial weights before it has those that it is read with; nor does a refusal."""
    loop = Loop(network)
    policy = build_policy("learned", PolicySettings(Eager(0).slot_config, 40)) if policy == "learned" else policy
    before = _randomness()
    with pytest.raises(LiveError):
        loop.grow(policy, parameter_budget=-1)
    assert same(_randomness(), before)
    loop.grow(policy)
    assert same(_randomness(), before)
