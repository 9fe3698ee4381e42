"""What recorded episodes teach: the decisions, how risky each was, and what was still gained after it.

Shapes: ``T`` is the number of steps of an episode, ``R`` of a world's steps on record, ``H`` of heads; ``...`` are
leading axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from policies.strategic.replay_store import Episode, WorldRecord
from policies.strategic.schema import RISK_CLASSES

OBSERVATION = "observation."
"""Begins the names of columns that are leaves of the observation."""
ACTIONS, REWARDS, LOSS_BEFORE, LOSS_AFTER, STOPPED = "actions", "rewards", "loss_before", "loss_after", "stopped"
"""Names of the other columns that there always are."""
RAMP = "ramp"
"""Name of the column of a world whose ramps are drawn: ``RampShape``, start and end of the window that the seed in the
action's slot is then blended in by, ``[T, 3]``; NaN where no blending begins."""

RISK_HORIZON = 5
"""Epochs that a decision is held to account for."""
RISES = (0.02, 0.075, 0.15)
"""Rises of the validation loss above which a decision is no longer SAFE, no longer LOW, no longer MODERATE."""
UNKNOWN_RISK = -1
"""Where the loss was not measured: no class, and nothing to learn."""

_CRITICAL = RISK_CLASSES.index("CRITICAL")


@dataclass(frozen=True)
class Outcomes:
    """What followed each of T decisions in one host.

    Attributes:
        rewards: ``[T]``.
        loss_before: Validation loss at the decision ``[T]``, NaN where not measured.
        loss_after: After the epoch that follows it ``[T]``, likewise.
        stopped: Whether the governor ended the episode in that epoch, bool ``[T]``.
    """

    rewards: Tensor
    loss_before: Tensor
    loss_after: Tensor
    stopped: Tensor


def recorded(
    host: int, observations: Mapping[str, Tensor], actions: Tensor, outcomes: Outcomes, ramp: Tensor | None = None
) -> Episode:
    """An episode as stores keep it.

    Args:
        host: Seed of the host.
        observations: Leaves ``[T, ...]`` that were read before each decision.
        actions: What was executed, int64 ``[T, H]``; each is one that the observation's mask admits.
        outcomes: What followed.
        ramp: See :data:`RAMP`; None in a world whose ramps are not drawn.
    """
    steps = {f"{OBSERVATION}{name}": leaf for name, leaf in observations.items()}
    drawn = {} if ramp is None else {RAMP: ramp}
    return Episode(host, steps | {ACTIONS: actions} | vars(outcomes) | drawn)


def observations_in(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The leaves of the observation among columns."""
    return {name.removeprefix(OBSERVATION): column for name, column in columns.items() if name.startswith(OBSERVATION)}


@dataclass(frozen=True)
class Targets:
    """What steps on record teach.

    Attributes:
        actions: int64 ``[R, H]``.
        gained: Sum of the rewards from here to the end ``[R]``.
        risk: int64 ``[R]``, classes of ``RISK_CLASSES``, or ``UNKNOWN_RISK``.
        exemplary: Whether the actions are to be imitated, and what they gained is to be expected, bool ``[R]``.
        ramp: See :data:`RAMP`, ``[R, 3]``; all NaN in a world whose ramps are not drawn.
    """

    actions: Tensor
    gained: Tensor
    risk: Tensor
    exemplary: Tensor
    ramp: Tensor

    @classmethod
    def of(cls, record: WorldRecord) -> Self:
        """Of all steps of a world."""
        columns = [record.column(name).split(record.lengths) for name in (LOSS_BEFORE, LOSS_AFTER, STOPPED)]
        risks = [risk_labels(*episode) for episode in zip(*columns, strict=True)]
        gained = [score_gained(rewards) for rewards in record.column(REWARDS).split(record.lengths)]
        ramp = record.column(RAMP) if RAMP in record.names else torch.full((len(record), 3), torch.nan)
        return cls(record.column(ACTIONS), torch.cat(gained), torch.cat(risks), record.exemplary_rows, ramp)

    @property
    def ramp_drawn(self) -> Tensor:
        """Whether a blending begins that is to be judged, by a ramp that was drawn: bool ``[R]``."""
        return self.exemplary & self.ramp[:, 0].isfinite()

    def at(self, rows: Tensor) -> Targets:
        """Those of some steps."""
        return Targets(*(column[rows] for column in vars(self).values()))

    def to(self, device: torch.device) -> Targets:
        """The same on a device."""
        return Targets(*(column.to(device) for column in vars(self).values()))


def risk_labels(loss_before: Tensor, loss_after: Tensor, stopped: Tensor) -> Tensor:
    """Classes of ``RISK_CLASSES`` by what followed: how far the loss rose at most, and whether the governor stopped.

    Near the end of an episode fewer epochs follow, and these count.

    Args:
        loss_before: Validation loss at the decision ``[..., T]``, NaN where not measured.
        loss_after: After the epoch that follows it ``[..., T]``, likewise.
        stopped: Whether the governor ended the episode in that epoch, bool ``[..., T]``.

    Returns:
        int64 ``[..., T]``; ``UNKNOWN_RISK`` where no class can be told.
    """
    highest = _within_horizon(loss_after, -torch.inf)
    rise = highest - loss_before
    classes = torch.bucketize(rise, rise.new_tensor(RISES))
    classes = classes.masked_fill(rise.isnan(), UNKNOWN_RISK)
    return classes.masked_fill(_within_horizon(stopped.float(), 0.0) > 0, _CRITICAL)


def score_gained(rewards: Tensor) -> Tensor:
    """Sum of the rewards from each step to the end, ``[..., T]``."""
    return rewards.flip(-1).cumsum(-1).flip(-1)


def _within_horizon(values: Tensor, beyond: float) -> Tensor:
    """The largest of the next values, each step's own the first of them; NaN if one of them is."""
    return F.pad(values, (0, RISK_HORIZON - 1), value=beyond).unfold(-1, RISK_HORIZON, 1).amax(-1)
