"""A question that every policy can answer, to try it with before it counts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from envs.slots import SlotConfig
from envs.vocabulary import NO_BLUEPRINT, SeedStage
from esper_ray.controller.proposals import Reply, Request
from policies.strategic.messages import SeedState, SystemState, flat_sizes

logger = logging.getLogger(__name__)

USUAL_SLOTS = SlotConfig.for_row(3)
"""Of the run in question, where a policy is for any."""
USUAL_EPOCHS = 150
TRIALS = 20
"""Questions to a policy before it counts."""
TRIAL_SECONDS = 1.0
"""For each of which an answer is waited for."""


def trial_request(slots: SlotConfig, max_epochs: int = USUAL_EPOCHS) -> Request:
    """About a run in which nothing is known.

    Args:
        slots: Of the run.
        max_epochs: Likewise.
    """
    sizes = flat_sizes(slots.num_slots, slots.internal_levels)
    packet = SystemState(
        run_id="trial",
        packet_id="0",
        timestamp_ns=0,
        declared=("run.max_epochs", "run.observation", "run.blueprint_indices", "run.action_mask"),
        epoch=0,
        max_epochs=max_epochs,
        seeds=tuple(SeedState(slot=slot, stage=SeedStage.DORMANT) for slot in slots.slot_ids),
        internal_levels=slots.internal_levels,
        observation=(0.0,) * sizes["observation"],
        blueprint_indices=(NO_BLUEPRINT,) * sizes["blueprint_indices"],
        action_mask=(1,) * sizes["action_mask"],
    )
    return Request(packet.model_dump_json().encode(), seed=0)


def try_policy(ask: Callable[[Request, float], Reply], slots: SlotConfig | None, limit_s: float) -> None:
    """Say so if a policy is slower than it may be.

    Args:
        ask: Asks it, and waits so many seconds.
        slots: That a run must have; None if any will do.
        limit_s: Within which its answers will count.
    """
    request, times = trial_request(slots or USUAL_SLOTS), []
    for _ in range(TRIALS):
        began = time.perf_counter()
        ask(request, TRIAL_SECONDS)
        times.append(time.perf_counter() - began)
    slow = sorted(times)[int(0.95 * TRIALS) - 1]
    if slow > limit_s:
        logger.warning(
            "the policy takes %.0f ms (p95 of %d trials), and may take %.0f: many decisions will be PAUSE",
            *(1e3 * slow, TRIALS, 1e3 * limit_s),
        )
