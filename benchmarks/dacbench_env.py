"""DACBench's environments as the learner wants them, what is optimal in them, and how the learner is trained there."""

from __future__ import annotations

import json
import math
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from benchmarks.yardstick_envs import Observations, StepResult, single_head
from benchmarks.yardstick_runs import Setup
from envs.vocabulary import HeadSpec
from esper_ray.config import LearnerConfig
from policies.network_config import NetworkConfig

SERVER = Path(__file__).with_name("dacbench_server.py")

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

BITS = 50
PORTFOLIO = (1, 2, 4, 8, 16)
"""Bits that RLS may flip in a step, DACBench's default."""
STEPS = 10
VALUES = (0.0, 0.5, 1.0)
"""What either sigmoid may be approximated by."""

HEADS = {
    "leading_ones": single_head("bits", tuple(str(bits) for bits in PORTFOLIO)),
    "function_approximation": tuple(
        HeadSpec(name, len(VALUES), tuple(str(value) for value in VALUES), (0, 1, 2)) for name in ("first", "second")
    ),
}


class DacBenchEnv(VectorEnv[Any, Any, Any]):
    """N environments of a benchmark of DACBench, which another process steps (see ``dacbench_server``).

    Args:
        python: Interpreter of the virtual environment that has DACBench.
        benchmark: One of :data:`HEADS`.
        num_envs: N.
        test: The benchmark's test instances and terms, in place of those for training.

    Raises:
        RuntimeError: the other process ended; what it said last stands on standard error.
    """

    def __init__(self, python: Path, benchmark: str, num_envs: int, test: bool = False) -> None:
        self.num_envs, self.render_mode = num_envs, None
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.process = subprocess.Popen([python, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        features = self._ask({"benchmark": benchmark, "envs": num_envs, "test": test})["features"]
        self.single_observation_space = spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (features,), np.float32)})
        self.single_action_space = spaces.MultiDiscrete([head.size for head in HEADS[benchmark]])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """See Gymnasium."""
        return _observed(self._ask({"reset": seed})), {}

    def step(self, actions: IntArray) -> StepResult:
        """See Gymnasium; actions ``[N, H]``. A cutoff terminates, too."""
        reply = self._ask({"actions": actions.tolist()})
        rewards, ended = np.array(reply["rewards"], np.float32), np.array(reply["ended"])
        return _observed(reply), rewards, ended, np.zeros(self.num_envs, bool), {}

    def close_extras(self, **kwargs: Any) -> None:
        """Let the other process end."""
        self.process.communicate()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process that steps DACBench ended with status {self.process.wait()}: see above")
        reply: dict[str, Any] = json.loads(line)
        return reply


def _observed(reply: dict[str, Any]) -> Observations:
    return {"obs": np.array(reply["observations"], np.float32)}


def improvement_chance(bits: int, fitness: int, length: int = BITS) -> float:
    """Chance that flipping this many bits of a string with so many leading ones gives it more of them.

    The first zero must flip and no leading one may: C(n − i − 1, k − 1) / C(n, k) (Doerr, 2019, "Analyzing randomized
    search heuristics via stochastic domination").
    """
    return math.comb(length - fitness - 1, bits - 1) / math.comb(length, bits)


def expected_evaluations(chances: FloatArray) -> float:
    """Expected evaluations of RLS on LeadingOnes from a random start, exactly.

    Args:
        chances: ``[n]`` of improving, at each number of leading ones; infinity comes of a level that is never left.

    The start is evaluated, too. Bits behind the first zero are uniformly random, so each level is met with chance ½.
    """
    with np.errstate(divide="ignore"):
        return float(1.0 + 0.5 * (1.0 / chances).sum())


def chances_of(choices: IntArray) -> FloatArray:
    """Chance of improving at each number of leading ones, of a policy that flips ``PORTFOLIO[choices]`` bits there."""
    return np.array([improvement_chance(PORTFOLIO[choice], fitness) for fitness, choice in enumerate(choices)])


def optimal_bits() -> IntArray:
    """What of the portfolio improves most likely at each number of leading ones, ``[n]``: no policy needs less time."""
    table = [[improvement_chance(bits, fitness) for bits in PORTFOLIO] for fitness in range(BITS)]
    return np.argmax(table, axis=1)


def optimal_values(observations: Observations) -> IntArray:
    """The values next to both sigmoids in the step to come, ``[N, 2]``: actions change nothing but their own reward."""
    remaining, slopes, shifts = np.split(observations["obs"][:, [0, 1, 3, 2, 4]].astype(float), [1, 3], axis=1)
    targets = 1.0 / (1.0 + np.exp(-slopes * (STEPS - remaining + 1 - shifts)))
    return np.abs(targets[..., None] - np.array(VALUES)).argmin(axis=-1)


def leading_ones_setup(python: Path, steps: int) -> Setup:
    """How the learner is trained on LeadingOnes.

    The best policy improves most likely in every single step, so rewards behind the step say nothing: γ is 0.
    """
    return Setup(
        make_env=partial(DacBenchEnv, python, "leading_ones"),
        heads=HEADS["leading_ones"],
        steps=steps,
        envs=32,
        rollout_length=128,
        network=NetworkConfig(feature_dim=64, head_dim=64, memory=False),
        learner=LearnerConfig(lr=1e-3, lr_final=0.1, gamma=0.0, num_epochs=8, entropy_final=0.0),
    )


def function_approximation_setup(python: Path, steps: int) -> Setup:
    """How the learner is trained on the sigmoids; an action pays at once and changes nothing, so γ is 0 here, too."""
    return Setup(
        make_env=partial(DacBenchEnv, python, "function_approximation"),
        heads=HEADS["function_approximation"],
        steps=steps,
        envs=60,
        rollout_length=22,
        network=NetworkConfig(feature_dim=64, head_dim=64, memory=False),
        learner=LearnerConfig(lr=1e-3, lr_final=0.1, gamma=0.0, num_epochs=8, entropy_final=0.0),
    )
