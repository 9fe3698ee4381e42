"""Episodes of a host of the greenhouse whose packets somebody decides on."""

import numpy as np

from envs.morphogenesis import MorphogenesisVectorEnv
from envs.vocabulary import SeedStage
from esper_ray.controller.proposals import Request, draw_seed
from policies.strategic.messages import SeedState, SystemState
from tests.esper_ray.controller.faulty import DECLARED


def play(propose, epochs, task="digits_impaired"):
    """The packets of an episode's first epochs, and what was proposed on each and then done.

    Args:
        propose: A proposal on a request.
        epochs: To play.
        task: Of the host.
    """
    env = MorphogenesisVectorEnv(1, task=task, max_epochs=20)
    observation, _ = env.reset(seed=3)
    packets, proposals, hidden = [], [], None
    for epoch in range(epochs):
        packet = packet_of(env, observation, epoch)
        asked = Request(packet.model_dump_json().encode(), draw_seed(packet.run_id, packet.packet_id), hidden)
        proposal = propose(asked)
        hidden = proposal.hidden
        packets.append(packet)
        proposals.append(proposal)
        observation, *_ = env.step(np.array([proposal.action]))
    return packets, proposals


def packet_of(env, observation, epoch):
    """What a flat policy reads of an env's only host, as a packet."""
    return SystemState(
        run_id="run",
        packet_id=str(epoch),
        timestamp_ns=0,
        declared=DECLARED,
        epoch=epoch,
        max_epochs=env.max_epochs,
        seeds=tuple(SeedState(slot=slot, stage=SeedStage.DORMANT) for slot in env.task.slots.slot_ids),
        observation=tuple(observation["obs"][0].tolist()),
        blueprint_indices=tuple(observation["blueprint_indices"][0].tolist()),
        action_mask=tuple(observation["action_mask"][0].tolist()),
    )
