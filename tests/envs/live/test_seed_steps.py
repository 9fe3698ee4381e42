"""How the user's optimiser moves seeds: clipped one by one, scaled, and the same with a closure as without."""

import pytest
import torch
import torch.nn.functional as F

from envs.vocabulary import Blueprint
from tests.envs.helpers import advance, germinate
from tests.envs.live.loops import Loop, Script, same

PLAN = {
    0: germinate(1, Blueprint.LORA),
    1: advance(1),
    2: germinate(0, Blueprint.MLP_SMALL, style=3),
    3: advance(0),
    4: advance(1),
}
RATE = 0.05


def _grown(epochs, closure=False, optimizer=None, **settings):
    """A loop after some epochs: from 4 on one seed is blended in and the other one incubates."""
    loop = Loop("mlp", "AdamW", closure=closure, clip=True)
    if optimizer is not None:
        loop.optimizer = optimizer(loop.model.parameters())
    grower = loop.grow(Script(PLAN), **settings)
    torch.manual_seed(0)
    for _ in range(epochs):
        loop.epoch()
        assert not grower.end_epoch().note
    return loop


def test_a_closure_moves_host_and_seeds_as_a_step_without_one_does():
    states = [
        {"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}
        for loop in (_grown(7, closure=False), _grown(7, closure=True))
    ]
    assert same(*states)


def _moved(loop, scale):
    """How far a step moves each seed, and the host, the loss being multiplied by ``scale``."""
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    loop.optimizer.zero_grad()
    (scale * F.cross_entropy(loop.model(loop.x), loop.y)).backward()
    loop.optimizer.step()
    moves = {name: value - before[name] for name, value in loop.model.state_dict().items()}
    parts = {
        part: [v for k, v in moves.items() if k.startswith(part)]
        for part in ("growth.slot/0", "growth.slot/2", "0.", "2.")
    }
    return {part: float(torch.cat([value.flatten().float() for value in of]).norm()) for part, of in parts.items()}


def _sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


@pytest.mark.parametrize("lr_scale", [1.0, 0.25])
def test_each_seed_is_clipped_to_norm_1_by_itself_and_takes_its_share_of_the_step_and_the_host_takes_all(lr_scale):
    loop = _grown(5, optimizer=_sgd, lr_scale=lr_scale)
    small, large = _moved(loop, 1e-2), _moved(_grown(5, optimizer=_sgd, lr_scale=lr_scale), 1e6)
    for slot in ("growth.slot/0", "growth.slot/2"):
        assert large[slot] == pytest.approx(RATE * lr_scale, rel=1e-3)
        assert 0.0 < small[slot] < 0.1 * RATE * lr_scale
    assert large["0."] > 1e3 * small["0."]
    alone = [p.grad.norm() for p in loop.model[0].parameters()]
    assert small["0."] == pytest.approx(RATE * float(torch.stack(alone).norm()), rel=1e-2)


def test_a_seed_that_a_step_did_not_reach_is_not_measured_and_does_not_move():
    loop = _grown(5)
    before = {name: value.clone() for name, value in loop.model.state_dict().items() if name.startswith("growth")}
    loop.optimizer.zero_grad()
    loop.model[4](torch.randn(3, 8)).sum().backward()
    loop.optimizer.step()
    assert same({name: loop.model.state_dict()[name] for name in before}, before)


def test_accumulated_gradients_are_measured_once_per_step():
    whole, halves = _grown(5, optimizer=_sgd), _grown(5, optimizer=_sgd)
    F.cross_entropy(whole.model(whole.x), whole.y).backward()
    for index in torch.arange(len(halves.y)).split(12):
        (F.cross_entropy(halves.model(halves.x[index]), halves.y[index]) / 2).backward()
    for loop in (whole, halves):
        loop.optimizer.step()
        loop.optimizer.zero_grad()
    states = [loop.model.state_dict() for loop in (whole, halves)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0.0, atol=1e-6)
