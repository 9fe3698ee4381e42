"""Live hosts under commands, for the tests of whoever commands them."""

from esper_ray.controller.commands import (
    AdaptationCommand,
    Expectation,
    Kind,
    OptimizerChange,
    Reason,
    RiskReport,
    Severity,
)
from esper_ray.controller.executor import Executor
from esper_ray.controller.operations import operation_of
from tests.envs.helpers import WAIT
from tests.envs.live.loops import Loop

RUN = "the run"
NOW = 1_000_000_000


def expectation(grower, slot=None):
    """What holds now."""
    if slot is None:
        return Expectation(epoch=grower.epoch)
    at = grower.slot_names.index(slot)
    return Expectation(epoch=grower.epoch, slot=slot, seed_id=grower.seed_ids[at], stage=grower.reports()[at].stage)


def seed(grower, action=WAIT, blending=None, **changes):
    """The command to do something that was decided on what holds now."""
    what = operation_of(action, grower.slot_names, blending)
    given = {
        "run_id": RUN,
        "kind": Kind.SEED,
        "operation": what,
        "reason": Reason.POLICY,
        "issued_at_ns": NOW,
        "expects": expectation(grower, what.slot),
    }
    return AdaptationCommand(**given | changes)


def pause(grower, kind=Kind.PAUSE, **changes):
    return seed(grower, kind=kind, operation=None, reason=Reason.LOSS_DELTA, **changes)


def slower(grower, factor=0.5):
    risk = RiskReport(severity=Severity.WARNING)
    change = OptimizerChange(rate_factor=factor)
    return seed(grower, kind=Kind.OPTIMIZER, operation=None, optimizer=change, reason=Reason.LOSS_VOLATILITY, risk=risk)


class Commanded:
    """A loop whose grower does what a plan commands: epochs done → function of the grower that gives a command.

    What is decided is carried out at the same end of an epoch. All is computed in float64.
    """

    def __init__(self, network="mlp", optimizer="SGD", plan=None, loop=Loop, settings=None, **executing):
        self.plan, self.results, self.time_ns = plan or {}, [], NOW
        self.loop = loop(network, optimizer)
        self.loop.model.double()
        self.loop.x, self.loop.held_out = self.loop.x.double(), (self.loop.held_out[0].double(), self.loop.held_out[1])
        self.executor = Executor(
            RUN,
            self.results.append,
            lambda grower: self.plan[grower.epoch](grower) if grower.epoch in self.plan else None,
            time_ns=lambda: self.time_ns,
            **executing,
        )
        self.grower = self.loop.grow(None, controller=self, **settings or {})

    def attend(self, training):
        return self.executor

    def run(self, epochs):
        for _ in range(epochs):
            self.loop.epoch()
            self.grower.end_epoch()
        return self

    def state(self):
        """All that there is of the run, but for the ids of commands."""
        return {
            "model": self.loop.model.state_dict(),
            "optimizer": self.loop.optimizer.state_dict(),
            "grower": {name: part for name, part in self.grower.state_dict().items() if name != "chooser"},
        }


def commanded(plan):
    """A plan of actions, as :class:`Commanded` takes it."""
    return {epoch: lambda grower, action=action: seed(grower, action) for epoch, action in plan.items()}
