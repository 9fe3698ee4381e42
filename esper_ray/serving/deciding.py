"""Policies of both kinds as a replica has them: many episodes, each with its own memory and its own draws."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from esper_ray.serving.messages import Refusal
from esper_ray.serving.packets import said
from policies.bundle import Actions, Observations, PolicyBundle
from policies.distribution import FactoredDistribution
from policies.results import HiddenState
from policies.strategic.checkpoint import Checkpoint
from policies.strategic.inference import StrategicPolicy, StrategicRun
from policies.strategic.messages import SystemState

MemoryT = TypeVar("MemoryT")


@dataclass
class Episode(Generic[MemoryT]):
    """What a session is made of.

    Attributes:
        memory: The policy's.
        generator: Of its draws.
        greedy: Take the most probable choices instead of drawing.
        step: Decisions asked for.
        latest: The last of them; None before the first.
    """

    memory: MemoryT
    generator: torch.Generator
    greedy: bool
    step: int = 0
    latest: asyncio.Future[Any] | None = None


class Decider(Protocol):
    """A policy that plays many episodes."""

    @property
    def shares_passes(self) -> bool:
        """Whether decisions of several episodes cost less together."""
        ...

    def prepare(self) -> None:
        """Make what the deciding process needs of its own, so that its first decision need not wait for it."""
        ...

    def start(self, seed: int, greedy: bool) -> Episode[Any]:
        """A new episode."""
        ...

    def refusal(self, episode: Episode[Any], observation: Any) -> Refusal | None:
        """Why what was sent is nothing that this episode can go on with; None if it is."""
        ...

    def decide_all(self, batch: list[tuple[Episode[Any], Any]]) -> list[Any]:
        """One decision for each of several different episodes; updates their memories."""
        ...


class ObservationDecider:
    """A policy that reads Obs V3, whose memory is a hidden state (see :class:`Decider` for the methods).

    Args:
        policy: Decides.
    """

    shares_passes = True

    def __init__(self, policy: PolicyBundle) -> None:
        self._policy = policy

    def prepare(self) -> None:
        """It is ready."""

    def start(self, seed: int, greedy: bool) -> Episode[HiddenState]:
        """As :class:`policies.player.Player` starts one for a single host."""
        generator = torch.Generator(self._policy.device).manual_seed(seed)
        return Episode(self._policy.initial_hidden(1), generator, greedy)

    def refusal(self, episode: Episode[HiddenState], observation: Observations) -> None:
        """Any observation of a host may follow any other."""

    @torch.inference_mode()
    def decide_all(self, batch: list[tuple[Episode[HiddenState], Observations]]) -> list[Actions]:
        """In one pass of the network, of observations with leading axis 1: ``[num_heads]`` per episode."""
        episodes = [episode for episode, _ in batch]
        observations = {
            name: torch.from_numpy(np.stack([observation[name] for _, observation in batch])).to(self._policy.device)
            for name in batch[0][1]
        }
        # Leading axes [B, 1]: a sequence of one step per episode.
        hidden = tuple(torch.cat(states) for states in zip(*(episode.memory for episode in episodes), strict=True))
        result = self._policy.forward(observations, hidden)
        actions = []
        for row, episode in enumerate(episodes):
            # Each episode draws from its own generator, so that its actions do not depend on whom it shared a pass
            # with.
            own = slice(row, row + 1)
            both = result.distribution
            distribution = FactoredDistribution(
                tuple(table[own] for table in both.log_probs),
                tuple(mask[own] for mask in both.masks),
                both.tables,
            )
            actions.append(distribution.sample(episode.generator, episode.greedy)[0, 0].cpu().numpy())
            episode.memory = tuple(state[own].clone() for state in result.hidden)
        return actions


class PacketDecider:
    """A policy that reads packets, whose memory is the run that they are of (see :class:`Decider` for the methods).

    Packets of different hosts are graphs of different shapes, so that each is read by itself.

    Args:
        checkpoint: The policy.
        device: Where its network computes.
        reduced_precision: As of :class:`policies.strategic.inference.StrategicPolicy`.
    """

    shares_passes = False

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", reduced_precision: bool = False) -> None:
        self._checkpoint, self._device, self._reduced_precision = checkpoint, device, reduced_precision

    @cached_property
    def _policy(self) -> StrategicPolicy:
        # Of the process that decides: neither what is on a device nor what is compiled can be sent to it.
        return StrategicPolicy(self._checkpoint, self._device, reduced_precision=self._reduced_precision)

    def prepare(self) -> None:
        """Put the network on its device, and have it compiled there."""
        _ = self._policy

    def start(self, seed: int, greedy: bool) -> Episode[StrategicRun | None]:
        """The first packet says which run it is of."""
        return Episode(None, torch.Generator().manual_seed(seed), greedy)

    def refusal(self, episode: Episode[StrategicRun | None], observation: SystemState) -> Refusal | None:
        """Why a packet cannot be the episode's next one."""
        run = episode.memory
        if run is None or run.run_id == observation.run_id:
            return None
        return Refusal(
            422,
            f"packet.run_id is {observation.run_id!r}, and this session reads the run {run.run_id!r}: open another "
            "session for another run",
        )

    def decide_all(self, batch: list[tuple[Episode[StrategicRun | None], SystemState]]) -> list[dict[str, Any]]:
        """What :func:`said` has of each packet; with the draw the decision stands, and moves the run's scale."""
        return [self._decide(episode, packet) for episode, packet in batch]

    def _decide(self, episode: Episode[StrategicRun | None], packet: SystemState) -> dict[str, Any]:
        run = episode.memory or self._policy.open_run(packet.run_id)
        reading = run.read(packet)
        action = reading.result.distribution.sample(episode.generator, episode.greedy)[0].numpy()
        run.commit()
        episode.memory = run
        return said(packet, reading, action, self._checkpoint.return_scale)
