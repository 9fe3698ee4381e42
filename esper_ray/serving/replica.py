"""What decides: holds the policy, and the sessions that were opened with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from ray import serve

from esper_ray.process import settle
from esper_ray.serving.messages import Refusal
from esper_ray.serving.sessions import EndedError, FullError, Sessions
from esper_ray.serving.settings import ServiceConfig
from policies.bundle import Actions, Observations, PolicyBundle
from policies.distribution import FactoredDistribution
from policies.results import HiddenState

ENDED = Refusal(410, "this session has ended (unused for too long, closed, or its replica died): open another one")


@dataclass
class Episode:
    """What a session is made of.

    Attributes:
        hidden: The policy's state, leading axis 1.
        generator: Of its draws.
        greedy: Take the most probable choices instead of drawing.
        step: Decisions asked for.
        latest: The last of them; None before the first.
    """

    hidden: HiddenState
    generator: torch.Generator
    greedy: bool
    step: int = 0
    latest: asyncio.Future[Actions] | None = None

    @classmethod
    def start(cls, policy: PolicyBundle, seed: int, greedy: bool) -> Episode:
        """As :class:`policies.player.Player` starts one for a single host."""
        generator = torch.Generator(policy.device).manual_seed(seed)
        return cls(policy.initial_hidden(1), generator, greedy)


@torch.inference_mode()
def decide_all(policy: PolicyBundle, batch: list[tuple[Episode, Observations]]) -> list[Actions]:
    """One decision for each of several episodes, in one pass of the network; updates their hidden states.

    Args:
        policy: Decides.
        batch: Different episodes, each with its observation (leading axis 1).

    Returns:
        ``[num_heads]`` per episode.
    """
    episodes = [episode for episode, _ in batch]
    observations = {
        name: torch.from_numpy(np.stack([observation[name] for _, observation in batch])).to(policy.device)
        for name in batch[0][1]
    }
    # Leading axes [B, 1]: a sequence of one step per episode.
    hidden = tuple(torch.cat(states) for states in zip(*(episode.hidden for episode in episodes), strict=True))
    result = policy.forward(observations, hidden)
    actions = []
    for row, episode in enumerate(episodes):
        # Each episode draws from its own generator, so that its actions do not depend on whom it shared a pass with.
        own = slice(row, row + 1)
        both = result.distribution
        distribution = FactoredDistribution(
            tuple(table[own] for table in both.log_probs),
            tuple(mask[own] for mask in both.masks),
            both.tables,
        )
        actions.append(distribution.sample(episode.generator, episode.greedy)[0, 0].cpu().numpy())
        episode.hidden = tuple(state[own].clone() for state in result.hidden)
    return actions


class SessionKeeper:
    """Holds sessions and decides for them, one at a time.

    Args:
        policy: Decides.
        config: Limits.
        clock: Of the sessions' expiry.
    """

    def __init__(
        self, policy: PolicyBundle, config: ServiceConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._sessions: Sessions[Episode] = Sessions(config.session_seconds, config.max_sessions, clock)

    async def decide(self, episode: Episode, observation: Observations) -> Actions:
        """The episode's next action; updates its hidden state."""
        return decide_all(self._policy, [(episode, observation)])[0]

    async def open(self, name: str, seed: int, greedy: bool) -> Refusal | None:
        """Start an episode under a new name."""
        try:
            self._sessions.open(name, Episode.start(self._policy, seed, greedy))
        except FullError:
            return Refusal(503, f"{len(self._sessions)} sessions are open, as many as may be: close some, or try later")
        return None

    async def act(self, name: str, step: int | None, observation: Observations) -> tuple[int, Actions] | Refusal:
        """The step decided and its action; the step before it, asked for again, gets its own action again."""
        try:
            episode = self._sessions.use(name)
        except EndedError:
            return ENDED
        if step is None or step == episode.step:
            if episode.latest is not None and not episode.latest.done():
                return Refusal(409, f"step {episode.step - 1} of this session is not answered yet: wait for it")
            episode.latest = asyncio.ensure_future(self.decide(episode, observation))
            episode.step += 1
        elif episode.latest is None or step != episode.step - 1:
            return Refusal(409, f"this session is at step {episode.step}, the request at step {step}: open another one")
        # A client that gives up takes back its request, not the decision: the state has moved on.
        return episode.step - 1, await asyncio.shield(episode.latest)

    async def close(self, name: str) -> Refusal | None:
        """End a session."""
        try:
            self._sessions.close(name)
        except EndedError:
            return ENDED
        return None

    async def held(self) -> int:
        """Number of sessions."""
        return len(self._sessions)


class PolicyReplica(SessionKeeper):
    """Deployed once per replica, so that a session lives and dies with the process that opened it.

    Requests of different sessions that come together share a pass of the network.

    Args:
        policy: Decides.
        config: Limits.
    """

    def __init__(self, policy: PolicyBundle, config: ServiceConfig) -> None:
        settle()
        super().__init__(policy, config)
        self._decide_together.set_max_batch_size(config.max_batch)
        self._decide_together.set_batch_wait_timeout_s(config.batch_wait_seconds)

    async def decide(self, episode: Episode, observation: Observations) -> Actions:
        """See :class:`SessionKeeper`."""
        return await self._decide_together((episode, observation))

    @serve.batch  # type: ignore[untyped-decorator]  # Ray ships no types
    async def _decide_together(self, batch: list[tuple[Episode, Observations]]) -> list[Actions]:
        return decide_all(self._policy, batch)
