"""Obs V3: what the policy sees of a host, as one vector of fixed layout.

With S slots the vector has 31 + 30·S measured numbers (121 for 3), with internal levels 33 + 31·S. The blueprint in
each slot comes beside it, as an index, of which the policy embeds 4 numbers by default: it reads 31 + 34·S (133 for 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.lifecycle import Lifecycle
from envs.measurements import SlotMeasurements
from envs.progress import HISTORY, HostProgress
from envs.seed_report import check_internal_levels
from envs.slots import SlotConfig
from envs.vocabulary import AlphaAlgorithm, AlphaMode, SeedStage

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

LOW, HIGH = -1.0, 2.0
LOSS_CEILING = 2.0
LOSS_SCALE = float(np.log(11.0))  # log1p of a loss of 10 reads as 1
PLATEAU_SCALE, CONTRIBUTION_SCALE, GRADIENT_SCALE = 20.0, 10.0, 10.0
INTERACTION_SUM_SCALE, INTERACTION_BEST_SCALE, NEIGHBOUR_SCALE = 10.0, 5.0, 3.0
FRESHNESS_DECAY = 0.995


@dataclass(frozen=True)
class Field:
    """One number of the observation, its range, and, of a slot's, whether it is 0 where no seed lives."""

    name: str
    low: float = 0.0
    high: float = 1.0
    of_seed: bool = True


_BASE_FIELDS = (
    Field("epoch"),
    Field("val_loss", 0.0, LOSS_CEILING),
    Field("val_loss_change", -1.0),
    Field("val_accuracy"),
    Field("val_accuracy_change", -1.0),
    Field("plateau_epochs"),
    Field("host_stabilized"),
    *(Field(f"val_loss_{HISTORY - 1 - i}_ago", 0.0, LOSS_CEILING) for i in range(HISTORY)),
    *(Field(f"val_accuracy_{HISTORY - 1 - i}_ago") for i in range(HISTORY)),
    Field("best_accuracy"),
    Field("best_loss", 0.0, LOSS_CEILING),
    Field("seed_parameters"),
    Field("occupied_slots"),
    Field("training_slots"),
    Field("blending_slots"),
    Field("holding_slots"),
    Field("last_action_success"),
)

_SLOT_FIELDS = (
    Field("active"),
    *(Field(f"stage_{stage.name}", of_seed=False) for stage in SeedStage),
    Field("alpha"),
    Field("alpha_target"),
    Field("alpha_mode"),
    Field("alpha_velocity", -1.0),
    Field("time_to_target"),
    Field("algorithm"),
    Field("contribution", -1.0),
    Field("contribution_velocity", -1.0),
    Field("epochs_in_stage", of_seed=False),
    Field("gradient_norm"),
    Field("gradient_health"),
    Field("previous_gradient_health"),
    Field("vanishing"),
    Field("exploding"),
    Field("interaction_sum", -1.0),
    Field("interaction_best"),
    Field("upstream_alpha"),
    Field("downstream_alpha"),
    Field("freshness"),
)
_INTERNAL_FIELDS = (Field("internal_level"),)


def base_fields(slots: SlotConfig) -> tuple[Field, ...]:
    """The host-wide numbers: 25 and one per op."""
    return _BASE_FIELDS + tuple(Field(f"last_op_{op.name}") for op in slots.ops)


def slot_fields(slots: SlotConfig) -> tuple[Field, ...]:
    """The numbers of each slot: 30, and with internal levels 31."""
    return _SLOT_FIELDS + (_INTERNAL_FIELDS if slots.internal_levels else ())


class ObservationLayout:
    """Names, ranges and places of every number in the vector for given slots."""

    def __init__(self, slots: SlotConfig) -> None:
        self.slots = slots
        self._base_fields, self._slot_fields = base_fields(slots), slot_fields(slots)
        self.fields = self._base_fields + tuple(
            Field(f"{slot}.{field.name}", field.low, field.high, field.of_seed)
            for slot in slots.slot_ids
            for field in self._slot_fields
        )
        self._index = {field.name: i for i, field in enumerate(self.fields)}
        self._low = np.array([field.low for field in self.fields])
        self._high = np.array([field.high for field in self.fields])
        self._without_seed = np.array([not field.of_seed for field in self._slot_fields])

    @property
    def size(self) -> int:
        """Length of the vector."""
        return len(self.fields)

    def base(self, obs: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
        """One host-wide number of ``[..., size]`` observations, ``[...]``."""
        return obs[..., self._index[name]]

    def slot(self, obs: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
        """One number of every slot, ``[..., S]``."""
        return obs[..., [self._index[f"{slot}.{name}"] for slot in self.slots.slot_ids]]

    def stages(self, obs: npt.NDArray[np.float32]) -> IntArray:
        """``SeedStage`` of every slot, ``[..., S]``; an all-zero slot is DORMANT."""
        onehot = np.stack([self.slot(obs, f"stage_{stage.name}") for stage in SeedStage], axis=-1)
        return np.where(onehot.any(axis=-1), onehot.argmax(axis=-1), SeedStage.DORMANT)

    def encode(
        self,
        progress: HostProgress,
        lifecycle: Lifecycle,
        measurements: SlotMeasurements,
        epoch: IntArray,
        max_epochs: int,
        last_op: IntArray,
        last_success: BoolArray,
    ) -> npt.NDArray[np.float32]:
        """The vectors of all hosts, ``[N, size]`` float32, each number in its range.

        Args:
            progress: Validation results up to now.
            lifecycle: Slots.
            measurements: Gradients and counterfactuals.
            epoch: ``[N]`` epochs done.
            max_epochs: Length of an episode.
            last_op: ``[N]`` op that was executed last (WAIT after a refusal and at a reset).
            last_success: ``[N]`` whether the last action was executed as asked.

        Raises:
            ValueError: an internal level outside of what its kind has.
        """
        base = self._base(progress, lifecycle, epoch, max_epochs, last_op, last_success)
        slot = self._slots(lifecycle, measurements, max_epochs)
        if self.slots.internal_levels:
            slot["internal_level"] = _internal_level(lifecycle)
        _check_names(base, self._base_fields)
        _check_names(slot, self._slot_fields)
        # A slot shows its seed's numbers while one lives there, and what it waits for until it is DORMANT again.
        waits = (lifecycle.stage != SeedStage.DORMANT)[:, :, None] & self._without_seed
        shown = np.where(waits | lifecycle.living[:, :, None], np.stack(list(slot.values()), axis=2), 0.0)
        numbers = np.nan_to_num(shown).reshape(len(epoch), -1)
        vector = np.concatenate([np.stack(list(base.values()), axis=1), numbers], axis=1)
        return np.clip(vector, self._low, self._high).astype(np.float32)

    def _base(
        self,
        progress: HostProgress,
        lifecycle: Lifecycle,
        epoch: IntArray,
        max_epochs: int,
        last_op: IntArray,
        last_success: BoolArray,
    ) -> dict[str, FloatArray]:
        losses = _log_loss(progress.loss)
        accuracies = np.nan_to_num(progress.accuracy) / 100.0
        budget = np.log1p(np.maximum(lifecycle.parameter_budget, 1))
        ages = range(HISTORY - 1, -1, -1)
        return {
            "epoch": epoch / max_epochs,
            "val_loss": losses[:, -1],
            "val_loss_change": np.clip(progress.loss_change, -2.0, 2.0) / 2.0,
            "val_accuracy": accuracies[:, -1],
            "val_accuracy_change": progress.accuracy_change / 10.0,
            "plateau_epochs": progress.plateau_epochs / PLATEAU_SCALE,
            "host_stabilized": progress.stabilized.astype(float),
            **{f"val_loss_{age}_ago": losses[:, -1 - age] for age in ages},
            **{f"val_accuracy_{age}_ago": accuracies[:, -1 - age] for age in ages},
            "best_accuracy": progress.best_accuracy / 100.0,
            "best_loss": _log_loss(progress.best_loss),
            "seed_parameters": np.log1p(lifecycle.extra_parameters) / budget,
            "occupied_slots": lifecycle.living.mean(axis=1),
            "training_slots": (lifecycle.stage == SeedStage.TRAINING).mean(axis=1),
            "blending_slots": (lifecycle.stage == SeedStage.BLENDING).mean(axis=1),
            "holding_slots": (lifecycle.stage == SeedStage.HOLDING).mean(axis=1),
            "last_action_success": last_success.astype(float),
            **{f"last_op_{op.name}": (last_op == op).astype(float) for op in self.slots.ops},
        }

    def _slots(
        self, lifecycle: Lifecycle, measurements: SlotMeasurements, max_epochs: int
    ) -> dict[str, npt.NDArray[Any]]:
        """Numbers of every slot, ``[N, S]`` each, whether or not something lives there; NaN where not measured."""
        living, stage, m = lifecycle.living, lifecycle.stage, measurements
        alpha = np.where(living, lifecycle.alpha, 0.0)
        upstream = np.cumsum(alpha, axis=1) - alpha
        downstream = alpha.sum(axis=1, keepdims=True) - alpha - upstream

        return {
            "active": living,
            **{f"stage_{kind.name}": stage == kind for kind in SeedStage},
            "alpha": alpha,
            "alpha_target": lifecycle.alpha_target,
            "alpha_mode": lifecycle.mode / max(AlphaMode),
            "alpha_velocity": lifecycle.alpha_velocity,
            "time_to_target": lifecycle.epochs_to_target / max_epochs,
            "algorithm": lifecycle.algorithm / max(AlphaAlgorithm),
            "contribution": m.contribution / CONTRIBUTION_SCALE,
            "contribution_velocity": m.contribution_change / CONTRIBUTION_SCALE,
            "epochs_in_stage": lifecycle.epochs_in_stage / max_epochs,
            "gradient_norm": m.gradient_norm / GRADIENT_SCALE,
            "gradient_health": m.health,
            "previous_gradient_health": m.previous_health,
            "vanishing": m.vanishing,
            "exploding": m.exploding,
            "interaction_sum": m.interaction_sum / INTERACTION_SUM_SCALE,
            "interaction_best": m.interaction_best / INTERACTION_BEST_SCALE,
            "upstream_alpha": upstream / NEIGHBOUR_SCALE,
            "downstream_alpha": downstream / NEIGHBOUR_SCALE,
            "freshness": FRESHNESS_DECAY**m.epochs_since,
        }


def _internal_level(lifecycle: Lifecycle) -> FloatArray:
    """Share of each seed's internal levels that is on, ``[N, S]``: in [0, 1] by contract, never by clipping."""
    level, most = lifecycle.internal_level, lifecycle.internal_max_level
    check_internal_levels(lifecycle.internal_kind, level, most)
    return level / most


def _log_loss(loss: FloatArray) -> FloatArray:
    """Losses on the observation's scale: 0 where not measured, the ceiling where not finite."""
    scaled = np.log1p(np.where(np.isfinite(loss), loss, 0.0)) / LOSS_SCALE
    return np.where(np.isinf(loss), LOSS_CEILING, np.minimum(scaled, LOSS_CEILING))


def _check_names(values: dict[str, npt.NDArray[Any]], fields: tuple[Field, ...]) -> None:
    names = tuple(field.name for field in fields)
    if tuple(values) != names:
        raise RuntimeError(f"the observation's values {tuple(values)} are not in the order of its fields {names}")
