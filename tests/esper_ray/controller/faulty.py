"""A policy as a user may bring one, FILE.py:CLASS, with everything that can be wrong with one; and packets for it."""

import dataclasses
import os
import time

import torch

from envs.slots import SlotConfig
from envs.vocabulary import NO_BLUEPRINT, LifecycleOp, SeedStage
from esper_ray.controller.proposals import Request, draw_seed
from policies.scripted import NeverGrow
from policies.strategic.messages import SeedState, SystemState, flat_sizes

POLICY = f"{__file__}:Faulty"
FAULTS = (
    "none",
    "slow",
    "stuck",
    "exits",
    "raises",
    "not finite",
    "forgets numbers",
    "masked",
    "no index",
    "no tensor",
)
"""A packet's first observed number says which."""
SLOTS = SlotConfig.for_row(2)
DECLARED = ("run.max_epochs", "run.observation", "run.blueprint_indices", "run.action_mask")


class Faulty(NeverGrow):
    """Waits, and says as its value how often it was asked."""

    asked = 0

    def get_action(self, obs, hidden, generator=None, deterministic=False):
        Faulty.asked += 1
        fault = FAULTS[round(float(obs["obs"][0, 0]) * len(FAULTS))]
        if fault == "slow":
            time.sleep(0.5)
        while fault == "stuck":
            time.sleep(0.01)
        if fault == "exits":
            os._exit(3)
        if fault == "raises":
            raise RuntimeError("the policy is\nbroken")
        result = super().get_action(obs, hidden, generator, deterministic)
        changed = {"value": torch.tensor([float(Faulty.asked)])}
        if fault == "not finite":
            changed["value"] = torch.tensor([torch.nan])
        if fault == "forgets numbers":
            changed["hidden"] = (torch.tensor([[torch.inf]]),)
        if fault == "masked":
            changed["actions"] = torch.tensor([[int(LifecycleOp.GERMINATE), 1, 2, 0, 0, 0, 0, 0]])
        if fault == "no index":
            changed["actions"] = torch.full((1, 8), 99)
        if fault == "no tensor":
            changed["actions"] = None
        return dataclasses.replace(result, **changed)


def request(fault="none", packet_id="1", run_id="run", **changes):
    """A question about a run that can only wait."""
    sizes = flat_sizes(SLOTS.num_slots, False)
    packet = SystemState(
        run_id=run_id,
        packet_id=packet_id,
        timestamp_ns=0,
        declared=DECLARED,
        epoch=1,
        max_epochs=20,
        seeds=tuple(SeedState(slot=slot, stage=SeedStage.DORMANT) for slot in SLOTS.slot_ids),
        observation=(FAULTS.index(fault) / len(FAULTS), *(0.0,) * (sizes["observation"] - 1)),
        blueprint_indices=(NO_BLUEPRINT,) * sizes["blueprint_indices"],
        action_mask=(1, *(0,) * (sizes["action_mask"] - 1)),
    )
    return Request(packet.model_dump_json().encode(), draw_seed(run_id, packet_id), **changes)
