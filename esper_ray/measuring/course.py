"""One host's training as a picture: how it did, above what happened in each slot."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from envs.vocabulary import Blueprint, SeedStage
from envs.watch import HostWatch

STAGE_COLOURS = {
    SeedStage.GERMINATED: "#f6e8a6",
    SeedStage.TRAINING: "#f4b860",
    SeedStage.BLENDING: "#8ecae6",
    SeedStage.HOLDING: "#b8a1e3",
    SeedStage.FOSSILIZED: "#74b77a",
    SeedStage.PRUNED: "#d1495b",
    SeedStage.EMBARGOED: "#dddddd",
    SeedStage.RESETTING: "#c4c4c4",
}
FATE_COLOURS = {True: "#2f7d3a", False: STAGE_COLOURS[SeedStage.PRUNED]}
ACCURACY_COLOUR, LOSS_COLOUR, ALPHA_COLOUR = "#1d3557", "#b23a48", "#222222"

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass
class Course:
    """One host's training, an entry per epoch from the untrained host on.

    Attributes:
        accuracy: Percent, validation.
        loss: Likewise.
        stage: ``[S]`` each.
        blueprint: ``[S]`` each.
        alpha: ``[S]`` each.
    """

    accuracy: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    stage: list[IntArray] = field(default_factory=list)
    blueprint: list[IntArray] = field(default_factory=list)
    alpha: list[FloatArray] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.accuracy)

    def record(self, watch: HostWatch) -> None:
        """Add the first host as it is now."""
        self.accuracy.append(float(watch.progress.accuracy[0, -1]))
        self.loss.append(float(watch.progress.loss[0, -1]))
        for name in ("stage", "blueprint", "alpha"):
            getattr(self, name).append(getattr(watch.lifecycle, name)[0].copy())


@dataclass(frozen=True)
class Fate:
    """What became of a slot's seed after the last epoch.

    Attributes:
        stays: Whether it is part of the network from then on.
        words: That say so, a line or two.
    """

    stays: bool
    words: str


def draw_course(
    course: Course,
    slots: Sequence[str],
    title: str,
    alone: Course | None = None,
    fates: Mapping[str, Fate] = MappingProxyType({}),
) -> Figure:
    """A host's training as a picture.

    Args:
        course: What happened.
        slots: Names of its slots, from the first; further ones are left out.
        title: Above it.
        alone: The same host left alone, if that is known.
        fates: What became of seeds after the last epoch, by the names of their slots, if that is known; it stands
            behind the end of their lanes.
    """
    with mpl.rc_context({"font.size": 9.5, "axes.spines.top": False}):
        figure = Figure(figsize=(10.5, 4.2 + 0.8 * len(slots)), layout="constrained", dpi=110)
        axes = figure.subplots(
            1 + len(slots), 1, sharex=True, gridspec_kw={"height_ratios": [4.2] + [1.0] * len(slots)}
        )
        _draw_curves(axes[0], course, alone)
        for slot, name in enumerate(slots):
            _draw_lane(axes[1 + slot], course, slot, name)
            if name in fates:
                _draw_fate(axes[1 + slot], fates[name])
        axes[-1].set_xlabel("training epoch of the host")
        figure.legend(
            handles=[Patch(color=colour, label=stage.name.lower()) for stage, colour in STAGE_COLOURS.items()],
            loc="outside lower center",
            ncols=len(STAGE_COLOURS),
            frameon=False,
            title="what each slot is doing (black line: alpha, from 0 at the lane's bottom to 1 at its top)",
        )
        figure.suptitle(title, fontsize=10.5)
    return figure


def _draw_curves(axes: Axes, course: Course, alone: Course | None) -> None:
    axes.plot(course.accuracy, color=ACCURACY_COLOUR, lw=2, label="accuracy")
    if alone is not None:
        label = "accuracy, left alone"
        axes.plot(alone.accuracy, color=ACCURACY_COLOUR, lw=1.2, ls=(0, (4, 3)), alpha=0.7, label=label)
    axes.set_ylabel("validation accuracy, %", color=ACCURACY_COLOUR)
    axes.set_ylim(0, 101)
    axes.set_xlim(0, max(1, len(course) - 1))
    axes.grid(axis="y", alpha=0.25)
    right = axes.twinx()
    right.plot(course.loss, color=LOSS_COLOUR, lw=1.2, label="loss")
    right.set_ylabel("validation loss", color=LOSS_COLOUR)
    right.set_ylim(bottom=0)
    handles = [*axes.get_lines(), *right.get_lines()]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles), frameon=False)


def _draw_lane(axes: Axes, course: Course, slot: int, name: str) -> None:
    stage, blueprint = np.array(course.stage)[:, slot], np.array(course.blueprint)[:, slot]
    alpha = np.array(course.alpha)[:, slot]
    # Entry t describes the state during epoch t, which spans t - 1 … t on the axis.
    for start, end in _spans(stage):
        kind = SeedStage(int(stage[start]))
        if kind in STAGE_COLOURS:
            axes.axvspan(start - 1, end - 1, color=STAGE_COLOURS[kind], lw=0)
    for start, end in _spans(blueprint):
        if blueprint[start] >= 0:
            label = Blueprint(int(blueprint[start])).name.lower().replace("_", " ")
            axes.text(start - 0.8, 0.5, label, va="center", fontsize=8.5, clip_on=True)
            axes.plot(np.arange(start, end), alpha[start:end], color=ALPHA_COLOUR, lw=1.4)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([])
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
    axes.spines["right"].set_visible(False)


def _draw_fate(axes: Axes, fate: Fate) -> None:
    colour = FATE_COLOURS[fate.stays]
    axes.plot([1.0, 1.0], [0.0, 1.0], color=colour, lw=3, clip_on=False, transform=axes.transAxes)
    axes.text(1.01, 0.5, fate.words, color=colour, va="center", fontsize=8.5, transform=axes.transAxes)


def _spans(values: IntArray) -> list[tuple[int, int]]:
    """Half-open index ranges over which ``values`` stays the same."""
    edges = np.flatnonzero(np.diff(values)) + 1
    bounds = [0, *edges.tolist(), len(values)]
    return list(itertools.pairwise(bounds))
