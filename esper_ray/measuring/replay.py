"""One episode as a picture: how the host did, above what happened in each slot."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from envs.morphogenesis import MorphogenesisVectorEnv
from envs.vocabulary import Blueprint, SeedStage
from esper_ray.config import EnvConfig
from esper_ray.measuring.episodes import run_episodes
from policies.bundle import PolicyBundle
from policies.scripted import NeverGrow

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
ACCURACY_COLOUR, LOSS_COLOUR, ALPHA_COLOUR = "#1d3557", "#b23a48", "#222222"


@dataclass(frozen=True)
class Trace:
    """One host's episode, T + 1 entries from the untrained host to the last epoch.

    Attributes:
        accuracy: ``[T + 1]`` percent, validation.
        loss: ``[T + 1]``, validation.
        stage: ``[T + 1, S]``.
        blueprint: ``[T + 1, S]``.
        alpha: ``[T + 1, S]``.
        score: Committed score on the test split.
        test_accuracy: Percent.
        host_parameters: Of the host alone.
        parameters: Of the committed network.
    """

    accuracy: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    stage: npt.NDArray[np.int64]
    blueprint: npt.NDArray[np.int64]
    alpha: npt.NDArray[np.float64]
    score: float
    test_accuracy: float
    host_parameters: int
    parameters: int


def trace_episode(policy: PolicyBundle, env: EnvConfig, host_seed: int) -> Trace:
    """Play one host and record every epoch."""
    rows: list[tuple[float, float, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
    host_parameters = 0

    def record(world: MorphogenesisVectorEnv) -> None:
        nonlocal host_parameters
        life, progress = world.lifecycle, world.progress
        host_parameters = int(life.costs.host[0])
        rows.append(
            (
                float(progress.accuracy[0, -1]),
                float(progress.loss[0, -1]),
                life.stage[0].copy(),
                life.blueprint[0].copy(),
                life.alpha[0].copy(),
            )
        )

    results = run_episodes(policy, env, [host_seed], record)
    accuracy, loss, stage, blueprint, alpha = (np.array(column) for column in zip(*rows, strict=True))
    return Trace(
        accuracy,
        loss,
        stage,
        blueprint,
        alpha,
        float(results.score[0]),
        float(results.accuracy[0]),
        host_parameters,
        int(results.parameters[0]),
    )


def draw_replay(policy: PolicyBundle, env: EnvConfig, host_seed: int, title: str) -> Figure:
    """Play the policy, and the same host left alone, and draw both.

    Args:
        policy: Decides.
        env: The world.
        host_seed: Of the host.
        title: First line above the picture.
    """
    slots = env.make_task().slots
    trace = trace_episode(policy, env, host_seed)
    alone = trace_episode(NeverGrow(slots), env, host_seed)
    with mpl.rc_context({"font.size": 9.5, "axes.spines.top": False}):
        figure = Figure(figsize=(10.5, 4.2 + 0.8 * slots.num_slots), layout="constrained", dpi=110)
        axes = figure.subplots(
            1 + slots.num_slots, 1, sharex=True, gridspec_kw={"height_ratios": [4.2] + [1.0] * slots.num_slots}
        )
        _draw_curves(axes[0], trace, alone)
        for slot, name in enumerate(slots.slot_ids):
            _draw_lane(axes[1 + slot], trace, slot, name)
        axes[-1].set_xlabel("training epoch of the host")
        figure.legend(
            handles=[Patch(color=colour, label=stage.name.lower()) for stage, colour in STAGE_COLOURS.items()],
            loc="outside lower center",
            ncols=len(STAGE_COLOURS),
            frameon=False,
            title="what each slot is doing (black line: alpha, from 0 at the lane's bottom to 1 at its top)",
        )
        figure.suptitle(
            f"{title}\nafter {len(trace.accuracy) - 1} epochs: test accuracy {trace.test_accuracy:.1f} %, score "
            f"{trace.score:.3f}, {trace.parameters:,} parameters  |  left alone: {alone.test_accuracy:.1f} %, "
            f"{alone.score:.3f}, {alone.parameters:,}",
            fontsize=10.5,
        )
    return figure


def _draw_curves(axes: Axes, trace: Trace, alone: Trace) -> None:
    epochs = np.arange(len(trace.accuracy))
    axes.plot(epochs, trace.accuracy, color=ACCURACY_COLOUR, lw=2, label="accuracy")
    axes.plot(alone.accuracy, color=ACCURACY_COLOUR, lw=1.2, ls=(0, (4, 3)), alpha=0.7, label="accuracy, left alone")
    axes.set_ylabel("validation accuracy, %", color=ACCURACY_COLOUR)
    axes.set_ylim(0, 101)
    axes.set_xlim(0, len(epochs) - 1)
    axes.grid(axis="y", alpha=0.25)
    right = axes.twinx()
    right.plot(epochs, trace.loss, color=LOSS_COLOUR, lw=1.2, label="loss")
    right.set_ylabel("validation loss", color=LOSS_COLOUR)
    right.set_ylim(bottom=0)
    handles = [*axes.get_lines(), *right.get_lines()]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(handles), frameon=False)


def _draw_lane(axes: Axes, trace: Trace, slot: int, name: str) -> None:
    stage, alpha = trace.stage[:, slot], trace.alpha[:, slot]
    # Entry t describes the state during epoch t, which spans t - 1 … t on the axis.
    for start, end in _spans(stage):
        kind = SeedStage(int(stage[start]))
        if kind in STAGE_COLOURS:
            axes.axvspan(start - 1, end - 1, color=STAGE_COLOURS[kind], lw=0)
    blueprint = trace.blueprint[:, slot]
    for start, end in _spans(blueprint):
        if blueprint[start] >= 0:
            label = Blueprint(int(blueprint[start])).name.lower().replace("_", " ")
            axes.text(start - 0.8, 0.5, label, va="center", fontsize=8.5, clip_on=True)
            axes.plot(np.arange(start, end), alpha[start:end], color=ALPHA_COLOUR, lw=1.4)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([])
    axes.set_ylabel(name, rotation=0, ha="right", va="center")
    axes.spines["right"].set_visible(False)


def _spans(values: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Half-open index ranges over which ``values`` stays the same."""
    edges = np.flatnonzero(np.diff(values)) + 1
    bounds = [0, *edges.tolist(), len(values)]
    return list(itertools.pairwise(bounds))
