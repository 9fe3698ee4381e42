"""How fast is the population against a loop over modules, and how much of the machine does it use?

Both train the same hosts in turns, whole epochs at a time; the loop is ``benchmarks.reference``. Run it with::

    python -m benchmarks.engine --json engine.json
"""

from __future__ import annotations

import importlib.util
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.gpu_hosts import NOTE as GPU_NOTE
from benchmarks.gpu_hosts import gpu_figures
from benchmarks.harness import Report, Table, awaited, median_ratio, paired_seconds, require_gpu
from benchmarks.living_seeds import LIVING_SHARE, fresh_population
from benchmarks.operator_calls import CASES, calls_tables, count_calls
from benchmarks.reference import HostLoop
from envs.population.flops import FORWARDS_PER_TRAINING_STEP
from envs.tasks import make_task
from esper_ray.process import settle

HOSTS = {"1×1": "digits_impaired", "3×3": "digits"}
"""Kernels of the hosts → the task that has them."""

HOST_EPOCHS = 224
"""Epochs times hosts after which a cell has been timed for long enough."""

RATES = ("loop, mini-batches/s", "population, mini-batches/s", "ratio", "loop, GFLOP/s", "population, GFLOP/s")
TRAINING = ("hosts", "seeds", "N", "batch", *RATES)
EVALUATION = ("hosts", "N", "loop, ms per host", "population, ms per host", "ratio")


@dataclass(frozen=True)
class Engine:
    """Host mini-batches per second: population against loop."""

    json: Path | None = None
    """Report to write; the tables are always printed."""
    sizes: tuple[int, ...] = (1, 8, 32, 128)
    """Numbers of hosts, N; none leaves out the comparison with the loop."""
    batch_sizes: tuple[int, ...] = (32, 64)
    """Samples in a mini-batch."""
    repeats: int = 15
    """Timed epochs of each; fewer where N is large, but at least 3."""
    device: Literal["cpu", "cuda", "all"] = "all"
    """Where to train; ``all`` is the CPU and, if there is one, the GPU."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        report = Report("engine", notes=list(NOTES))
        if self.device == "cuda":
            require_gpu()
        for device in self._devices():
            measured = _Device(device, self)
            cells = [(k, s, n, b) for k in HOSTS for s in LIVING_SHARE for n in self.sizes for b in self.batch_sizes]
            for cell in track(cells, description=device.type, console=console, transient=True):
                measured.training(*cell)
            for kernels in HOSTS:
                for num_hosts in self.sizes:
                    measured.evaluation(kernels, num_hosts)
            report.tables += measured.tables() if self.sizes else []
            report.headline |= measured.headline()
            if device.type == "cpu":
                self._calls(report)
                self._jax(report)
            else:
                self._gpu(report, device)
        report.publish(console, self.json)

    def _calls(self, report: Report) -> None:
        counted = {case: count_calls(case, torch.device("cpu")) for case in CASES}
        report.tables += calls_tables(counted)
        report.headline |= {
            case.headline: round(sum(calls.per_batch.values())) for case, calls in counted.items() if case.headline
        }

    def _jax(self, report: Report) -> None:
        if importlib.util.find_spec("jax") is None:
            report.notes.append("jax_ratio_n32 is left out: JAX is not installed (the extra `bench` has it).")
            return
        from benchmarks import jax_hosts  # JAX is optional

        table, ratio = jax_hosts.jax_against_population(HOSTS, self.repeats)
        report.tables.append(table)
        report.headline["jax_ratio_n32"] = round(ratio, 2)
        report.notes.append(jax_hosts.NOTE)

    def _gpu(self, report: Report, device: torch.device) -> None:
        tables, headline = gpu_figures(HOSTS, device)
        report.tables += tables
        report.headline |= headline
        report.notes.append(GPU_NOTE)

    def _devices(self) -> list[torch.device]:
        if self.device == "all":
            return [torch.device(name) for name in ("cpu", "cuda") if name == "cpu" or torch.cuda.is_available()]
        return [torch.device(self.device)]


NOTES = (
    "A mini-batch is one host's. Both sides sum, clip and step every host and every seed by itself; the population "
    "also collects its gradient statistics. One CPU thread.",
    "Mixed seeds: 2.5 seeds with weights per host of three slots, all blueprints, TRAINING to FOSSILIZED, and ADD, "
    "MULTIPLY and GATE equally often.",
    "FLOP are those of convolutions and matrix products as the hosts' shapes give them (envs/population/flops.py), a "
    "training step as three forwards; normalisation, pooling and the optimiser count nothing. The roof is a float32 "
    "product of two square matrices.",
    "Calls are torch operators that are dispatched in training, those that only make a view left out; one of this "
    "project's own operators is one. A mini-batch's are the difference of two epochs' of 4 and 12 mini-batches.",
    "Headline figures are of batch size 32 and of the host that does worse: the lower ratio, and for "
    "single_cost_ratio (population's time over the loop's at N = 1) the higher.",
)


class _Device:
    """Everything measured on one device."""

    def __init__(self, device: torch.device, options: Engine) -> None:
        self.device, self.options = device, options
        self.roof = self._matrix_product()
        self.ratios: dict[tuple[str, str, int, int], float] = {}
        self.rows: list[tuple[str, ...]] = []
        self.evaluations: list[tuple[str, ...]] = []

    def training(self, kernels: str, seeds: str, num_hosts: int, batch_size: int) -> None:
        """Train one population and its loop in turns."""
        task = replace(make_task(HOSTS[kernels]), batch_size=batch_size)
        population, lifecycle = fresh_population(task, num_hosts, 1, self.device, LIVING_SHARE[seeds])
        loop = HostLoop(population, lifecycle)
        order, epoch = self._order(num_hosts, task.batches_per_epoch, batch_size), np.zeros(num_hosts, np.int64)
        work = {
            "population": awaited(lambda: population.train_epoch(epoch, lifecycle), self.device.type),
            "loop": awaited(lambda: loop.train_epoch(order, task.lr), self.device.type),
        }
        seconds = paired_seconds(work, self._repeats(num_hosts))
        ratio = median_ratio(seconds["loop"], seconds["population"])
        self.ratios[kernels, seeds, num_hosts, batch_size] = ratio
        batches = num_hosts * task.batches_per_epoch
        rates = {name: batches / statistics.median(values) for name, values in seconds.items()}
        forward = population.forward_flops(lifecycle).mean()
        step = FORWARDS_PER_TRAINING_STEP * batch_size * forward
        flops = {name: rate * step for name, rate in rates.items()}
        self.rows.append(
            (
                *(kernels, seeds, str(num_hosts), str(batch_size)),
                *(f"{rates[name]:,.0f}" for name in ("loop", "population")),
                f"{ratio:.2f}",
                *(f"{flops[name] / 1e9:.2f} ({flops[name] / self.roof:.1%})" for name in ("loop", "population")),
            )
        )

    def evaluation(self, kernels: str, num_hosts: int) -> None:
        """Evaluate hosts alone on the validation split, in turns."""
        task = make_task(HOSTS[kernels])
        population, lifecycle = fresh_population(task, num_hosts, 1, self.device)
        loop, members = HostLoop(population, lifecycle), np.arange(num_hosts)
        work = {
            "population": lambda: population.evaluate(members, lifecycle.alpha, lifecycle, "validation"),
            "loop": lambda: loop.evaluate("validation"),
        }
        seconds = paired_seconds(work, self._repeats(num_hosts))
        milliseconds = {name: 1e3 * statistics.median(values) / num_hosts for name, values in seconds.items()}
        ratio = median_ratio(seconds["loop"], seconds["population"])
        cells = (f"{milliseconds['loop']:.2f}", f"{milliseconds['population']:.2f}", f"{ratio:.2f}")
        self.evaluations.append((kernels, str(num_hosts), *cells))

    def tables(self) -> list[Table]:
        """Training and evaluation."""
        name, roof = self.device.type, f"{self.roof / 1e9:,.0f} GFLOP/s"
        return [
            Table(f"Training ({name}; in brackets the share of the roof, {roof})", TRAINING, self.rows),
            Table(f"Evaluation, hosts alone ({name}, validation split)", EVALUATION, self.evaluations),
        ]

    def headline(self) -> dict[str, float]:
        """What was measured of the figures that others quote: the worse of the two hosts, at batch size 32."""
        wanted = {"engine_ratio_n32_b32": ("alone", 32), "engine_ratio_mixed": ("mixed seeds", 32)}
        wanted["engine_ratio_mixed_n128"] = ("mixed seeds", 128)
        wanted["single_cost_ratio"] = ("alone", 1)
        if self.device.type == "cuda":
            wanted = {"gpu_engine_ratio_n128": ("alone", 128)}
        figures = {}
        for name, (seeds, num_hosts) in wanted.items():
            keys = [(kernels, seeds, num_hosts, 32) for kernels in HOSTS]
            if all(key in self.ratios for key in keys):
                ratio = min(self.ratios[key] for key in keys)
                figures[name] = round(1.0 / ratio if name == "single_cost_ratio" else ratio, 2)
        return figures

    def _repeats(self, num_hosts: int) -> int:
        return max(3, min(self.options.repeats, HOST_EPOCHS // num_hosts))

    def _order(self, num_hosts: int, batches: int, batch_size: int) -> Tensor:
        rng = np.random.default_rng(0)
        samples = len(make_task(HOSTS["1×1"]).splits["train"].y)
        return torch.from_numpy(rng.integers(samples, size=(num_hosts, batches, batch_size))).to(self.device)

    def _matrix_product(self) -> float:
        """FLOP/s of one large float32 product."""
        size = 8192 if self.device.type == "cuda" else 1024
        left, right = torch.randn(2, size, size, device=self.device)
        multiply = awaited(lambda: torch.mm(left, right), self.device.type)
        return 2.0 * size**3 / min(paired_seconds({"product": multiply}, 10, warmup=3)["product"])


if __name__ == "__main__":
    settle()
    tyro.cli(Engine).run(Console())
