"""RLlib's env runner, seeded without what its own seeding drags in, and telling the driver why it failed."""

from __future__ import annotations

import json
import random
import warnings
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

NAMESPACE = b"esper-ray"


class Failures(NamedTuple):
    """What went wrong in a runner since its last complete rollout, over its restarts."""

    in_a_row: int
    error: str


def failures(runner: str) -> Failures | None:
    """What a runner left behind, by the id of its actor, which it keeps over restarts; None if all is well."""
    # Ray's own store outlives a failed process, and RLlib ends it without a word to the driver.
    found = _internal_kv_get(runner, namespace=NAMESPACE)
    return Failures(*json.loads(found)) if found else None


def failed_start() -> str | None:
    """Why a runner of this job could not be made, if one could not; told once."""
    if not ray.is_initialized():
        return None
    key = ray.get_runtime_context().get_job_id()
    found = _internal_kv_get(key, namespace=NAMESPACE)
    if found:
        _internal_kv_del(key, namespace=NAMESPACE)
    return found.decode() if found else None


def _cause(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line: RLlib hides the env's behind an empty one of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


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

    def __init__(self, **kwargs: Any) -> None:
        try:
            super().__init__(**kwargs)
        except Exception as error:
            if ray.is_initialized():
                key = ray.get_runtime_context().get_job_id()  # that of the actor is lost with it
                _internal_kv_put(key, _cause(error).encode(), namespace=NAMESPACE)
            raise

    def play_in(self, env_config: dict[str, Any]) -> None:
        """Make another env, with other keyword arguments, if they are not those of the present one."""
        if self.config.env_config != env_config:
            self.config.env_config = env_config
            with warnings.catch_warnings():  # RLlib registers every env under one name
                warnings.filterwarnings("ignore", message=".*Overriding environment")
                self.make_env()

    def sample(self, **kwargs: Any) -> Any:
        """A rollout. Where it fails, the reason is left for the driver (see :func:`failures`)."""
        # Asking for a context would start a Ray where there is none.
        runner = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        if runner is None:  # in the driver itself
            return super().sample(**kwargs)
        before = failures(runner)
        try:
            episodes = super().sample(**kwargs)
        except Exception as error:
            now = Failures(1 + (before.in_a_row if before else 0), _cause(error))
            _internal_kv_put(runner, json.dumps(now), namespace=NAMESPACE)
            raise
        if before:
            _internal_kv_del(runner, namespace=NAMESPACE)
        return episodes
