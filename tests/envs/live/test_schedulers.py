"""Every scheduler of torch goes through births and deaths with the rates that it has without them."""

import inspect

import pytest
from torch.optim import SGD, lr_scheduler, swa_utils

from envs.vocabulary import Blueprint
from tests.envs.helpers import advance, fossilize, germinate
from tests.envs.live.loops import Loop, Script, prune

EPOCHS = 10
SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda epoch: 0.9**epoch, lambda epoch: 1.0]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, [lambda epoch: 0.9, lambda epoch: 1.0]),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 6]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=10),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, [0.01, 0.02], [0.1, 0.2], step_size_up=4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.2], total_steps=EPOCHS + 1),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, min_lr=[0.001, 0.002]),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 8)], milestones=[4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, [0.01, 0.02], anneal_epochs=5),
}
ABSTRACT = {"LRScheduler", "_LRScheduler"}
PLAN = {
    0: germinate(1, Blueprint.LORA),
    1: advance(1),
    2: germinate(0, Blueprint.NORM),
    3: advance(0),
    4: advance(1),
    6: prune(0),
    7: advance(1),
    8: fossilize(1),
}


def test_every_scheduler_that_torch_has_is_tried():
    public = {name for name in lr_scheduler.__all__ if inspect.isclass(getattr(lr_scheduler, name))}
    assert public - ABSTRACT <= SCHEDULERS.keys()


@pytest.mark.parametrize("before", [True, False], ids=["made before", "made after"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_and_momenta_are_those_of_a_twin_that_does_not_grow(name, before):
    twin, loop = _loop(), _loop()
    expected = _rates(twin, SCHEDULERS[name](twin.optimizer), None)
    scheduler = SCHEDULERS[name](loop.optimizer) if before else None
    grower = loop.grow(Script(PLAN))
    rates = _rates(loop, scheduler or SCHEDULERS[name](loop.optimizer), grower)
    assert rates == expected
    assert len({str(rate) for rate in rates}) > 1
    assert grower.slots[1] in [kept.seed.place.name for kept in grower.commit().kept]


def _loop():
    """Two groups, with a slot in each."""
    loop = Loop("mlp")
    first, *others = loop.model.children()
    rest = [parameter for module in others for parameter in module.parameters()]
    loop.optimizer = SGD([{"params": first.parameters()}, {"params": rest, "lr": 0.1}], lr=0.05, momentum=0.9)
    return loop


def _rates(loop, scheduler, grower):
    rates = []
    for _ in range(EPOCHS):
        loop.epoch()
        if grower is not None:
            decision = grower.end_epoch()
            assert not decision.note
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            scheduler.step()
        rates.append([(group["lr"], group["momentum"]) for group in loop.optimizer.param_groups])
    return rates
