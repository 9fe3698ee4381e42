"""The level that a dashboard shows of a run: how bad it is by its numbers and by its signals, without flicker."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from envs.ranges import Positive, Share, check_numbers
from esper_ray.controller.commands import Severity
from esper_ray.controller.signals import Situation
from esper_ray.controller.thresholds import Thresholds
from esper_ray.errors import UserError
from policies.strategic.packet_values import ByName, Message, Natural

WINDOWS = 3
"""In a row that must be above a level before it rises."""
UPPER_BOUNDS = (0.2, 0.4, 0.6, 0.8)
"""Combined scores below which each level but the last is."""


class Level(IntEnum):
    """How bad a run is."""

    GREEN = 0
    YELLOW = 1
    ORANGE = 2
    RED = 3
    CRITICAL = 4


OF_SEVERITY = {
    Severity.DEBUG: Level.GREEN,
    Severity.INFO: Level.GREEN,
    Severity.WARNING: Level.YELLOW,
    Severity.HIGH: Level.RED,
    Severity.CRITICAL: Level.CRITICAL,
}
"""Level that a signal's severity alone makes."""


@dataclass(frozen=True)
class LevelConfig:
    """What the combined score is made of: each part is 0 up to its base and 1 from its emergency on."""

    gradient_base: Positive = 5.0
    """Norm of the gradient."""
    gradient_emergency: Positive = 20.0
    """The same."""
    memory_base: Share = Thresholds.process_memory_slows
    """Memory of the process as a share of what it may have."""
    memory_emergency: Share = Thresholds.process_memory_pauses
    """The same."""
    latency_ms_base: Positive = 100.0
    """Largest latency that the controller adds, milliseconds."""
    latency_ms_emergency: Positive = 500.0
    """The same."""
    stability_base: Positive = 0.10
    """Volatility of the training loss."""
    stability_emergency: Positive = 0.50
    """The same."""

    def __post_init__(self) -> None:
        check_numbers(self, UserError)
        for part in ("gradient", "memory", "latency_ms", "stability"):
            base, emergency = getattr(self, f"{part}_base"), getattr(self, f"{part}_emergency")
            if base >= emergency:
                raise UserError(f"{part}_base must be below {part}_emergency, {emergency:g}, got {base:g}")


def combined_score(now: Situation, config: LevelConfig) -> float | None:
    """Weighted mean of gradient, memory, latency and stability, from 0 to 1; None where none was measured.

    The weights of what was measured are scaled so that they sum to 1.
    """
    measured = (
        (0.30, now.metric("gradient_norm"), config.gradient_base, config.gradient_emergency),
        (0.25, now.metric("process_memory_share"), config.memory_base, config.memory_emergency),
        (0.25, now.latency_ms, config.latency_ms_base, config.latency_ms_emergency),
        (0.20, now.loss_volatility, config.stability_base, config.stability_emergency),
    )
    parts = [
        (weight, min(max((value - base) / (emergency - base), 0.0), 1.0))
        for weight, value, base, emergency in measured
        if value is not None
    ]
    total = sum(weight for weight, _ in parts)
    return sum(weight * score for weight, score in parts) / total if parts else None


def level_of(score: float | None, severity: Severity) -> Level:
    """The higher of what the score and the signals make."""
    return max(Level.GREEN if score is None else Level(bisect_right(UPPER_BOUNDS, score)), OF_SEVERITY[severity])


class Dashboard(Message):
    """The level shown. It rises after 3 windows in a row that are above it, to the lowest of them, and falls at once.

    A window is an epoch's packets, and as bad as the worst of them.
    """

    settled: Annotated[Level, ByName()] = Level.GREEN
    """Level after the windows that are over."""
    before: tuple[Annotated[Level, ByName()], ...] = ()
    """The last two of them."""
    epoch: Natural | None = None
    """Epoch of the window that is open; None before the first."""
    window: Annotated[Level, ByName()] = Level.GREEN
    """How bad it is so far."""

    @property
    def level(self) -> Level:
        """That is shown."""
        windows = (*self.before, self.window)
        if self.window <= self.settled:
            return self.window
        return max(min(windows), self.settled) if len(windows) == WINDOWS else self.settled

    def show(self, epoch: int, found: Level) -> Dashboard:
        """With a packet of an epoch."""
        if epoch == self.epoch:
            return Dashboard(settled=self.settled, before=self.before, epoch=epoch, window=max(self.window, found))
        before = () if self.epoch is None else (*self.before, self.window)[-(WINDOWS - 1) :]
        return Dashboard(settled=self.level, before=before, epoch=epoch, window=found)
