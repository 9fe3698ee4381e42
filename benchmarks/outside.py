"""Outside yardsticks: gromo's growth on our data at our FLOPs, and our learner on DACBench where the optimum is known.

``make outside`` creates the two virtual environments; then::

    .venv-outside/bin/python -m benchmarks.outside --json outside.json --page docs/yardsticks.md

Validation splits choose gromo's settings and ours are those that ship; each test split is read once, at the end.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from benchmarks.dacbench_env import (
    BITS,
    PORTFOLIO,
    VALUES,
    DacBenchEnv,
    FloatArray,
    chances_of,
    expected_evaluations,
    function_approximation_setup,
    improvement_chance,
    leading_ones_setup,
    optimal_bits,
    optimal_values,
)
from benchmarks.flop_budget import accuracy, static_network
from benchmarks.harness import Report, Table
from benchmarks.live import described
from benchmarks.yardstick_runs import Act, acting, local_ray, mean_return, train
from envs.tasks import make_task
from esper_ray.live.policies import SHIPPED
from esper_ray.measuring.playing import Played, Playing
from esper_ray.measuring.trained import Trained, World
from esper_ray.process import settle
from policies.learned import LEARNED

EPOCHS = 60
RIVALS = {"never_grow": "never grow", "fixed_schedule": "schedule by hand", LEARNED: "shipped policy"}
CHOSEN_AT = "fixed_schedule"
"""Whose FLOPs gromo's settings are chosen at."""
GROWN = ("task", "GFLOP as", "network", "test accuracy, % [95 %]", "parameters", "GFLOP")
CONFIGURED = ("benchmark", "policy", "result", "% of the optimum", "seeds, %")
INSTANCES = 300
"""Of DACBench's sigmoids, for training and as many for tests."""


@dataclass(frozen=True)
class Outside:
    """What is run."""

    json: Path | None = None
    """File for the results."""
    page: Path | None = None
    """Page to write the tables into."""
    tasks: tuple[str, ...] = ("digits_impaired", "mnist5k_impaired")
    """Tasks on which gromo grows; none leaves it out."""
    seeds: int = 5
    """Hosts of ours, and networks of gromo's, at each number of FLOPs."""
    grid_seeds: int = 2
    """Networks for each of gromo's settings that are tried on the validation split."""
    learner_seeds: int = 3
    """Trainings of our learner on each benchmark of DACBench; 0 leaves it out."""
    steps: int = 60_000
    """Env steps of each of these trainings."""
    dacbench_python: Path = Path(".venv-dacbench/bin/python")
    """Interpreter that finds DACBench."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        self._check()
        whole = Report("outside")
        parts = [Report(f"outside.{task}") for task in self.tasks]
        for task, part in zip(self.tasks, parts, strict=True):
            part.tables, part.headline = self._growing(task, console)
            part.notes = [GROWING_NOTE]
        if self.learner_seeds:
            rows, headline = self._configuring()
            tables = [Table("Our learner on DACBench", CONFIGURED, rows)]
            parts.append(Report("outside.dacbench", {"dacbench_percent": headline}, tables, [CONFIGURING_NOTE]))
        for part in parts:
            whole.tables += part.tables
            whole.notes += [note for note in part.notes if note not in whole.notes]
            whole.headline |= part.headline
        whole.publish(console, self.json)
        if self.page is not None:
            for part in parts:
                part.write_into(self.page)

    def _check(self) -> None:
        if self.tasks and importlib.util.find_spec("gromo") is None:
            raise SystemExit("gromo is not installed here: run make outside, then .venv-outside/bin/python")
        if self.learner_seeds and not self.dacbench_python.exists():
            raise SystemExit(
                f"no interpreter with DACBench at {self.dacbench_python}: run make outside, or give --dacbench-python"
            )

    # ------------------------------------------------------------------ growing
    def _growing(self, name: str, console: Console) -> tuple[list[Table], dict[str, object]]:
        from benchmarks.gromo_network import GRID, grown_network, hidden_widths

        task, played = make_task(name), _played(name, self.seeds)
        flops = {rival: float(np.mean(of.measures["training_flops"])) for rival, of in played.items()}
        validation, test = task.splits["validation"], task.splits["test"]
        tried, widths = {}, {}
        for setting in track(GRID, f"{name}: settings", console=console, transient=True):
            models = [grown_network(task, setting, flops[CHOSEN_AT], _grid_seed(seed))[0] for seed in self._grid]
            tried[setting] = float(np.mean([accuracy(model, validation) for model in models]))
            widths[setting] = [hidden_widths(model) for model in models]
        chosen = max(tried, key=tried.__getitem__)
        static_tried = {
            lr: float(
                np.mean(
                    [
                        accuracy(static_network(task, size, lr, flops[CHOSEN_AT], _grid_seed(seed)), validation)
                        for seed, size in zip(self._grid, widths[chosen], strict=True)
                    ]
                )
            )
            for lr in sorted({setting.lr for setting in GRID})
        }
        static_lr = max(static_tried, key=static_tried.__getitem__)
        rows: list[tuple[str, ...]] = []
        ahead = {}
        for rival in track(RIVALS, f"{name}: budgets", console=console, transient=True):
            grown = [grown_network(task, chosen, flops[rival], seed) for seed in range(self.seeds)]
            sizes = [hidden_widths(model) for model, _ in grown]
            static = [static_network(task, size, static_lr, flops[rival], seed) for seed, size in enumerate(sizes)]
            ours = played[rival].measures
            theirs = [accuracy(model, test) for model, _ in grown]
            scratch = [accuracy(model, test) for model in static]
            parameters = float(np.mean([model.number_of_parameters() for model, _ in grown]))
            spent = float(np.mean([spent for _, spent in grown]))
            mean_sizes = " and ".join(f"{size:.0f}" for size in np.mean(sizes, axis=0))
            for network, accuracies, count, cost in (
                (f"ours: {RIVALS[rival]}", ours["accuracy"], float(np.mean(ours["parameters"])), flops[rival]),
                (f"gromo, hidden layers of {mean_sizes} at the end", theirs, parameters, spent),
                ("static of gromo's final sizes", scratch, parameters, flops[rival]),
            ):
                numbers = (described(accuracies, 1), f"{count:,.0f}", f"{cost / 1e9:.2f}")
                rows.append((name, RIVALS[rival], network, *numbers))
            ahead[RIVALS[rival]] = round(float(np.mean(theirs) - np.mean(ours["accuracy"])), 2)
        grid: list[tuple[str, ...]] = [
            (name, str(setting), f"{value:.1f}", "chosen" * (setting == chosen)) for setting, value in tried.items()
        ]
        grid += [
            (name, f"static of the chosen one's sizes, rate {lr:g}", f"{value:.1f}", "chosen" * (lr == static_lr))
            for lr, value in static_tried.items()
        ]
        header = ("task", "setting", f"validation accuracy, %, mean of {self.grid_seeds}", "")
        tables = [Table(f"gromo on {name}", GROWN, rows), Table(f"gromo's settings on {name}", header, grid)]
        return tables, {f"gromo_minus_ours {name}": ahead}

    @property
    def _grid(self) -> range:
        return range(self.grid_seeds)

    # ------------------------------------------------------------------ configuring
    def _configuring(self) -> tuple[list[tuple[str, ...]], dict[str, list[float]]]:
        with local_ray():
            evaluations = [self._leading_ones(seed) for seed in range(self.learner_seeds)]
            returns = [self._function_approximation(seed) for seed in range(self.learner_seeds)]
        optimum = expected_evaluations(chances_of(optimal_bits()))
        rows = [
            _evaluated("optimal policy", [optimum], optimum),
            _evaluated("esper-ray", evaluations, optimum),
            _evaluated("static, 1 bit", [expected_evaluations(chances_of(np.zeros(BITS, np.int64)))], optimum),
            _evaluated("random", [expected_evaluations(_random_chances())], optimum),
        ]
        env = DacBenchEnv(self.dacbench_python, "function_approximation", INSTANCES, test=True)
        best = mean_return(env, optimal_values, 0)
        training = DacBenchEnv(self.dacbench_python, "function_approximation", INSTANCES)
        static = max(_pairs(), key=lambda pair: mean_return(training, _always(pair), 0))
        values = ", ".join(f"{VALUES[choice]:g}" for choice in static)
        generator = np.random.default_rng(0)
        shape = (INSTANCES, len(static))
        guessed = mean_return(env, lambda _: generator.integers(len(VALUES), size=shape), 0)
        rows += [
            _returned("optimal policy", [best], best),
            _returned("esper-ray", returns, best),
            _returned(f"static, {values}", [mean_return(env, _always(static), 0)], best),
            _returned("random", [guessed], best),
        ]
        training.close()
        env.close()
        percent = {
            "leading_ones": [round(100 * optimum / value, 1) for value in evaluations],
            "function_approximation": [round(100 * value / best, 1) for value in returns],
        }
        return rows, percent

    def _leading_ones(self, seed: int) -> float:
        """Expected evaluations of a policy that was trained with this seed, by its choice at every fitness."""
        network, _ = train(leading_ones_setup(self.dacbench_python, self.steps), seed)
        states = np.stack([np.full(BITS, BITS), np.arange(BITS)], axis=1).astype(np.float32)
        choices = acting(network, BITS, seed, deterministic=True)({"obs": states})[:, 0]
        return expected_evaluations(chances_of(choices))

    def _function_approximation(self, seed: int) -> float:
        """Mean return over the test instances of a policy that was trained with this seed."""
        network, _ = train(function_approximation_setup(self.dacbench_python, self.steps), seed)
        env = DacBenchEnv(self.dacbench_python, "function_approximation", INSTANCES, test=True)
        value = mean_return(env, acting(network, INSTANCES, seed, deterministic=True), seed)
        env.close()
        return value


GROWING_NOTE = (
    "Ours is the host of the task, a CNN that cannot mix space, for 60 epochs; gromo grows a perceptron from two "
    "hidden layers of two neurons by its tutorial's procedure, on the same images, split, batch size and batches per "
    "epoch, until it has spent the same FLOPs (products and matrix decompositions; evaluations on the validation split "
    "count for ours, and gromo makes none). Its settings, and the static network's rate, were chosen on the validation "
    "split, at the FLOPs of the schedule by hand. The networks are of different kinds, so a row says what a method "
    "and its network reach for the FLOPs, not what growing alone is worth: that is gromo beside the static network. "
    "Intervals are Student's, over hosts or seeds."
)
CONFIGURING_NOTE = (
    "LeadingOnes with 50 bits (TheoryBenchmark, RLS, portfolio 1, 2, 4, 8, 16, random start): the result is the "
    "expected number of evaluations, computed exactly from the policy's choice at every fitness, and per cent are "
    "optimum/result; any other static choice never ends. Sigmoids (FunctionApproximationBenchmark, two dimensions, "
    "three values each): the result is the mean return of 10 steps over the 300 test instances, per cent are "
    "result/optimum, and the static choice is the best of nine on the training instances. The optima are computed "
    "here: DACBench 0.5.6 has no policy for LeadingOnes, and its policy for the sigmoids raises TypeError on this "
    "benchmark's own action space."
)


def _played(name: str, hosts: int) -> dict[str, Played]:
    trained = Trained.open(SHIPPED / "images", "latest")
    env = World(task=name).of(trained.env).lasting(EPOCHS)
    return Playing(env, tuple(RIVALS), trained, None, hosts, evaluation_seed=0).play()


def _grid_seed(seed: int) -> int:
    """None that the table's networks have."""
    return 1_000 + seed


def _random_chances() -> FloatArray:
    table = [[improvement_chance(bits, fitness) for bits in PORTFOLIO] for fitness in range(BITS)]
    return np.mean(table, axis=1)


def _pairs() -> list[tuple[int, int]]:
    return [(first, second) for first in range(len(VALUES)) for second in range(len(VALUES))]


def _always(action: tuple[int, ...]) -> Act:
    return lambda observations: np.tile(action, (len(observations["obs"]), 1))


def _evaluated(policy: str, evaluations: Sequence[float], optimum: float) -> tuple[str, ...]:
    percent = [100 * optimum / value for value in evaluations]
    return ("LeadingOnes", policy, f"{np.mean(evaluations):,.0f} evaluations", *_percent(percent))


def _returned(policy: str, returns: Sequence[float], optimum: float) -> tuple[str, ...]:
    percent = [100 * value / optimum for value in returns]
    return ("sigmoids", policy, f"return {np.mean(returns):.2f}", *_percent(percent))


def _percent(percent: Sequence[float]) -> tuple[str, str]:
    each = ", ".join(f"{value:.1f}" for value in percent) if len(percent) > 1 else "–"
    return f"{np.mean(percent):.1f}", each


if __name__ == "__main__":
    settle()
    tyro.cli(Outside).run(Console())
