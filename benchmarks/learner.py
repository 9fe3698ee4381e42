"""How fast are policy updates, and what share of a training run do they take?

Run it with::

    python -m benchmarks.learner --json learner.json
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray
import torch
import tyro
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from rich.console import Console
from torch import Tensor, nn

from benchmarks.harness import Report, Table, Watch, awaited, median_ratio, paired_seconds, require_gpu
from benchmarks.quickstart import quickstart, start_ray
from esper_ray.learning.ppo import EsperPPOConfig
from esper_ray.presets import QUICKSTART
from esper_ray.process import settle

MODULE = "default_policy"
HOSTS = QUICKSTART.run.num_env_runners * QUICKSTART.run.hosts_per_runner
EPOCHS = QUICKSTART.env.longest
STEPS = QUICKSTART.learner.num_epochs * QUICKSTART.learner.minibatches
"""Steps of the optimiser in one update."""

SETTINGS = replace(QUICKSTART.learner, lr=1e-9, kl_stop=None)
PASSES = 2
"""Over a rollout in an update on a GPU and beside it."""

NOTES = (
    "An update is everything from the runners' episodes to new weights: batch, advantages, all epochs of all "
    "minibatches. It has the quickstart preset's shape and gets a recorded rollout; the step size is near 0 and "
    "kl_stop is off, so that every round does the same work. One thread.",
    "The loop over time steps has the same weights and calls torch's own LSTM cell once per step.",
    "An iteration is one of `make train`, with its processes, after a warm-up one; checkpoints, TensorBoard and "
    "pictures are left out, which makes the learner's share look larger, not smaller. Rollouts, update and new "
    "weights (put where the runners fetch them with the next order) come one after the other: nothing overlaps.",
    "On a GPU one core makes the same updates in turns with it. More hosts' episodes are the recorded ones repeated.",
)


@dataclass(frozen=True)
class Learner:
    """Update steps per second, and the learner's share of a training iteration."""

    json: Path | None = None
    """Report to write; the tables are always printed."""
    repeats: int = 10
    """Timed updates, and timed passes of the LSTM times ten."""
    iterations: int = 3
    """Timed iterations of training."""
    device: Literal["cpu", "cuda"] = "cpu"
    """On ``cuda`` updates alone, there and on one core."""
    gpu_hosts: tuple[int, ...] = (HOSTS, 32 * HOSTS)
    """Hosts whose episodes such an update takes, multiples of the quickstart's."""
    gpu_repeats: int = 2
    """Timed updates of each of these."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        report = Report("learner", notes=list(NOTES))
        if self.device == "cuda":
            require_gpu()
            with console.status("updates on the GPU and on a core, in turns"):
                ratios, table = self._beside_core("cuda")
            report.headline |= {f"gpu_learner_ratio_n{hosts}": round(ratio, 2) for hosts, ratio in ratios.items()}
            report.tables.append(table)
        else:
            with console.status("updates on a recorded rollout"):
                report.tables.append(self._updates())
            with console.status("iterations of training"):
                share, table = self._iterations()
            report.tables.append(table)
            report.headline["learner_share"] = round(share, 3)
        report.publish(console, self.json)

    def _beside_core(self, device: str) -> tuple[dict[int, float], Table]:
        """Updates on a device over those on one CPU core, by the number of hosts, and the table of them."""
        settings = replace(SETTINGS, num_epochs=PASSES)
        configs = {
            hosts: [
                quickstart(num_env_runners=0, hosts_per_runner=hosts, learner=settings, gpus_per_learner=gpus)
                for gpus in (0, int(device == "cuda"))
            ]
            for hosts in (HOSTS, *self.gpu_hosts)
        }
        first, rollout = _recorded(configs[HOSTS][0])
        module = first.module[MODULE]
        spaces = {MODULE: (module.observation_space, module.action_space)}
        rows, ratios = [], {}
        for hosts in self.gpu_hosts:
            work = {}
            for name, config in zip(("core", "device"), configs[hosts], strict=True):
                rollouts = [_copies(rollout, hosts // HOSTS) for _ in range(1 + self.gpu_repeats)]
                update = _updating(config, config.build_learner(spaces=spaces), iter(rollouts))
                work[name] = awaited(update, device)
            seconds = paired_seconds(work, self.gpu_repeats)
            steps = {
                name: PASSES * settings.minibatches / statistics.median(values) for name, values in seconds.items()
            }
            ratios[hosts] = median_ratio(seconds["core"], seconds["device"])
            rows.append((str(hosts), *(f"{steps[name]:,.2f}" for name in work), f"{ratios[hosts]:.2f}"))
        title = f"Update steps per second ({PASSES} passes over episodes of {EPOCHS} steps)"
        return ratios, Table(title, ("hosts", "one CPU core", device, "ratio"), rows)

    def _updates(self) -> Table:
        """Updates and bare passes of the LSTM, fused and step by step."""
        config = quickstart(num_env_runners=0, hosts_per_runner=HOSTS, learner=SETTINGS)
        learner, rollout = _recorded(config)
        rollouts = iter([copy.deepcopy(rollout) for _ in range(2 * (self.repeats + 1))])
        network = learner.module[MODULE].network
        kinds: dict[str, nn.Module] = {"fused": network.lstm, "loop": LstmLoop(network.lstm)}
        x = torch.randn(HOSTS // SETTINGS.minibatches, EPOCHS + 1, network.config.feature_dim, requires_grad=True)
        state = tuple(leaf.unsqueeze(0) for leaf in network.initial_hidden(len(x)))
        torch.testing.assert_close(kinds["loop"](x, state)[0], kinds["fused"](x, state)[0])
        update = _updating(config, learner, rollouts)

        def update_with(lstm: nn.Module) -> Callable[[], None]:
            def work() -> None:
                network.lstm = lstm
                update()

            return work

        def both_ways(lstm: nn.Module) -> Callable[[], None]:
            return lambda: lstm(x, state)[0].sum().backward()

        updates = paired_seconds({name: update_with(lstm) for name, lstm in kinds.items()}, self.repeats)
        passes = paired_seconds({name: both_ways(lstm) for name, lstm in kinds.items()}, 10 * self.repeats, warmup=5)
        rows = [
            _row("update steps", updates, STEPS),
            _row("LSTM alone, forward and backward", passes, 1),
        ]
        shape = f"{len(x)} sequences of {EPOCHS + 1} steps, {network.config.hidden_dim} units"
        return Table(f"Per second ({shape})", ("", "fused LSTM", "loop over time steps", "ratio"), rows)

    def _iterations(self) -> tuple[float, Table]:
        """Share of the update in an iteration of training, and the table of it."""
        start_ray(QUICKSTART.run.num_env_runners)
        try:
            algorithm = quickstart().build_algo()
            watch = Watch()
            algorithm.learner_group.update = watch.timed("update", algorithm.learner_group.update)
            algorithm.share_weights = watch.timed("weights", algorithm.share_weights)
            train = watch.timed("iteration", algorithm.train)
            for _ in range(self.iterations + 1):
                train()
            algorithm.stop()
        finally:
            ray.shutdown()
        seconds = {name: values[-self.iterations :] for name, values in watch.seconds.items()}
        share = median_ratio(seconds["update"], seconds["iteration"])
        weights = median_ratio(seconds["weights"], seconds["iteration"])
        iteration, update = (statistics.median(seconds[name]) for name in ("iteration", "update"))
        row = (f"{iteration:.2f}", f"{update:.2f}", f"{share:.1%}", f"{weights:.1%}", f"{1.0 - share - weights:.1%}")
        title = f"An iteration of `make train` ({QUICKSTART.run.num_env_runners} runners)"
        header = ("iteration, s", "update, s", "update", "new weights to runners", "rollout and rest")
        return share, Table(title, header, [row])


def _recorded(config: EsperPPOConfig) -> tuple[Any, list[Any]]:
    """A learner, and the episodes of one rollout that was played with its weights."""
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    spaces = {MODULE: (runner.env.single_observation_space, runner.env.single_action_space)}
    learner = config.build_learner(spaces=spaces)
    runner.set_state({"rl_module": learner.get_state()["rl_module"]})
    return learner, runner.sample()


def _copies(rollout: list[Any], times: int) -> list[Any]:
    """The same episodes several times, as episodes of their own."""
    copies = [copy.deepcopy(episode) for _ in range(times) for episode in rollout]
    for index, episode in enumerate(copies):
        episode.id_ = str(index)
    return copies


def _updating(config: EsperPPOConfig, learner: Any, rollouts: Iterator[list[Any]]) -> Callable[[], None]:
    """An update at every call. RLlib's connectors write into the episodes: each gets its own, the next of these."""

    def update() -> None:
        learner.update(
            episodes=next(rollouts),
            timesteps={"num_env_steps_sampled_lifetime": 0},
            num_epochs=config.num_epochs,
            minibatch_size=config.minibatch_size,
            shuffle_batch_per_epoch=True,
        )

    return update


class LstmLoop(nn.Module):
    """An LSTM of one layer as a loop over time steps, on the weights of a fused one.

    Args:
        fused: Batch first; shares its parameters.
    """

    def __init__(self, fused: nn.LSTM) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As ``nn.LSTM``: x ``[B, T, inputs]``, state ``[1, B, units]`` twice."""
        weights = [self.fused.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h, c = state[0][0], state[1][0]
        outputs = []
        for step in x.unbind(1):
            h, c = torch.lstm_cell(step, (h, c), *weights)
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h.unsqueeze(0), c.unsqueeze(0))


def _row(name: str, seconds: dict[str, list[float]], count: int) -> tuple[str, ...]:
    rates = [f"{count / statistics.median(seconds[kind]):,.1f}" for kind in ("fused", "loop")]
    return (name, *rates, f"{median_ratio(seconds['loop'], seconds['fused']):.2f}")


if __name__ == "__main__":
    settle()
    tyro.cli(Learner).run(Console())
