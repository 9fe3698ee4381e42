"""Controls that do not look at how the training goes: never grow, grow at random, grow by a fixed schedule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.action_masks import split_mask
from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import AlphaTarget, Blueprint, GerminationStyle, LifecycleOp, Tempo
from policies.bundle import Actions, BoolArray, Observations


class NeverGrow:
    """Always WAIT: the host as it is, the baseline that growth has to beat."""

    def __init__(self, slots: SlotConfig) -> None:
        self._num_heads = len(slots.heads)

    def reset(self, num_hosts: int, seed: int) -> None:
        """See :class:`policies.bundle.Policy`."""

    def act(self, observations: Observations) -> Actions:
        """See :class:`policies.bundle.Policy`."""
        return np.full((len(observations["obs"]), self._num_heads), LifecycleOp.WAIT, np.int64)


class RandomValid:
    """A uniform choice among the admitted ops, then among the admitted entries of every head that the op needs."""

    def __init__(self, slots: SlotConfig) -> None:
        self._heads = slots.heads
        self._rng = np.random.default_rng(0)

    def reset(self, num_hosts: int, seed: int) -> None:
        """See :class:`policies.bundle.Policy`."""
        self._rng = np.random.default_rng(seed)

    def act(self, observations: Observations) -> Actions:
        """See :class:`policies.bundle.Policy`."""
        views = split_mask(observations["action_mask"], self._heads)
        hosts = np.arange(len(observations["obs"]))
        op = self._choose(views["op"] != 0)
        columns = [op]
        for head in self._heads[1:]:
            view = views[head.name][hosts, op] if head.masked_by_op else views[head.name]
            columns.append(np.where(np.isin(op, head.needed_by), self._choose(view != 0), 0))
        return np.stack(columns, axis=1)

    def _choose(self, admitted: BoolArray) -> Actions:
        """One uniform choice per row; 0 where nothing is admitted."""
        return np.where(admitted, self._rng.random(admitted.shape), -1.0).argmax(axis=1)


@dataclass(frozen=True)
class GrowthPlan:
    """What a fixed schedule grows.

    Attributes:
        slot: Index of the slot.
        blueprint: Kind of seed.
        epoch: Epoch in which it germinates.
        style: How it blends.
        tempo: How fast.
        alpha_target: How far.
    """

    slot: int = 0
    blueprint: Blueprint = Blueprint.DEPTHWISE
    epoch: int = 5
    style: GerminationStyle = GerminationStyle.LINEAR_ADD
    tempo: Tempo = Tempo.STANDARD
    alpha_target: AlphaTarget = AlphaTarget.FULL


class FixedSchedule:
    """The same growth in every host: germinate at a set epoch, advance at each gate, fossilise."""

    def __init__(self, slots: SlotConfig, max_epochs: int, plan: GrowthPlan | None = None) -> None:
        self._heads, self._layout = slots.heads, ObservationLayout(slots)
        self._max_epochs, self.plan = max_epochs, plan or GrowthPlan()

    def reset(self, num_hosts: int, seed: int) -> None:
        """See :class:`policies.bundle.Policy`."""

    def act(self, observations: Observations) -> Actions:
        """See :class:`policies.bundle.Policy`."""
        plan = self.plan
        views = split_mask(observations["action_mask"], self._heads)
        slot_mask, fits = views["slot"][:, :, plan.slot] != 0, views["blueprint"][:, plan.blueprint] != 0
        epoch = np.rint(self._layout.base(observations["obs"], "epoch") * self._max_epochs)
        germinate = slot_mask[:, LifecycleOp.GERMINATE] & fits & (epoch == plan.epoch)
        op = np.where(germinate, LifecycleOp.GERMINATE, LifecycleOp.WAIT)
        for later in (LifecycleOp.ADVANCE, LifecycleOp.FOSSILIZE):
            op = np.where(slot_mask[:, later], later, op)
        arguments = {
            "slot": plan.slot,
            "blueprint": plan.blueprint,
            "style": plan.style,
            "tempo": plan.tempo,
            "alpha_target": plan.alpha_target,
        }
        columns = [op]
        for head in self._heads[1:]:
            columns.append(np.where(np.isin(op, head.needed_by), int(arguments.get(head.name, 0)), 0))
        return np.stack(columns, axis=1)
