"""What a fixed schedule grows: plans fixed before the training begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Self

from envs.vocabulary import AlphaTarget, Blueprint, GerminationStyle, Tempo


@dataclass(frozen=True, order=True)
class GrowthPlan:
    """One seed.

    Attributes:
        slot: Index of the slot.
        blueprint: Kind of seed.
        epoch: Epoch in which it germinates.
        style: How it blends.
        tempo: How fast.
        alpha_target: How far.
        training_epochs: Epochs that it trains for before it is blended in, at least; 0: until the gate opens.

    Raises:
        ValueError: a number below 0.
    """

    slot: int = 0
    blueprint: Blueprint = Blueprint.DEPTHWISE
    epoch: int = 5
    style: GerminationStyle = GerminationStyle.LINEAR_ADD
    tempo: Tempo = Tempo.STANDARD
    alpha_target: AlphaTarget = AlphaTarget.FULL
    training_epochs: int = 0

    def __post_init__(self) -> None:
        for name in ("slot", "epoch", "training_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} of a plan must be 0 or more, got {getattr(self, name)}")

    def to_json(self) -> dict[str, int | str]:
        """Field → number or name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.name if isinstance(value, IntEnum) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, entry: Any) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: no mapping, a field that is unknown, or one that is not of its kind.
        """
        if not isinstance(entry, Mapping):
            raise ValueError(f"a plan must name its fields, got {entry!r}")
        enums: dict[str, type[IntEnum]] = {
            "blueprint": Blueprint,
            "style": GerminationStyle,
            "tempo": Tempo,
            "alpha_target": AlphaTarget,
        }
        values: dict[str, Any] = {}
        for name, value in entry.items():
            if name not in {field.name for field in fields(cls)}:
                raise ValueError(f"a plan has no {name!r}")
            if name in enums:
                if value not in enums[name].__members__:
                    raise ValueError(f"{name} must be one of {', '.join(enums[name].__members__)}, got {value!r}")
                value = enums[name][value]
            elif not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
            values[name] = value
        return cls(**values)


@dataclass(frozen=True, order=True)
class GrowthSchedule:
    """Seeds to grow in one host, at most one per slot, in the order of the slots.

    Raises:
        ValueError: two plans for one slot.
    """

    plans: tuple[GrowthPlan, ...] = ()

    def __post_init__(self) -> None:
        slots = [plan.slot for plan in self.plans]
        if len(set(slots)) < len(slots):
            raise ValueError(f"a schedule grows one seed per slot, got plans for the slots {slots}")
        object.__setattr__(self, "plans", tuple(sorted(self.plans)))

    def to_json(self) -> list[dict[str, int | str]]:
        """One entry per plan."""
        return [plan.to_json() for plan in self.plans]

    @classmethod
    def from_json(cls, entries: Sequence[Any]) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: as of :class:`GrowthPlan`.
        """
        return cls(tuple(GrowthPlan.from_json(entry) for entry in entries))

    def described(self, slot_ids: Sequence[str]) -> str:
        """In words, for tables: slot, blueprint, epoch, and what differs from the usual way of blending."""
        usual, parts = GrowthPlan(), []
        for plan in self.plans:
            unusual = [
                getattr(plan, name).name.lower()
                for name in ("style", "tempo", "alpha_target")
                if getattr(plan, name) != getattr(usual, name)
            ]
            if plan.training_epochs:
                unusual.append(f"trained {plan.training_epochs}")
            ways = f" ({', '.join(unusual)})" if unusual else ""
            parts.append(f"{slot_ids[plan.slot]} {plan.blueprint.name.lower()} @{plan.epoch}{ways}")
        return "; ".join(parts) or "nothing"


BY_HAND = GrowthSchedule((GrowthPlan(),))
"""One depthwise seed in the first slot at epoch 5."""
