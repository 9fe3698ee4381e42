"""Somebody's own networks: what growing costs their loops, and what they gain by it.

``python -m benchmarks.live --json FILE``; the results are kept there after every model and horizon, and a run that was
cut off goes on from what its file has.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from scipy import stats

from benchmarks.harness import Report, Table, paired_seconds
from benchmarks.live_models import SETUPS, Loop
from envs.slots import SlotConfig
from envs.vocabulary import Blueprint
from esper_ray.live import Grower, grow, rebuild
from esper_ray.live.policies import Policy
from esper_ray.process import host_processes, settle
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule, NeverGrow

HORIZONS, SEEDS, HEADLINE_HORIZON = (15, 60, 150), 5, 60
WAYS = ("alone", "heuristic", "shipped policy", "committed network from scratch")
CHEAP = {
    "small CNN": Blueprint.DEPTHWISE,
    "LeNet": Blueprint.DEPTHWISE,
    "MLP": Blueprint.LORA,
    "narrow MLP": Blueprint.LORA,
    "decoder": Blueprint.LORA,
}


@dataclass(frozen=True)
class Live:
    """What is run.

    Attributes:
        json: File for the results.
        page: Page to write the tables into.
        horizons: Epochs of the trainings.
        seeds: Trainings of each kind.
        workers: Processes that train.
        pairs: Interleaved pairs of epochs for each overhead.
        costs: Whether it is measured what growing costs an epoch; that takes a quiet machine.
        trainings: Whether anything is trained to the end.
    """

    json: Path | None = None
    page: Path | None = None
    horizons: tuple[int, ...] = HORIZONS
    seeds: int = SEEDS
    workers: int = 2
    pairs: int = 40
    costs: bool = True
    trainings: bool = True

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        parts = {"live": self.costs, "live.trainings": self.trainings}
        report = Report("live", notes=[note for note, wanted in zip(NOTES, parts.values(), strict=True) if wanted])
        if self.costs:
            rows = [overheads(name, self.pairs) for name in track(SETUPS, "overheads", console=console, transient=True)]
            report.headline["idle_overhead"] = round(max(row.idle for row in rows), 4)
            report.tables.append(Table("What growing costs an epoch", OVERHEADS, [row.cells() for row in rows]))
        if self.trainings:
            report.headline |= {"grow_gain": {}, "grow_vs_scratch": {}}
            self._train(report, console)
        report.publish(console, self.json)
        if self.page is not None:
            written = [name for name, wanted in parts.items() if wanted]
            for name, table, note in zip(written, report.tables, report.notes, strict=True):
                Report(name, tables=[table], notes=[note]).write_into(self.page)

    def _train(self, report: Report, console: Console) -> None:
        report.tables.append(Table("Test accuracy, mean [95 %] over seeds, and the networks", TRAININGS, []))
        done_before = self._take_up(report)
        jobs = [
            (name, epochs, seed)
            for epochs in sorted(self.horizons)
            for name in SETUPS
            for seed in range(self.seeds)
            if (name, epochs) not in done_before
        ]
        results: dict[tuple[str, int], list[dict[str, Outcome]]] = {}
        with host_processes(self.workers) as pool:
            pending = {pool.submit(train_all, *job): job for job in jobs}
            for done in track(as_completed(pending), "trainings", len(jobs), console=console, transient=True):
                name, epochs, _ = pending[done]
                results.setdefault((name, epochs), []).append(done.result())
                if len(results[name, epochs]) == self.seeds:
                    self._add(report, name, epochs, results[name, epochs])
                    if self.json is not None:
                        kept = {"cut off": True, "headline": report.headline, "rows": report.tables[-1].rows}
                        self.json.write_text(json.dumps(kept, indent=2) + "\n")

    def _take_up(self, report: Report) -> set[tuple[str, int]]:
        """Models and horizons that a run before has ended, whose figures are taken over; its overheads are not."""
        if self.json is None or not self.json.exists():
            return set()
        kept = json.loads(self.json.read_text())
        if "cut off" not in kept:
            return set()
        report.tables[-1].rows.extend(tuple(row) for row in kept["rows"])
        for key in ("grow_gain", "grow_vs_scratch"):
            report.headline[key] |= kept["headline"][key]
        return {(name, int(epochs)) for name, epochs, *_ in kept["rows"]}

    def _add(self, report: Report, name: str, epochs: int, outcomes: list[dict[str, Outcome]]) -> None:
        for way in WAYS:
            of_way = [outcome[way] for outcome in outcomes]
            report.tables[-1].rows.append(
                (
                    name,
                    str(epochs),
                    way,
                    described([outcome.accuracy for outcome in of_way], 1),
                    f"{np.mean([outcome.parameters for outcome in of_way]):,.0f}",
                    f"{np.mean([outcome.flops for outcome in of_way]):,.0f}",
                    "; ".join(sorted({outcome.grown for outcome in of_way if outcome.grown})) or "–",
                )
            )
        if epochs == HEADLINE_HORIZON:
            for key, other in (("grow_gain", "alone"), ("grow_vs_scratch", WAYS[-1])):
                differences = [outcome["shipped policy"].accuracy - outcome[other].accuracy for outcome in outcomes]
                low, high = interval(differences)
                report.headline[key][name] = [round(low, 2), round(high, 2)]


OVERHEADS = (
    "model",
    "epoch alone, ms",
    "no seed",
    "1 seed",
    "a seed in each slot",
    "an evaluation, ms",
    "evaluations per epoch",
    "rest of end_epoch, ms",
)
TRAININGS = ("model", "epochs", "", "test accuracy, %", "parameters", "FLOPs per sample", "what was grown")
NOTES = (
    "Overheads are medians over interleaved pairs of training epochs, the model with slots (and seeds in TRAINING) "
    "against the same model without; end_epoch comes on top: its evaluations, on the user's validation data, and the "
    "rest.",
    "AdamW with a constant rate of 1e-3, batches of 32; nothing was tuned. Each seed trains the model alone, under the "
    "heuristic, under the shipped policy, and the network that the policy has committed from scratch, its seeds with "
    "it from the first epoch on. Intervals are Student's t over the seeds. The test split is read once, at the end of "
    "each training. FLOPs as torch counts them. The narrow MLP was added because the policy had lifted it on "
    "validation data; its test split had not been read.",
)


@dataclass(frozen=True)
class Overhead:
    """Of one model; shares of an epoch's time."""

    name: str
    epoch: float
    idle: float
    one: float
    each: float
    evaluation: float
    evaluations: float
    rest: float

    def cells(self) -> tuple[str, ...]:
        """Of a row."""
        shares = (f"{share:+.1%}" for share in (self.idle, self.one, self.each))
        return (
            self.name,
            f"{1e3 * self.epoch:.1f}",
            *shares,
            f"{1e3 * self.evaluation:.1f}",
            f"{self.evaluations:.2f}",
            f"{1e3 * self.rest:.1f}",
        )


def overheads(name: str, pairs: int) -> Overhead:
    """What idle slots, seeds in TRAINING and evaluations cost."""
    torch.set_num_threads(1)
    setup = SETUPS[name]
    loops = {kind: Loop(setup, seed=0) for kind in ("alone", "idle", "one", "each")}
    number = len(_grower(loops["idle"], 150, NeverGrow(SlotConfig.for_row(2))).slots)
    for kind, seeds in (("one", 1), ("each", number)):
        grower = _grower(loops[kind], 150, _planted(name, seeds, number))
        for _ in range(2 * seeds + 1):
            loops[kind].epoch()
            grower.end_epoch(1.0, 50.0)
        incubating = sum("training" in state for state in grower.decision.slots.values())
        assert incubating == seeds, f"{incubating} seeds are in TRAINING, not {seeds}"
    seconds = paired_seconds({kind: loop.epoch for kind, loop in loops.items()}, pairs, warmup=3)
    ratios = {kind: statistics.median(np.divide(times, seconds["alone"])) - 1.0 for kind, times in seconds.items()}
    evaluation, evaluations, rest = _end_of_epochs(name)
    epoch = statistics.median(seconds["alone"])
    return Overhead(name, epoch, ratios["idle"], ratios["one"], ratios["each"], evaluation, evaluations, rest)


def _planted(name: str, seeds: int, slots: int) -> FixedSchedule:
    """Seeds that stay in TRAINING."""
    plans = (GrowthPlan(slot, CHEAP[name], epoch=slot, training_epochs=1000) for slot in range(seeds))
    return FixedSchedule(SlotConfig.for_row(slots), 150, GrowthSchedule(tuple(plans)))


def _end_of_epochs(name: str) -> tuple[float, float, float]:
    """Seconds of an evaluation, evaluations per epoch, and seconds of the rest of ``end_epoch``, over a grown run."""
    loop = Loop(SETUPS[name], seed=1)
    seconds: list[float] = []

    def evaluate() -> tuple[float, float]:
        started = time.perf_counter()
        result = Loop.evaluate(loop)
        seconds.append(time.perf_counter() - started)
        return result

    slots = 2
    plans = tuple(GrowthPlan(slot, CHEAP[name], epoch=slot) for slot in range(slots))
    policy = FixedSchedule(SlotConfig.for_row(slots), 60, GrowthSchedule(plans))
    grower = _grower(loop, 60, policy, evaluate)
    seconds.clear()
    spent = 0.0
    for _ in range(60):
        loop.epoch()
        started = time.perf_counter()
        grower.end_epoch()
        spent += time.perf_counter() - started
    return statistics.median(seconds), len(seconds) / 60, (spent - sum(seconds)) / 60


def _grower(
    loop: Loop,
    epochs: int,
    policy: Policy | None,
    evaluate: Callable[[], tuple[float, float]] | None = None,
    seed: int = 0,
) -> Grower:
    return grow(
        loop.model,
        loop.optimizer,
        loop.setup.slots,
        example=loop.example,
        evaluate=evaluate or loop.evaluate,
        max_epochs=epochs,
        policy=policy,
        seed=seed,
    )


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    accuracy: float
    parameters: int
    flops: int
    grown: str = ""


def train_all(name: str, epochs: int, seed: int) -> dict[str, Outcome]:
    """One training of each kind."""
    torch.set_num_threads(1)
    setup, outcomes, card = SETUPS[name], {}, {}
    for way, policy in (("alone", "never_grow"), ("heuristic", "heuristic"), ("shipped policy", None)):
        loop = Loop(setup, seed)
        grower = _grower(loop, epochs, policy, seed=seed)
        for _ in range(epochs):
            loop.epoch()
            grower.end_epoch()
        committed = grower.commit()
        grown = ", ".join(f"{kept.seed.place.name} {kept.seed.blueprint.name.lower()}" for kept in committed.kept)
        outcomes[way], card = Outcome(loop.tested(), committed.parameters, committed.flops, grown), committed.card
    loop = Loop(setup, seed)
    rebuild(loop.model, card, seed)
    loop.renew_optimizer()
    for _ in range(epochs):
        loop.epoch()
    shipped = outcomes["shipped policy"]
    outcomes[WAYS[-1]] = Outcome(loop.tested(), shipped.parameters, shipped.flops)
    return outcomes


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of a mean; the mean itself twice where all are equal."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    margin = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - margin, mean + margin


def described(values: Sequence[float], digits: int) -> str:
    """A mean and its interval."""
    low, high = interval(values)
    return f"{np.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    settle()
    tyro.cli(Live).run(Console())
