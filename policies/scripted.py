"""Controls that do not look at how the training goes: never grow, grow at random, grow by a fixed schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.action_masks import split_mask
from envs.slots import SlotConfig
from envs.vocabulary import NO_BLUEPRINT, LifecycleOp, SeedStage
from policies.bundle import Observations, PolicySettings
from policies.registry import register
from policies.rule import Memory, RulePolicy
from policies.schedule import BY_HAND, GrowthPlan, GrowthSchedule


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
        return self._tables.masks(torch.from_numpy(observations["action_mask"]).to(self.device))


@register("fixed_schedule")
class FixedSchedule(RulePolicy):
    """Growth that does not depend on how the training goes.

    Each planned seed germinates at its epoch, or in the first one after it that admits it, advances at each gate and
    is fossilised. Where several could act, fossilising comes before advancing, advancing before germinating, and
    within these the first slot.

    Args:
        slots: Slots of the hosts.
        max_epochs: Of an episode.
        schedule: For every host, or a sequence with one per host; then the policy takes just as many hosts.

    Raises:
        ValueError: a schedule for a slot or of a blueprint that does not exist here.

    Attributes:
        max_epochs: Of an episode.
        schedules: One for every host, or one per host.
    """

    def __init__(
        self, slots: SlotConfig, max_epochs: int, schedule: GrowthSchedule | Sequence[GrowthSchedule] = BY_HAND
    ) -> None:
        super().__init__(slots)
        self.max_epochs = max_epochs
        self.schedules = (schedule,) if isinstance(schedule, GrowthSchedule) else tuple(schedule)
        self._plans = _table(self.schedules, slots)

    @classmethod
    def build(cls, settings: PolicySettings) -> Self:
        """With the schedule that was fixed by hand."""
        return cls(settings.slots, settings.max_epochs)

    def choices(self, observations: Observations, memory: Memory) -> tuple[Tensor, ...]:
        """The schedule's next step."""
        obs, plans = observations["obs"], self._plans
        if len(plans["slot"]) not in (1, len(obs)):
            raise ValueError(f"{len(plans['slot'])} schedules do not fit {len(obs)} hosts: give one per host, or one")
        views = split_mask(observations["action_mask"], self._heads)
        admitted = views["slot"] != 0
        epoch, age = (
            np.rint(values * self.max_epochs)
            for values in (self._layout.base(obs, "epoch"), self._layout.slot(obs, "epochs_in_stage"))
        )
        planned = plans["blueprint"] >= 0
        kinds = np.broadcast_to(np.maximum(plans["blueprint"], 0), age.shape)
        fits = np.take_along_axis(views["blueprint"] != 0, kinds, axis=1)
        too_young = (self._layout.stages(obs) == SeedStage.TRAINING) & (age < plans["training_epochs"])
        wants = {
            LifecycleOp.GERMINATE: fits & (epoch[:, None] >= plans["epoch"]),
            LifecycleOp.ADVANCE: ~too_young,
            LifecycleOp.FOSSILIZE: np.ones_like(fits),
        }
        op, slot = self.decide({kind: where & planned & admitted[:, kind] for kind, where in wants.items()})
        host = np.arange(len(op)) if len(plans["slot"]) > 1 else 0
        return self.certain(self.assemble(op, {name: table[host, slot] for name, table in plans.items()}))


def _table(schedules: Sequence[GrowthSchedule], slots: SlotConfig) -> dict[str, npt.NDArray[np.int64]]:
    """Each field of the plans as ``[N, S]`` by slot; the blueprint is -1 where nothing is planned."""
    shape = (len(schedules), slots.num_slots)
    table = {name.name: np.zeros(shape, np.int64) for name in fields(GrowthPlan)}
    table["slot"][:] = np.arange(slots.num_slots)
    table["blueprint"][:] = NO_BLUEPRINT
    for host, schedule in enumerate(schedules):
        for plan in schedule.plans:
            planned = f"{plan.blueprint.name} in slot {plan.slot} is planned"
            if plan.slot >= slots.num_slots:
                raise ValueError(f"{planned}, but slots are numbered from 0, and the last one is {slots.num_slots - 1}")
            if plan.blueprint not in slots.blueprints:
                kinds = ", ".join(kind.name for kind in slots.blueprints)
                raise ValueError(f"{planned}, but the kinds of seed are {kinds}")
            for name, values in table.items():
                values[host, plan.slot] = getattr(plan, name)
    return table
