"""A vector env with the spaces of the real one, random masks and rewards, and almost no cost."""

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from ray.tune.registry import register_env

from envs.action_masks import mask_size, split_mask
from envs.slots import SlotConfig

ENV_ID = "tests/MaskedToy"
SLOT_IDS = ("r0c0", "r0c1", "r0c2")
HEADS = SlotConfig(SLOT_IDS).heads
NUM_FEATURES = 121


def random_masks(rng, shape):
    """Flat masks of the world's kind: consistent rows, forced ops and single choices now and then."""
    flat = np.zeros((*shape, mask_size(HEADS)), np.int8)
    views = split_mask(flat, HEADS)
    ops = views["op"]
    ops[...] = rng.random(ops.shape) < 0.5
    ops[..., 0] = 1
    ops[rng.random(shape) < 0.2] = np.eye(len(HEADS[0].choices), dtype=np.int8)[0]
    for head in HEADS[1:]:
        choices = (rng.random(views[head.name].shape) < 0.5).astype(np.int8)
        choices[..., rng.integers(head.size)] = 1
        needed = np.isin(np.arange(ops.shape[-1]), head.needed_by) & (ops == 1)
        views[head.name][...] = choices * (needed[..., None] if head.masked_by_op else needed.any(-1)[..., None])
    return flat


class MaskedToyVectorEnv(gym.vector.VectorEnv):
    """Rewards GERMINATE; refuses an action outside its mask; resets in the step after the end."""

    def __init__(
        self, num_envs, episode_length=12, stop_probability=0.0, reward_of_op=(0, 1, 0, 0, 0, 0), truncate=False
    ):
        self.num_envs, self.truncate = num_envs, truncate
        self.episode_length, self.stop_probability = episode_length, stop_probability
        self.reward_of_op = np.asarray(reward_of_op, np.float32)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = gym.spaces.Dict(
            {
                "obs": gym.spaces.Box(-1, 2, (NUM_FEATURES,), np.float32),
                "blueprint_indices": gym.spaces.Box(-1, 12, (len(SLOT_IDS),), np.int64),
                "action_mask": gym.spaces.Box(0, 1, (mask_size(HEADS),), np.int8),
            }
        )
        self.single_action_space = gym.spaces.MultiDiscrete([head.size for head in HEADS])
        batch = gym.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, num_envs)
        self.action_space = batch(self.single_action_space, num_envs)
        self.render_mode = None

    def _observe(self):
        n = self.num_envs
        self.masks = random_masks(self.rng, (n,))
        return {
            "obs": self.rng.uniform(-1, 1, (n, NUM_FEATURES)).astype(np.float32),
            "blueprint_indices": self.rng.integers(-1, 13, (n, len(SLOT_IDS))),
            "action_mask": self.masks,
        }

    def reset(self, *, seed=None, options=None):
        self.rng = np.random.default_rng(seed)
        self.epoch = np.zeros(self.num_envs, int)
        self.done = np.zeros(self.num_envs, bool)
        return self._observe(), {}

    def _check(self, actions):
        views = split_mask(self.masks, HEADS)
        for index in np.flatnonzero(~self.done):
            op = actions[index, 0]
            for column, head in enumerate(HEADS):
                if op in head.needed_by:
                    row = views[head.name][index]
                    row = row[op] if head.masked_by_op else row
                    assert row[actions[index, column]] == 1, (head.name, op, actions[index])
                else:
                    assert actions[index, column] == 0

    def step(self, actions):
        self._check(actions)
        reward = np.where(self.done, 0, self.reward_of_op[actions[:, 0]]).astype(np.float32)
        self.epoch = np.where(self.done, 0, self.epoch + 1)
        stopped = ~self.done & (self.rng.random(self.num_envs) < self.stop_probability)
        self.done = stopped | (self.epoch >= self.episode_length)
        ends, never = self.done.copy(), np.zeros(self.num_envs, bool)
        return self._observe(), reward, *((never, ends) if self.truncate else (ends, never)), {}


def register():
    """Make the env known to Ray, which forgets it at every shutdown."""
    register_env(ENV_ID, lambda config: MaskedToyVectorEnv(**config))
