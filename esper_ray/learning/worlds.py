"""The worlds that runners play in, as RLlib's envs: several look alike, and say which they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorObservationWrapper
from gymnasium.vector.utils import batch_space

from envs.action_masks import mask_places, mask_size
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.slots import SlotConfig
from esper_ray.cluster import runner_device
from policies.return_scale import WORLD


@dataclass(frozen=True)
class OneOfSeveral:
    """A world among those that runners take turns in, and the sizes that all of them are brought to.

    Attributes:
        number: Of the world.
        count: Of worlds.
        slots: Those of every world, or as many as any has.
        graph: Length of the longest vector that stands for a graph; None where hosts are not observed as graphs.
    """

    number: int
    count: int
    slots: SlotConfig
    graph: int | None = None


class Alike(VectorObservationWrapper):
    """A world whose observations and actions have the sizes of all, and which says which of them it is.

    Vectors of graphs have zeros behind them, and masks refuse the slots, ops and blueprints that the world lacks. What
    is admitted has the same number in both, so that actions pass as they are.

    Args:
        env: The world.
        place: Among the others.
    """

    def __init__(self, env: MorphogenesisVectorEnv, place: OneOfSeveral) -> None:
        super().__init__(env)
        own, heads = env.task.slots.heads, place.slots.heads
        assert isinstance(env.single_observation_space, spaces.Dict)
        leaves = dict(env.single_observation_space.spaces)
        if place.graph is not None:
            box = leaves["graph"]
            assert isinstance(box, spaces.Box)
            leaves["graph"] = spaces.Box(float(box.low[0]), float(box.high[0]), (place.graph,), np.float32)
        leaves["action_mask"] = spaces.Box(0, 1, (mask_size(heads),), np.int8)
        leaves[WORLD] = spaces.Box(0, place.count - 1, (1,), np.int64)
        self.single_observation_space = spaces.Dict(leaves)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.single_action_space = spaces.MultiDiscrete([head.size for head in heads])
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._size, self._mask_size = place.graph, mask_size(heads)
        self._places = mask_places(own, heads)
        self._labels = np.full((env.num_envs, 1), place.number)

    def observations(self, observations: Any) -> Any:
        """In the sizes of all, with the label beside the other leaves."""
        mask: npt.NDArray[np.int8] = np.zeros((self.num_envs, self._mask_size), np.int8)
        mask[:, self._places] = observations["action_mask"]
        alike = {**observations, "action_mask": mask, WORLD: self._labels}
        if self._size is not None:
            vectors = observations["graph"]
            alike["graph"] = np.pad(vectors, ((0, 0), (0, self._size - vectors.shape[1])))
        return alike


def make_env(env_config: dict[str, Any]) -> VectorEnv[Any, Any, Any]:
    """The env of keyword arguments; those under ``world``, if there are any, say which of several it is."""
    keywords = dict(env_config)
    place = keywords.pop(WORLD, None)
    env = MorphogenesisVectorEnv(**keywords, device=runner_device())
    return env if place is None else Alike(env, place)
