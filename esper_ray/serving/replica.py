"""What decides: holds the policy, and the sessions that were opened with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ray import serve

from esper_ray.process import settle
from esper_ray.serving.deciding import Decider, Episode
from esper_ray.serving.messages import Refusal
from esper_ray.serving.sessions import EndedError, FullError, Sessions
from esper_ray.serving.settings import ServiceConfig

ENDED = Refusal(410, "this session has ended (unused for too long, closed, or its replica died): open another one")


class SessionKeeper:
    """Holds sessions and decides for them, one at a time.

    Args:
        decider: Decides.
        config: Limits.
        clock: Of the sessions' expiry.
    """

    def __init__(self, decider: Decider, config: ServiceConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._decider = decider
        self._sessions: Sessions[Episode[Any]] = Sessions(config.session_seconds, config.max_sessions, clock)

    async def decide(self, episode: Episode[Any], observation: Any) -> Any:
        """The episode's next decision; updates its memory."""
        return self._decider.decide_all([(episode, observation)])[0]

    async def open(self, name: str, seed: int, greedy: bool) -> Refusal | None:
        """Start an episode under a new name."""
        try:
            self._sessions.open(name, self._decider.start(seed, greedy))
        except FullError:
            return Refusal(503, f"{len(self._sessions)} sessions are open, as many as may be: close some, or try later")
        return None

    async def act(self, name: str, step: int | None, observation: Any) -> tuple[int, Any] | Refusal:
        """The step decided and its decision; the step before it, asked for again, gets its own again."""
        try:
            episode = self._sessions.use(name)
        except EndedError:
            return ENDED
        if step is None or step == episode.step:
            if episode.latest is not None and not episode.latest.done():
                return Refusal(409, f"step {episode.step - 1} of this session is not answered yet: wait for it")
            if (refusal := self._decider.refusal(episode, observation)) is not None:
                return refusal
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

    Requests of different sessions that come together share a pass of the network, if the policy can do that.

    Args:
        decider: Decides.
        config: Limits.
    """

    def __init__(self, decider: Decider, config: ServiceConfig) -> None:
        settle()
        decider.prepare()
        super().__init__(decider, config)
        self._decide_together.set_max_batch_size(config.max_batch if decider.shares_passes else 1)
        self._decide_together.set_batch_wait_timeout_s(config.batch_wait_seconds)

    async def decide(self, episode: Episode[Any], observation: Any) -> Any:
        """See :class:`SessionKeeper`."""
        return await self._decide_together((episode, observation))

    @serve.batch  # type: ignore[untyped-decorator]  # Ray ships no types
    async def _decide_together(self, batch: list[tuple[Episode[Any], Any]]) -> list[Any]:
        return self._decider.decide_all(batch)
