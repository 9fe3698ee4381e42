"""RLlib's env runner, seeded without what its own seeding drags in, and telling the driver why it failed."""

from __future__ import annotations

import gc
import json
import warnings
from typing import Any, NamedTuple

import ray
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from esper_ray.ray_internals import SeededRunner, discard, store, stored


class Failures(NamedTuple):
    """What went wrong in a runner since its last complete rollout, over its restarts."""

    in_a_row: int
    error: str


def failures(runner: str) -> Failures | None:
    """What a runner left behind, by the id of its actor, which it keeps over restarts; None if all is well."""
    # Ray's own store outlives a failed process, and RLlib ends it without a word to the driver.
    found = stored(runner)
    return Failures(*json.loads(found)) if found else None


def failed_start() -> str | None:
    """Why a runner of this job could not be made, if one could not; told once."""
    if not ray.is_initialized():
        return None
    key = ray.get_runtime_context().get_job_id()
    found = stored(key)
    if found:
        discard(key)
    return found


def _cause(error: BaseException) -> str:
    """What lies at the bottom of an error, in one line: RLlib hides the env's behind an empty one of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class HostRunner(SeededRunner, SingleAgentEnvRunner):
    """RLlib's runner for vector envs."""

    def __init__(self, **kwargs: Any) -> None:
        try:
            super().__init__(**kwargs)
        except Exception as error:
            if ray.is_initialized():
                key = ray.get_runtime_context().get_job_id()  # that of the actor is lost with it
                store(key, _cause(error))
            raise

    def play_in(self, env_config: dict[str, Any]) -> None:
        """Make another env, with other keyword arguments, if they are not those of the present one."""
        if self.config.env_config != env_config:
            self.config.env_config = env_config
            with warnings.catch_warnings():  # RLlib registers every env under one name
                warnings.filterwarnings("ignore", message=".*Overriding environment")
                self.make_env()
            # The former one has reference cycles, few objects and much memory: hundreds would wait to be collected.
            gc.collect()

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
            store(runner, json.dumps(now))
            raise
        if before:
            discard(runner)
        return episodes
