"""What counterfactuals cost in an episode whose hosts all have seeds, for the env benchmark."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

import numpy as np

from envs.morphogenesis import MorphogenesisVectorEnv
from envs.vocabulary import Blueprint, GerminationStyle
from policies.player import Player
from policies.schedule import GrowthPlan, GrowthSchedule
from policies.scripted import FixedSchedule


class GrownHosts:
    """Hosts that germinate a seed in each slot as early as they may, of all blueprints and styles in turn, and keep it.

    Counterfactuals are measured in the call that evaluates the hosts as they are. They cost what such a call takes
    longer than one without them, which is made right after it and does not count as part of the step.

    Args:
        task: Name of a task.
        num_hosts: N.
        epochs: Of an episode.
    """

    def __init__(self, task: str, num_hosts: int, epochs: int) -> None:
        self.epochs = epochs
        self.env = MorphogenesisVectorEnv(num_hosts, task=task, max_epochs=epochs)
        slots, kinds, styles = self.env.task.slots, list(self.env.population.modules), list(GerminationStyle)
        self.policy = FixedSchedule(
            slots, epochs, [_grown(h, slots.num_slots, kinds, styles) for h in range(num_hosts)]
        )
        self.seconds: dict[str, float] = defaultdict(float)
        self._plainly, self._train = self.env.population.evaluate, self.env.population.train_epoch
        for name, timed in (("evaluate", self._timed_evaluate), ("train_epoch", self._timed_train)):
            setattr(self.env.population, name, timed)

    def shares(self) -> tuple[float, tuple[str, ...]]:
        """Share of an episode's steps that is counterfactuals; blended seeds per host and the cells of a row."""
        self._play()  # warms up
        self.seconds.clear()
        blended = self._play()
        step = self.seconds["step"] - self.seconds["beside"]
        parts = [self.seconds[name] / step for name in ("train", "evaluate", "counterfactuals")]
        return parts[-1], (
            f"{blended:.1f}",
            f"{1e3 * step / self.epochs:,.1f}",
            *(f"{part:.1%}" for part in parts),
        )

    def _play(self) -> float:
        """Play an episode; the mean number of blended seeds per host."""
        player = Player(self.policy, self.env.num_envs, seed=0)
        observations, _ = self.env.reset(seed=0)
        blended = []
        for _ in range(self.epochs):
            actions = player.act(observations)
            started = time.perf_counter()
            observations, *_ = self.env.step(actions)
            self.seconds["step"] += time.perf_counter() - started
            blended.append((self.env.lifecycle.alpha > 0.0).sum(axis=1).mean())
        return statistics.mean(blended)

    def _timed_train(self, *args: Any) -> Any:
        started = time.perf_counter()
        result = self._train(*args)
        self.seconds["train"] += time.perf_counter() - started
        return result

    def _timed_evaluate(self, members: Any, alpha: Any, lifecycle: Any, split: Any) -> Any:
        started = time.perf_counter()
        result = self._plainly(members, alpha, lifecycle, split)
        seconds = time.perf_counter() - started
        hosts = np.unique(members)
        if len(hosts) < len(members):
            started = time.perf_counter()
            self._plainly(hosts, lifecycle.alpha[hosts], lifecycle, split)
            plain = time.perf_counter() - started
            self.seconds["counterfactuals"] += seconds - plain
            self.seconds["beside"] += plain
            seconds = plain
        self.seconds["evaluate"] += seconds
        return result


def _grown(host: int, num_slots: int, kinds: list[Blueprint], styles: list[GerminationStyle]) -> GrowthSchedule:
    plans = (
        GrowthPlan(
            slot, kinds[(host * num_slots + slot) % len(kinds)], epoch=1, style=styles[(host + slot) % len(styles)]
        )
        for slot in range(num_slots)
    )
    return GrowthSchedule(tuple(plans))
