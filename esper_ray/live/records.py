"""What a grower says: a decision per epoch, and a report at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from envs.live.planting import GrownSeed, card_of
from envs.seed_report import SeedReport
from envs.vocabulary import (
    ALPHA_SPEED_EPOCHS,
    ALPHA_TARGET_VALUES,
    TEMPO_EPOCHS,
    AlphaTarget,
    Blueprint,
    GerminationStyle,
    LifecycleOp,
    SeedStage,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from esper_ray.measuring.course import Course

_QUIET = (SeedStage.UNKNOWN, SeedStage.DORMANT)


@dataclass(frozen=True)
class Decision:
    """What an epoch gave and what was decided then.

    Attributes:
        epoch: Epochs done.
        max_epochs: Of the run.
        loss: Validation loss.
        accuracy: Validation accuracy, percent.
        op: What happens from now on.
        slot: In which slot, by its module's name; None where nothing is done.
        action: The same in words.
        slots: What each slot is doing, by its module's name.
        extra_parameters: Of all living seeds.
        note: What else has to be said; empty mostly.
    """

    epoch: int
    max_epochs: int
    loss: float
    accuracy: float
    op: LifecycleOp
    slot: str | None
    action: str
    slots: dict[str, str]
    extra_parameters: int
    note: str = ""

    def __str__(self) -> str:
        growing = ", ".join(f"{name} {state}" for name, state in self.slots.items() if state) or "nothing grows"
        parts = [
            f"epoch {self.epoch}/{self.max_epochs}: accuracy {self.accuracy:.1f} %, loss {self.loss:.4f}",
            self.action,
            f"{growing} (+{self.extra_parameters:,} parameters)",
        ]
        return " | ".join([*parts, self.note] if self.note else parts)


def in_words(action: npt.NDArray[np.int64], names: Sequence[str], alpha: npt.NDArray[np.float64]) -> str:
    """One action, ``[8]`` head indices, for slots that were blended in as far as ``alpha`` (``[S]``) says."""
    op, at, blueprint, style, tempo, target, speed, _ = (int(entry) for entry in action)
    kind = LifecycleOp(op)
    if kind is LifecycleOp.WAIT:
        return "wait"
    words = f"{kind.name.lower().replace('_', ' ')} {names[at]}"
    way, goal = GerminationStyle(style).name.lower().replace("_", " "), ALPHA_TARGET_VALUES[AlphaTarget(target)]
    if kind is LifecycleOp.GERMINATE:
        what = Blueprint(blueprint).name.lower()
        return f"germinate {what} in {names[at]} ({way}, {TEMPO_EPOCHS[tempo]} epochs to alpha {goal:g})"
    if kind is LifecycleOp.SET_ALPHA_TARGET:
        return f"{words} to {goal:g} ({way}, {_within(speed)})"
    return f"{words} ({_within(speed if alpha[at] else 0)})" if kind is LifecycleOp.PRUNE else words


def _within(speed: int) -> str:
    epochs = ALPHA_SPEED_EPOCHS[speed]
    return f"in {epochs} epochs" if epochs else "at once"


def slot_state(report: SeedReport) -> str:
    """What a slot is doing, short; empty where nothing is."""
    if report.stage in _QUIET:
        return ""
    kind = "" if report.blueprint is None else f"{report.blueprint.name.lower()} "
    alpha = f" at {report.alpha:.2f}" if 0.0 < report.alpha < 1.0 else ""
    return f"{kind}{report.stage.name.lower()}{alpha}"


@dataclass(frozen=True)
class Kept:
    """A seed that stays.

    Attributes:
        seed: What it is.
        parameters: That it has.
        contribution: Points of validation accuracy that it was worth when that was last measured; NaN if never.
        finished: Whether the policy had fossilised it; else it was kept since the network leans on it.
    """

    seed: GrownSeed
    parameters: int
    contribution: float
    finished: bool


@dataclass(frozen=True)
class Report:
    """What a run has come to.

    Attributes:
        kept: The seeds that stay.
        removed: Unfinished seeds that were taken out, by their modules' names.
        policy: Who decided.
        epochs: Done.
        evaluations: Calls of ``evaluate`` in all.
        loss: Validation loss of the committed network.
        accuracy: Likewise in percent.
        start_accuracy: Before the first epoch.
        host_parameters: Of the model as it came.
        parameters: Of the committed network.
        host_flops: FLOPs of a sample's forward through the model as it came.
        flops: Likewise through the committed network.
        slots: Names of all slots.
        course: Every epoch.
    """

    kept: tuple[Kept, ...]
    removed: tuple[str, ...]
    policy: str
    epochs: int
    evaluations: int
    loss: float
    accuracy: float
    start_accuracy: float
    host_parameters: int
    parameters: int
    host_flops: int
    flops: int
    slots: tuple[str, ...]
    course: Course = field(repr=False)

    @property
    def card(self) -> dict[str, Any]:
        """What was grown as plain data, for :func:`esper_ray.live.rebuild`; JSON takes it."""
        return card_of([kept.seed for kept in self.kept])

    def picture(self, title: str = "") -> Figure:
        """The run as ``esper-ray replay`` draws one, and behind each slot's lane what became of its seed.

        Args:
            title: First line above it; who decided by default.
        """
        from esper_ray.measuring.course import Fate, draw_course

        fates = {name: Fate(False, "removed\nat commit") for name in self.removed}
        for kept in self.kept:
            fates[kept.seed.place.name] = Fate(True, "fossilized" if kept.finished else "kept\nat commit")
        result = (
            f"after {self.epochs} epochs: validation accuracy {self.accuracy:.1f} %, {self.parameters:,} parameters "
        )
        lines = f"{title or f'grown by {self.policy}'}\n{result}({self.host_parameters:,} of them the model's own)"
        return draw_course(self.course, self.slots, lines, fates=fates)

    def __str__(self) -> str:
        grown = f"{self.parameters - self.host_parameters:,} parameters grown on {self.host_parameters:,}"
        lines = [
            f"{self.epochs} epochs, {self.evaluations} evaluations: validation accuracy {self.accuracy:.1f} % "
            f"(untrained {self.start_accuracy:.1f} %), loss {self.loss:.4f}",
            f"{grown}; {self.flops:,} FLOPs a sample, {self.host_flops:,} before",
        ]
        for kept in self.kept:
            seed, worth = kept.seed, "not measured"
            if not np.isnan(kept.contribution):
                worth = f"worth {kept.contribution:+.1f} points"
            how = "fossilized" if kept.finished else "unfinished, and kept since the network leans on it"
            lines.append(
                f"  {seed.place.name}: {seed.blueprint.name.lower()} ({seed.algorithm.name.lower()}, alpha "
                f"{seed.alpha:.2g}), {kept.parameters:,} parameters, {worth}; {how}"
            )
        lines += [f"  {name}: an unfinished seed was removed" for name in self.removed]
        return "\n".join(lines if self.kept or self.removed else [*lines, "  nothing was grown"])
