"""RLlib's env runner, seeded without what its own seeding drags in."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner


class _Seeded(EnvRunner):
    """Seeds the process's generators as RLlib does, but leaves torch's deterministic algorithms off.

    RLlib switches them on where torch is built without CUDA. Hosts that train on one CPU thread repeat bit for bit
    without, and the switch imports torch's compiler: 76 MB in every runner.
    """

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        unseeded = config.copy(copy_frozen=False)
        unseeded.seed = None
        super().__init__(config=unseeded, **kwargs)
        self.config.seed = config.seed
        if config.seed is not None:
            self._seed = int(config.seed) + (self.worker_index or 0)  # of the env's first reset, too
            random.seed(self._seed)
            np.random.seed(self._seed)  # noqa: NPY002 (RLlib's own code draws from it)
            torch.manual_seed(self._seed)


class HostRunner(SingleAgentEnvRunner, _Seeded):
    """RLlib's runner for vector envs; Python calls the seeding above in between its two constructors."""
