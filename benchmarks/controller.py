"""What a controller costs the training that it decides beside, and whether faults reach it.

Run it with::

    python -m benchmarks.controller --json controller.json --page docs/operating.md

Every controller here is a real one, with its worker and its records on disk. ``evaluate_epoch`` and ``evaluate_step``
are what a trainer waits for, from the packet to the command; packets are those of a host of digits and of a model of
128 layers, as a probe measures them. What is written and sent of decisions is ``benchmarks/controller_trust.py``'s:
``--no-deciding`` measures nothing else, ``--no-trust`` all but that.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks.controller_trust import Attackable, TrustCounts, trust
from benchmarks.faults import planned
from benchmarks.faulty_run import FaultyRun, faulty_run
from benchmarks.harness import Report, Table, median_ratio, paired_seconds
from benchmarks.live_models import SETUPS, Loop, Setup
from benchmarks.packets import LAYERS, deep_packets, digits_packets
from benchmarks.strategic import fresh_checkpoint
from envs.live.task_host import TaskLoop
from envs.tasks import make_task
from esper_ray.controller.breakers import BreakerConfig
from esper_ray.controller.commands import AdaptationCommand
from esper_ray.controller.evaluation import ControllerConfig
from esper_ray.controller.service import Controller
from esper_ray.controller.updates.making import update_of
from esper_ray.live import Grower, grow
from esper_ray.live.policies import SHIPPED
from esper_ray.process import settle
from policies.strategic.messages import SystemState
from policies.strategic.network_config import SMALL, GraphNetworkConfig

STALL_SECONDS = 0.25
"""A decision that returns later stalls its trainer."""
BETWEEN_SECONDS = 0.02
"""From one decision to the next, so that each finds the disk at rest, as an epoch's does."""
WARM_UPS = 20
PERCENTILES = ("p50", "p95", "p99")
ALWAYS_ASKED = ControllerConfig(breakers=BreakerConfig(failures=10**6))
"""What is timed is a decision with the policy in it, also where the policy is often late."""
NO_DEADLINES = replace(ALWAYS_ASKED, inference_ms=1e5, evaluate_ms=1e5, return_ms=1e5)
CALLS = {"evaluate_epoch": ALWAYS_ASKED, "evaluate_step": ALWAYS_ASKED, "evaluate_epoch, no deadlines": NO_DEADLINES}


NOTES = (
    "Decisions are timed from the packet to the command, with the policy in its worker and a commit to disk each, "
    "20 ms apart and with the policy's breaker kept shut; heard are those in which the policy's answer came in time "
    "(a step does not ask it).",
    "Trainers are timed with all that an epoch's end does: once under a policy that waits, once under a controller "
    "with the shipped policy that only observes, so that the same host is trained in both. Ratios are medians over "
    "interleaved pairs. What is added within an epoch is the probe's hook, some tenths of a millisecond a step: of the "
    "small CNN's steps of a millisecond that is much, of the wide one's little.",
    "A takeover lasts from SIGKILL to the first command for which the policy was heard.",
    "In the trainings with faults each fault of benchmarks/faults.py is to strike once, at epochs drawn by the seed; "
    "one of the policy that was not even asked, because of the faults before, is not counted. Epochs take 5 s on the "
    "controller's clocks. A stall is a decision that returns later than 250 ms; promises are what "
    "benchmarks/faulty_run.py checks of every decision and of what is on record of it.",
)


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    json: Path | None = None
    """File to write the report to."""
    page: Path | None = None
    """Page to write the tables into."""
    repeats: int = 500
    """Decisions of each kind that are timed."""
    pairs: int = 20
    """Pairs of epochs of at least a second, with the controller and without."""
    takeovers: int = 5
    """Workers that are killed, with a standby and without each."""
    epochs: int = 150
    """Of the trainings with faults."""
    seeds: int = 2
    """Of these trainings: so many, from 0 on."""
    deciding: bool = True
    """Measure all of the above."""
    trust: bool = True
    """Measure what is written and sent of decisions, and attack it."""
    counts: TrustCounts = field(default_factory=TrustCounts)
    """How much of that."""

    def run(self, console: Console) -> None:
        """Measure, print, write."""
        settle()
        torch.manual_seed(0)
        logging.getLogger("esper_ray").setLevel(logging.CRITICAL)  # what goes wrong here is meant to
        report, parts = Report("controller"), list[Callable[[Report, Path], None]]()
        if self.deciding:
            report.notes += NOTES
            parts += (self._decisions, self._trainers, self._takeovers, self._faults)
        apart = Report("controller.trust")
        with tempfile.TemporaryDirectory() as directory:
            for number, part in enumerate(track(parts, "parts", console=console, transient=True)):
                (place := Path(directory) / str(number)).mkdir()
                part(report, place)
            if self.trust:
                (place := Path(directory) / "trust").mkdir()
                with console.status("writing, sending and attacking"):
                    apart = trust(place, self.counts, digits_packets(), attackable(place))
        if self.page is not None:  # two parts, so that one can be measured anew without the other
            for one in (report, apart):
                if one.tables:
                    one.write_into(self.page)
        report.headline |= apart.headline
        report.tables += apart.tables
        report.notes += apart.notes
        report.publish(console, self.json)

    def _decisions(self, report: Report, place: Path) -> None:
        """How long a trainer waits for a command."""
        (place / "graph").mkdir()
        fresh_checkpoint(GraphNetworkConfig()).save(place / "graph")
        policies = {"lstm": SHIPPED / "images", "graph": place / "graph"}
        packets = {"digits": digits_packets(), f"{LAYERS} layers": deep_packets()}
        rows: list[tuple[str, ...]] = []
        for (name, policy), (call, config) in itertools.product(policies.items(), CALLS.items()):
            with Controller(policy, place / f"{name}, {call}", config=config) as controller:
                decide = controller.evaluate_step if call == "evaluate_step" else controller.evaluate_epoch
                for of, seen in packets.items():
                    found = _waited(decide, seen, self.repeats)
                    rows.append((call, name, of, *(f"{value:.1f}" for value in found.milliseconds), found.heard))
        report.tables.append(
            Table("Decisions", ("call", "policy", "packets", "p50, ms", "p95, ms", "p99, ms", "heard"), rows)
        )
        for what, name, of, *times in rows:
            if what == "evaluate_epoch":
                key = f"{what}_{name}" + ("" if of == "digits" else f"_{LAYERS}_layers")
                report.headline |= {f"{key}_{p}_ms": float(ms) for p, ms in zip(PERCENTILES, times[:3], strict=True)}
        report.headline["evaluate_step_p95_ms"] = max(float(row[4]) for row in rows if row[0] == "evaluate_step")

    def _trainers(self, report: Report, place: Path) -> None:
        """What it costs who trains."""
        with Controller(SHIPPED / "images", place / "state", config=ALWAYS_ASKED, observe=True) as controller:
            wide, small = (
                paired_seconds(_epochs(setup, controller, self.pairs + 2), self.pairs, warmup=2)
                for setup in (WIDE, SETUPS["small CNN"])
            )
            digits = paired_seconds(_digits_epochs(controller, 10 * self.pairs + 2), 10 * self.pairs, warmup=2)
        rows: list[tuple[str, ...]] = []
        for name, seconds in (("wide CNN", wide), ("small CNN", small), ("digits_impaired", digits)):
            added = 1e3 * statistics.median(np.subtract(seconds["controller"], seconds["policy"]))
            ratio = median_ratio(seconds["controller"], seconds["policy"])
            rows.append((name, f"{1e3 * statistics.median(seconds['policy']):.1f}", f"{added:.1f}", f"{ratio:.4f}"))
        report.tables.append(
            Table("Epochs with a controller", ("host", "epoch without, ms", "added, ms", "ratio"), rows)
        )
        report.headline["trainer_slowdown"] = float(rows[0][-1])
        report.headline["added_ms_digits"] = float(rows[-1][2])

    def _takeovers(self, report: Report, place: Path) -> None:
        """How long nobody decides after a worker's death."""
        packets, rows = digits_packets(), list[tuple[str, ...]]()
        for standby in (False, True):
            config = replace(ALWAYS_ASKED, standby=standby)
            with Controller(SHIPPED / "images", place / f"state {standby}", config=config) as controller:
                seconds = [_takeover(controller, packets, at, standby) for at in range(self.takeovers)]
            name = "with a standby" if standby else "without"
            rows.append((name, *(f"{1e3 * of(seconds):,.0f}" for of in (min, statistics.median, max))))
            report.headline[f"takeover_ms{'_standby' if standby else ''}"] = round(1e3 * statistics.median(seconds))
        report.tables.append(
            Table("From a worker's death to the next answer", ("", "least, ms", "median", "most"), rows)
        )

    def _faults(self, report: Report, place: Path) -> None:
        """Whether anything of what goes wrong reaches the trainer."""
        runs, rows = list[FaultyRun](), list[tuple[str, ...]]()
        for seed in range(self.seeds):
            (own := place / str(seed)).mkdir()
            run = faulty_run(own, seed, self.epochs, planned(seed, self.epochs))
            runs.append(run)
            slowest = 1e3 * max(one.seconds for one in run.told)
            counts = (len(run.struck), len(run.exceptions), len(run.broken), run.stalls(STALL_SECONDS))
            paused = sum(one.is_pause for one in run.told)
            shares = (f"{paused} of {len(run.told)}", f"{run.accuracy:.1f}", f"{run.never_grown:.1f}")
            rows.append((str(seed), *map(str, counts), f"{slowest:.0f}", *shares))
            report.notes += [f"Seed {seed}: {line}" for line in (*run.exceptions, *run.broken)]
        header = ("seed", "faults", "exceptions", "broken promises", "stalls", "slowest, ms", "paused")
        report.tables.append(Table("Trainings with faults", (*header, "accuracy, %", "never-grow's, %"), rows))
        report.headline |= {
            "faults_injected": sum(len(run.struck) for run in runs),
            "trainer_exceptions": sum(len(run.exceptions) for run in runs),
            "stalls": sum(run.stalls(STALL_SECONDS) for run in runs),
            "broken_promises": sum(len(run.broken) for run in runs),
            "accuracy_above_never_grow": round(min(run.accuracy - run.never_grown for run in runs), 2),
        }


# ---------------------------------------------------------------------- decisions
@dataclass(frozen=True)
class Waited:
    """For a command: percentiles, and the share in which the policy was heard."""

    milliseconds: tuple[float, ...]
    heard: str


def _waited(decide: Callable[[SystemState], AdaptationCommand], packets: Sequence[SystemState], repeats: int) -> Waited:
    seconds, heard = [], 0
    for at in range(WARM_UPS + repeats):
        packet = _again(packets, at)
        time.sleep(BETWEEN_SECONDS)
        began = time.perf_counter()
        command = decide(packet)
        if at >= WARM_UPS:
            seconds.append(time.perf_counter() - began)
            heard += command.policy is not None
    return Waited(tuple(1e3 * np.percentile(seconds, (50, 95, 99))), f"{heard / repeats:.1%}")


def _again(packets: Sequence[SystemState], at: int) -> SystemState:
    """One packet after another, in one run after another."""
    return packets[at % len(packets)].model_copy(update={"run_id": f"run {at // len(packets)}"})


# ---------------------------------------------------------------------- trainers
def _wide_cnn() -> nn.Module:
    """Three convolutions of 64 channels, whose steps take some ten milliseconds."""
    body: list[nn.Module] = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        body += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


WIDE = Setup("digits", _wide_cnn, ("0", "2", "4"))


def _epochs(setup: Setup, controller: Controller, epochs: int) -> dict[str, Callable[[], None]]:
    """Epochs of at least a second, without the controller and with it."""
    loops = {name: Loop(setup, seed=0) for name in ("policy", "controller")}
    began = time.perf_counter()
    loops["policy"].epoch()
    loops["controller"].epoch()
    passes = math.ceil(2.0 / (time.perf_counter() - began)) + 1

    def epoch(name: str, grower: Grower) -> None:
        for _ in range(passes):
            loops[name].epoch()
        grower.end_epoch()

    return {
        name: partial(
            epoch, name, _attended(loop, loop.setup.slots, controller if name == "controller" else None, epochs)
        )
        for name, loop in loops.items()
    }


def _digits_epochs(controller: Controller, epochs: int) -> dict[str, Callable[[], None]]:
    """Epochs of some ten milliseconds likewise."""
    loops = {name: TaskLoop(make_task("digits_impaired"), epochs, seed=0) for name in ("policy", "controller")}

    def epoch(name: str, grower: Grower) -> None:
        loss = loops[name].epoch()
        grower.end_epoch(training_loss=loss, samples=loops[name].samples)

    return {
        name: partial(epoch, name, _attended(loop, "segments.*", controller if name == "controller" else None, epochs))
        for name, loop in loops.items()
    }


def _attended(loop: Loop | TaskLoop, slots: Sequence[str] | str, controller: Controller | None, epochs: int) -> Grower:
    return grow(
        loop.model,
        loop.optimizer,
        slots,
        example=loop.example,
        evaluate=loop.evaluate,
        max_epochs=max(epochs, 12),
        policy="never_grow" if controller is None else None,
        controller=controller,
    )


# ---------------------------------------------------------------------- trust
def attackable(place: Path) -> Attackable:
    """A graph policy that takes updates, and two of these."""
    directories = [place / f"policy {number}" for number in range(2)]
    for directory in directories:
        directory.mkdir()
        fresh_checkpoint(SMALL).save(directory)
    updates = tuple(update_of(directory, number) for number, directory in enumerate(directories, 1))
    return Attackable(str(directories[0]), updates, NO_DEADLINES)


# ---------------------------------------------------------------------- takeovers
def _takeover(controller: Controller, packets: Sequence[SystemState], number: int, standby: bool) -> float:
    """Seconds from the death of the worker that answers to the next answer."""
    while len(controller.workers) < 1 + standby:
        time.sleep(0.1)
    packet = packets[number].model_copy(update={"run_id": f"run {number}"})
    controller.evaluate_epoch(packet)
    began = time.perf_counter()
    os.kill(controller.workers[0], signal.SIGKILL)
    while controller.evaluate_epoch(packet).policy is None:
        time.sleep(0.005)
    return time.perf_counter() - began


if __name__ == "__main__":
    tyro.cli(Benchmark).run(Console())
