"""Controls that do not look at how the training goes: never grow, grow at random, grow by a fixed schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from envs.action_masks import split_mask
from envs.slots import SlotConfig
from envs.vocabulary import AlphaTarget, Blueprint, GerminationStyle, LifecycleOp, Tempo
from policies.bundle import Observations, PolicySettings
from policies.distribution import head_masks
from policies.registry import register
from policies.rule import Memory, RulePolicy


@register("never_grow")
class NeverGrow(RulePolicy):
    """Always WAIT: the host as it is, the baseline that growth has to beat."""

    def choices(self, observations: Observations, memory: Memory) -> tuple[Tensor, ...]:
        """WAIT."""
        return self.certain(np.full((len(observations["obs"]), len(self._heads)), LifecycleOp.WAIT, np.int64))


@register("random_valid")
class RandomValid(RulePolicy):
    """A uniform choice among the admitted ops, then among the admitted entries of every head that the op needs."""

    @property
    def supports_off_policy(self) -> bool:
        """Everything admitted is possible."""
        return True

    def choices(self, observations: Observations, memory: Memory) -> tuple[Tensor, ...]:
        """Everything that the masks admit."""
        return head_masks(torch.from_numpy(observations["action_mask"]), self._heads)


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


@register("fixed_schedule")
class FixedSchedule(RulePolicy):
    """The same growth in every host: germinate at a set epoch, advance at each gate, fossilise."""

    def __init__(self, slots: SlotConfig, max_epochs: int, plan: GrowthPlan | None = None) -> None:
        super().__init__(slots)
        self._max_epochs, self.plan = max_epochs, plan or GrowthPlan()

    @classmethod
    def build(cls, settings: PolicySettings) -> Self:
        """With the plan that was fixed by hand."""
        return cls(settings.slots, settings.max_epochs)

    def choices(self, observations: Observations, memory: Memory) -> tuple[Tensor, ...]:
        """The plan's next step."""
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
        return self.certain(np.stack(columns, axis=1))
