"""Steps environments of DACBench, and says over a pipe what came of it.

It runs in a virtual environment of its own: where DACBench finds torch it imports torchvision too, of which there may
be no build that fits the project's torch. So this file imports nothing of the project. Requests and replies are lines
of JSON, on standard input and output::

    {"benchmark": "leading_ones", "envs": 2, "test": false}  →  {"features": 2}
    {"reset": 7}                                             →  {"observations": [[50, 3], [50, 0]]}
    {"actions": [[0], [4]]}  →  {"observations": [...], "rewards": [1, -1], "ended": [false, false]}

An environment that ended starts anew in the step after, whatever its action, and pays nothing for that.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any


def leading_ones(position: float, test: bool) -> Any:
    """RLS on LeadingOnes with 50 bits from a random start; training ends an episode after 2,000 evaluations."""
    from dacbench.benchmarks.theory_benchmark import TheoryBenchmark

    return TheoryBenchmark({"instance_set_path": "lo_rls_50_random.csv"}).get_environment(test_env=test)


def function_approximation(position: float, test: bool) -> Any:
    """Two sigmoids at ten steps, three values each; ``position`` is the share of the instances that come later."""
    from dacbench.benchmarks.function_approximation_benchmark import FunctionApproximationBenchmark

    env = FunctionApproximationBenchmark().get_benchmark(dimension=2)
    if test:
        env.use_test_set()
    env.instance_index = round(position * len(env.instance_id_list)) - 1  # a reset goes to the next one
    return env


MAKERS: dict[str, Callable[[float, bool], Any]] = {
    "leading_ones": leading_ones,
    "function_approximation": function_approximation,
}


class Envs:
    """Environments side by side.

    Args:
        benchmark: One of :data:`MAKERS`.
        envs: How many.
        test: The benchmark's test instances and terms, in place of those for training.
    """

    def __init__(self, benchmark: str, envs: int, test: bool) -> None:
        self.envs = [MAKERS[benchmark](place / envs, test) for place in range(envs)]
        self.ended = [False] * envs

    def reset(self, seed: int | None) -> dict[str, Any]:
        """Start all anew; without a seed their random numbers go on."""
        states = [env.reset(seed=None if seed is None else seed + place)[0] for place, env in enumerate(self.envs)]
        self.ended = [False] * len(self.envs)
        return {"observations": [state.tolist() for state in states]}

    def step(self, actions: list[list[int]]) -> dict[str, Any]:
        """One step of each, or the start of its next episode."""
        states, rewards = [], []
        for place, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            if self.ended[place]:
                (state, _), reward, self.ended[place] = env.reset(), 0.0, False
            else:
                # LeadingOnes returns its two flags in the other order: an episode has ended by either.
                state, reward, one, other, _ = env.step(action[0] if len(action) == 1 else action)
                self.ended[place] = bool(one or other)
            states.append(state.tolist())
            rewards.append(float(reward))
        return {"observations": states, "rewards": rewards, "ended": self.ended}


def main() -> None:
    """Serve until the pipe is closed."""
    replies, sys.stdout = sys.stdout, sys.stderr  # DACBench prints
    warnings.simplefilter("ignore")
    order = json.loads(sys.stdin.readline())
    envs = Envs(order["benchmark"], order["envs"], order["test"])
    print(json.dumps({"features": envs.envs[0].observation_space.shape[0]}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reply = envs.step(request["actions"]) if "actions" in request else envs.reset(request["reset"])
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
