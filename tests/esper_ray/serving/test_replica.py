"""What a replica holds, in this process and with a clock that the test turns."""

import asyncio

import numpy as np
import pytest

from esper_ray.keeping.export import load_export
from esper_ray.serving.deciding import ObservationDecider
from esper_ray.serving.messages import Refusal
from esper_ray.serving.replica import ENDED, SessionKeeper
from esper_ray.serving.settings import ServiceConfig
from policies.player import Player


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shown(world):
    """An observation of one host."""
    return world()[1]


@pytest.fixture
def replica(export, clock):
    config = ServiceConfig(session_seconds=10.0, max_sessions=2)
    return SessionKeeper(ObservationDecider(load_export(export)[1]), config, clock)


def test_an_expired_session_is_gone_and_one_in_use_is_kept(replica, clock, shown):
    async def play():
        assert await replica.open("a", 1, False) is None
        assert await replica.open("b", 1, False) is None
        clock.now = 9.0
        assert (await replica.act("a", None, shown))[0] == 0
        clock.now = 18.0
        assert (await replica.act("a", None, shown))[0] == 1
        assert await replica.act("b", None, shown) is ENDED
        assert await replica.held() == 1
        assert await replica.close("a") is None
        assert await replica.close("a") is ENDED

    asyncio.run(play())
    assert ENDED.status == 410


def test_no_more_sessions_are_held_than_may_be(replica, clock):
    async def play():
        for name in "ab":
            assert await replica.open(name, 1, False) is None
        refused = await replica.open("c", 1, False)
        assert isinstance(refused, Refusal)
        assert refused.status == 503
        await replica.close("a")
        assert await replica.open("c", 1, False) is None
        clock.now = 10.0
        assert await replica.open("d", 1, False) is None

    asyncio.run(play())


class Busy(SessionKeeper):
    """Decides when the test lets it."""

    async def decide(self, episode, observation):
        await self.free.wait()
        return await super().decide(episode, observation)


def test_one_session_decides_one_step_at_a_time(export, shown):
    policy = load_export(export)[1]
    replica = Busy(ObservationDecider(policy), ServiceConfig())

    async def play():
        replica.free = asyncio.Event()
        await replica.open("a", 1, False)
        first, again = (asyncio.ensure_future(replica.act("a", 0, shown)) for _ in range(2))
        await asyncio.sleep(0)
        for step in (1, None):
            early = await replica.act("a", step, shown)
            assert (early.status, early.reason) == (409, "step 0 of this session is not answered yet: wait for it")
        first.cancel()  # its client has given up; whoever asks for the same step again is answered
        await asyncio.sleep(0)
        replica.free.set()
        return [(await again)[1], (await replica.act("a", 0, shown))[1], (await replica.act("a", 1, shown))[1]]

    found = asyncio.run(play())
    player = Player(policy, 1, seed=1)
    expected = [player.act(shown)[0] for _ in range(2)]
    np.testing.assert_array_equal(found, [expected[0], *expected])


def test_episodes_that_share_a_pass_decide_as_alone(export, world):
    """Each with its own observations, draws and memory, however they are put together."""
    policy = load_export(export)[1]
    decider = ObservationDecider(policy)
    settings = [(1, False), (2, False), (1, True), (1, False)]
    together = [decider.start(*setting) for setting in settings]
    alone = [Player(policy, 1, *setting) for setting in settings]
    rng = np.random.default_rng(0)
    for _ in range(5):
        chosen = rng.permutation(4)[: rng.integers(1, 5)]
        batch, expected = [], []
        for number in chosen:
            observation = {name: leaf.copy() for name, leaf in world()[1].items()}
            observation["obs"] = rng.random(observation["obs"].shape, np.float32)
            observation["action_mask"][:] = 1
            batch.append((together[number], observation))
            expected.append(alone[number].act(observation)[0])
        np.testing.assert_array_equal(decider.decide_all(batch), expected)
