"""A policy as a user may bring one, FILE.py:CLASS, that does whatever is admitted; and packets that admit one thing."""

import numpy as np

from envs.action_masks import mask_size, split_mask
from envs.slots import SlotConfig
from envs.vocabulary import HEADS_NEEDED, NO_BLUEPRINT, Blueprint, LifecycleOp, SeedStage
from policies.rule import RulePolicy
from policies.strategic.measured import BLUEPRINT_NAMES
from policies.strategic.messages import SeedState, SystemState, flat_sizes
from tests.esper_ray.controller.faulty import DECLARED

POLICY = f"{__file__}:Wanting"
SLOTS = SlotConfig.for_row(2)
LIVING = (LifecycleOp.ADVANCE, LifecycleOp.FOSSILIZE, LifecycleOp.PRUNE)
"""Ops that a seed is needed for."""


class Wanting(RulePolicy):
    """Takes the last op that is admitted, and the first admitted choice of each head that it needs."""

    @classmethod
    def build(cls, settings):
        return cls(settings.slots)

    def choices(self, observations, memory):
        return self.certain(np.array([self._wanted(row) for row in observations["action_mask"]]))

    def _wanted(self, mask):
        views = split_mask(mask, self._heads)
        op = int(np.flatnonzero(views["op"])[-1])
        rows = [views[head.name][op] if head.masked_by_op else views[head.name] for head in self._heads[1:]]
        return [op, *(int(row.argmax()) for row in rows)]


def wanted(op, epoch=1, run_id="run", blueprint="depthwise", **fields):
    """A packet whose mask admits, beside WAIT, nothing but an op in the first slot."""
    mask, kind = np.zeros(mask_size(SLOTS.heads), np.int8), Blueprint(BLUEPRINT_NAMES.index(blueprint))
    views = split_mask(mask, SLOTS.heads)
    views["op"][[LifecycleOp.WAIT, op]] = 1
    for head in SLOTS.heads[1:]:
        if head.name in HEADS_NEEDED[op]:
            choice = {"slot": 0, "blueprint": kind}.get(head.name, 1)
            (views[head.name][op] if head.masked_by_op else views[head.name])[choice] = 1
    empty, lives = SeedState(slot="r0c0", stage=SeedStage.DORMANT), op in LIVING
    seed = SeedState(slot="r0c0", stage=SeedStage.HOLDING, blueprint=blueprint, seed_id="it") if lives else empty
    sizes = flat_sizes(SLOTS.num_slots, False)
    given = {
        "run_id": run_id,
        "packet_id": str(epoch),
        "timestamp_ns": 0,
        "epoch": epoch,
        "max_epochs": 1000,
        "seeds": (seed, empty.model_copy(update={"slot": "r0c1"})),
        "observation": (0.0,) * sizes["observation"],
        "blueprint_indices": (int(kind) if lives else NO_BLUEPRINT, NO_BLUEPRINT),
        "action_mask": tuple(mask.tolist()),
    } | fields
    more = (f"metrics.{name}" for name in given.get("metrics", ()))
    own = {"seeds.blueprint", "seeds.seed_id", "run.validation_loss", "run.budgets", *more}
    return SystemState(**{"declared": tuple(sorted({*DECLARED, *own}))} | given)
