"""A question that every policy can answer, to try it with before it counts."""

from __future__ import annotations

from envs.slots import SlotConfig
from envs.vocabulary import NO_BLUEPRINT, SeedStage
from esper_ray.controller.proposals import Request
from policies.strategic.messages import SeedState, SystemState, flat_sizes

USUAL_SLOTS = SlotConfig.for_row(3)
"""Of the run in question, where a policy is for any."""


def trial_request(slots: SlotConfig | None) -> Request:
    """About a run in which nothing is known.

    Args:
        slots: That a run must have; None if any will do.
    """
    slots = slots or USUAL_SLOTS
    sizes = flat_sizes(slots.num_slots, slots.internal_levels)
    packet = SystemState(
        run_id="trial",
        packet_id="0",
        timestamp_ns=0,
        declared=("run.max_epochs", "run.observation", "run.blueprint_indices", "run.action_mask"),
        epoch=0,
        max_epochs=150,
        seeds=tuple(SeedState(slot=slot, stage=SeedStage.DORMANT) for slot in slots.slot_ids),
        internal_levels=slots.internal_levels,
        observation=(0.0,) * sizes["observation"],
        blueprint_indices=(NO_BLUEPRINT,) * sizes["blueprint_indices"],
        action_mask=(1,) * sizes["action_mask"],
    )
    return Request(packet.model_dump_json().encode(), seed=0)
