"""Small known tasks for the learner: what each asks for is in its docstring.

All are vector envs that reset in the step after a done one, the way RLlib wants it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.action_masks import mask_size, split_mask
from envs.vocabulary import HeadSpec

Observations = dict[str, npt.NDArray[Any]]
BoolArray = npt.NDArray[np.bool_]
StepResult = tuple[Any, npt.NDArray[np.float32], BoolArray, BoolArray, dict[str, Any]]


def single_head(name: str, choices: tuple[str, ...]) -> tuple[HeadSpec, ...]:
    """The heads of an action with one part."""
    return (HeadSpec(name, len(choices), choices, tuple(range(len(choices)))),)


class PositionsOnly(gym.vector.VectorObservationWrapper):
    """CartPole that shows the cart's position and the pole's angle but not their velocities.

    Nothing but memory tells where the pole is falling: without any, returns stay near 50 of 500.
    """

    def __init__(self, num_envs: int) -> None:
        super().__init__(gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point"))
        box = self.env.single_observation_space
        assert isinstance(box, spaces.Box)
        self.single_observation_space = spaces.Box(box.low[::2], box.high[::2])
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def observations(self, observations: Any) -> Any:
        """Every other number, float32 ``[N, 2]``."""
        return np.ascontiguousarray(observations[:, ::2])


class CartPole(VectorEnv[Any, Any, Any]):
    """:class:`PositionsOnly` in the spaces of the factored policy: one head, no mask."""

    HEADS = single_head("push", ("LEFT", "RIGHT"))

    def __init__(self, num_envs: int) -> None:
        self.env: VectorEnv[Any, Any, Any] = PositionsOnly(num_envs)
        self.num_envs, self.metadata, self.render_mode = num_envs, self.env.metadata, None
        self.single_observation_space = spaces.Dict({"obs": self.env.single_observation_space})
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = spaces.MultiDiscrete([2])
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """See Gymnasium."""
        observations, info = self.env.reset(seed=seed, options=options)
        return {"obs": observations}, info

    def step(self, actions: npt.NDArray[np.int64]) -> StepResult:
        """See Gymnasium; actions ``[N, 1]``."""
        observations, reward, terminated, truncated, info = self.env.step(actions[:, 0])
        return {"obs": observations}, reward, terminated, truncated, info


class FixedLengthEnv(VectorEnv[Any, Any, Any]):
    """N episodes of equal length side by side; a task says what they show and pay.

    Args:
        num_envs: N.
        heads: Parts of the action.
        num_features: Length of the observed vector.
        length: Steps of an episode.
    """

    def __init__(self, num_envs: int, heads: tuple[HeadSpec, ...], num_features: int, length: int) -> None:
        self.num_envs, self.heads, self.length = num_envs, heads, length
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = None
        self.single_observation_space = spaces.Dict(
            {
                "obs": spaces.Box(0.0, 1.0, (num_features,), np.float32),
                "action_mask": spaces.Box(0, 1, (mask_size(heads),), np.int8),
            }
        )
        self.single_action_space = spaces.MultiDiscrete([head.size for head in heads])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def begin(self) -> None:
        """Draw what an episode needs."""

    def observe(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
        """The vectors ``[N, num_features]`` and masks ``[N, mask_size]`` of step ``self.clock``."""
        raise NotImplementedError

    def reward(self, actions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """What actions ``[N, H]`` at step ``self.clock`` pay, ``[N]``."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start N episodes."""
        super().reset(seed=seed)
        self.clock = 0
        self.begin()
        return self._observations(), {}

    def step(self, actions: npt.NDArray[np.int64]) -> StepResult:
        """Play one step of all episodes; after the last one, start new ones whatever the actions."""
        never = np.zeros(self.num_envs, bool)
        if self.clock == self.length:
            observations, info = self.reset()
            return observations, np.zeros(self.num_envs, np.float32), never, never, info
        reward = self.reward(actions)
        self.clock += 1
        done = np.full(self.num_envs, self.clock == self.length)
        return self._observations(), reward, done, never, {}

    def _observations(self) -> Observations:
        vector, mask = self.observe()
        return {"obs": vector, "action_mask": mask}


class InvalidActions(FixedLengthEnv):
    """Name the state, among 70 actions of which 55 are invalid, anew at each of 100 steps.

    The task of sb3-contrib's ``InvalidActionEnvDiscrete``: the state is drawn uniformly and shown as one-hot vector,
    naming it pays 1, and the invalid actions are drawn uniformly from all others. Guessing among the valid ones
    yields 100 / 15.
    """

    SIZE, INVALID, LENGTH = 70, 55, 100
    HEADS = single_head("state", tuple(str(state) for state in range(SIZE)))

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, self.HEADS, self.SIZE, self.LENGTH)

    def observe(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
        """See :class:`FixedLengthEnv`."""
        rows = np.arange(self.num_envs)
        self.state = self.np_random.integers(self.SIZE, size=self.num_envs)
        order = self.np_random.random((self.num_envs, self.SIZE))
        order[rows, self.state] = np.inf
        mask = np.ones((self.num_envs, self.SIZE), np.int8)
        np.put_along_axis(mask, order.argpartition(self.INVALID, axis=1)[:, : self.INVALID], 0, axis=1)
        return np.eye(self.SIZE, dtype=np.float32)[self.state], mask

    def reward(self, actions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """See :class:`FixedLengthEnv`."""
        return (actions[:, 0] == self.state).astype(np.float32)


class Recall(FixedLengthEnv):
    """Remember two symbols, then choose which of them to name, and name it.

    Step 0 shows a symbol, step 1 another one, and step 2 a bit; the clock shows always. At these steps and at two
    blank ones after them WAIT is the only op. Then come four questions: blank as well, with the ops FIRST and SECOND
    and for each its own random choice of symbols, half of them and always the right one. Naming the symbol of the
    op's step pays 1 if the op is the one that the bit stands for, and nothing if it is the other. So the optimum is
    4, a policy that does not choose its op gets 2 at most, and guessing yields 0.5.

    What the argument has to be depends on the op drawn, and both on memory.
    """

    SYMBOLS, BLANKS, QUESTIONS = 8, 2, 4
    SHOWN = 3 + BLANKS
    LENGTH = SHOWN + QUESTIONS
    OPTIMUM = float(QUESTIONS)
    HEADS = (
        HeadSpec("op", 3, ("WAIT", "FIRST", "SECOND"), (0, 1, 2)),
        HeadSpec("symbol", SYMBOLS, tuple(str(symbol) for symbol in range(SYMBOLS)), (1, 2), masked_by_op=True),
    )

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, self.HEADS, 2 * self.SYMBOLS + 3, self.LENGTH)

    def begin(self) -> None:
        """See :class:`FixedLengthEnv`."""
        self.symbols = self.np_random.integers(self.SYMBOLS, size=(self.num_envs, 2))
        self.bit = self.np_random.integers(2, size=self.num_envs)

    def observe(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
        """See :class:`FixedLengthEnv`."""
        rows, size = np.arange(self.num_envs), self.SYMBOLS
        vector = np.zeros((self.num_envs, 2 * size + 3), np.float32)
        if self.clock < 2:
            vector[rows, self.clock * size + self.symbols[:, self.clock]] = 1
        elif self.clock == 2:
            vector[rows, 2 * size + self.bit] = 1
        vector[:, -1] = self.clock / self.length
        mask = np.zeros((self.num_envs, mask_size(self.HEADS)), np.int8)
        views = split_mask(mask, self.HEADS)
        if self.clock < self.SHOWN:
            views["op"][:, 0] = 1
        else:
            views["op"][:, 1:] = 1
            for op in (1, 2):
                order = self.np_random.random((self.num_envs, size))
                order[rows, self.symbols[:, op - 1]] = -1
                np.put_along_axis(views["symbol"][:, op], order.argsort(axis=1)[:, : size // 2], 1, axis=1)
        return vector, mask

    def reward(self, actions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """See :class:`FixedLengthEnv`."""
        which = actions[:, 0] - 1
        named = (which >= 0) & (actions[:, 1] == self.symbols[np.arange(self.num_envs), which])
        return (named & (which == self.bit)).astype(np.float32)
