"""What a schedule can be, and how another one is found near it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from envs.blueprints import blueprints_for
from envs.tasks import Task
from envs.vocabulary import AlphaTarget, Blueprint, GerminationStyle, Tempo
from policies.schedule import GrowthPlan, GrowthSchedule

SHORTEST_GROWTH = 12
"""Epochs from a germination to its fossilisation, at the least."""

VARIED_SHARE = 0.75
"""Of the schedules that are tried once some are known: variations of the best so far. The rest is drawn at random."""


@dataclass(frozen=True)
class ScheduleSpace:
    """Everything that a schedule of a task can be.

    Attributes:
        slots: Indices of the enabled slots.
        blueprints: Kinds that the hosts offer.
        last_epoch: In which a germination can still lead to a committed seed.
        longest_training: Epochs in TRAINING.
    """

    slots: tuple[int, ...]
    blueprints: tuple[Blueprint, ...]
    last_epoch: int
    longest_training: int

    @classmethod
    def of(cls, task: Task, max_epochs: int) -> ScheduleSpace:
        """For a task's hosts."""
        slots = tuple(slot for slot, enabled in enumerate(task.slots.enabled_mask) if enabled)
        blueprints = tuple(blueprints_for(task.host.topology, task.slots.blueprints))
        return cls(slots, blueprints, max(0, max_epochs - SHORTEST_GROWTH), max_epochs // 3)

    def drawn(self, rng: np.random.Generator) -> GrowthSchedule:
        """Seeds of random kinds in random slots, at random times of which early ones are likelier."""
        count = int(rng.integers(1, len(self.slots) + 1))
        slots = rng.choice(self.slots, count, replace=False)
        return GrowthSchedule(tuple(self._plan(int(slot), rng) for slot in slots))

    def varied(self, elites: Sequence[GrowthSchedule], rng: np.random.Generator) -> GrowthSchedule:
        """One of the better schedules with one change or a few: of a plan, its absence, or another one's plan."""
        chosen = elites[int(rng.integers(len(elites), size=2).min())]  # better ones are likelier
        plans = {plan.slot: plan for plan in chosen.plans}
        for _ in range(int(rng.geometric(0.6))):
            free = [slot for slot in self.slots if slot not in plans]
            kind = rng.choice(["change", "add", "drop", "cross"], p=[0.6, 0.15, 0.1, 0.15])
            if kind == "cross":
                other = elites[int(rng.integers(len(elites)))]
                plans |= {plan.slot: plan for plan in other.plans if rng.random() < 0.5}
            elif plans and kind == "drop":
                del plans[int(rng.choice(list(plans)))]
            elif plans and kind == "change":
                plan = plans.pop(int(rng.choice(list(plans))))
                changed = self._changed(plan, free, rng)
                plans[changed.slot] = changed
            elif free:
                slot = int(rng.choice(free))
                plans[slot] = self._plan(slot, rng)
        return GrowthSchedule(tuple(plans.values()))

    def _plan(self, slot: int, rng: np.random.Generator) -> GrowthPlan:
        return GrowthPlan(
            slot,
            self.blueprints[int(rng.integers(len(self.blueprints)))],
            epoch=int((self.last_epoch + 1) * rng.random() ** 2),
            style=GerminationStyle(int(rng.integers(len(GerminationStyle)))),
            tempo=Tempo(int(rng.integers(len(Tempo)))),
            alpha_target=AlphaTarget(int(rng.integers(len(AlphaTarget)))),
            training_epochs=int(rng.integers(self.longest_training + 1)) if rng.random() < 0.5 else 0,
        )

    def _changed(self, plan: GrowthPlan, free: Sequence[int], rng: np.random.Generator) -> GrowthPlan:
        """The plan with one field drawn anew; times mostly move a little."""
        name = rng.choice([field.name for field in fields(GrowthPlan)])
        if name == "slot":
            return replace(plan, slot=int(rng.choice([plan.slot, *free])))
        limit = {"epoch": self.last_epoch, "training_epochs": self.longest_training}.get(name)
        if limit is not None and rng.random() < 0.7:
            moved = getattr(plan, name) + int(rng.choice([-1, 1]) * rng.geometric(0.25))
            return replace(plan, **{name: min(max(moved, 0), limit)})
        return replace(plan, **{name: getattr(self._plan(plan.slot, rng), name)})
