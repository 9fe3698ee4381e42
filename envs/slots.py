"""Where modules can grow: the ordered slots of a host, which of them are in use, and what can happen there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from envs.vocabulary import Blueprint, HeadSpec, LifecycleOp, blueprints_in_use, head_specs, ops_in_use


@dataclass(frozen=True)
class SlotConfig:
    """Ordered slot ids of a host and the enabled subset.

    A disabled slot keeps its place in every size (heads, features, masks) and is never admitted by a mask.

    Attributes:
        slot_ids: Ids in the order in which data passes them, ``r{row}c{column}`` by convention.
        enabled: Ids that may be used; all of them by default.
        internal_levels: Whether seeds can be grown and shrunk inside: adds two ops, the blueprints that have an
            internal structure, and one number per slot to the observation.

    Raises:
        ValueError: no slot, a repeated id, or an enabled id that is not a slot.
    """

    slot_ids: tuple[str, ...]
    enabled: tuple[str, ...] | None = None
    internal_levels: bool = False

    def __post_init__(self) -> None:
        if not self.slot_ids or len(set(self.slot_ids)) != len(self.slot_ids):
            raise ValueError(f"slot_ids must be one or more different ids, got {self.slot_ids}")
        unknown = set(self.enabled or ()) - set(self.slot_ids)
        if unknown:
            raise ValueError(f"enabled names {sorted(unknown)}, which are not among the slots {self.slot_ids}")

    @classmethod
    def for_row(cls, columns: int, internal_levels: bool = False) -> SlotConfig:
        """Slots ``r0c0 … r0c{columns-1}``, all enabled."""
        return cls(tuple(f"r0c{column}" for column in range(columns)), internal_levels=internal_levels)

    @property
    def num_slots(self) -> int:
        """Number of slots, enabled or not."""
        return len(self.slot_ids)

    @cached_property
    def enabled_mask(self) -> tuple[bool, ...]:
        """Whether each slot may be used, in slot order."""
        return tuple(self.enabled is None or slot in self.enabled for slot in self.slot_ids)

    @cached_property
    def ops(self) -> tuple[LifecycleOp, ...]:
        """The ops that exist here."""
        return ops_in_use(self.internal_levels)

    @cached_property
    def blueprints(self) -> tuple[Blueprint, ...]:
        """The kinds of seed that exist here, whether or not the host's topology offers them."""
        return blueprints_in_use(self.internal_levels)

    @cached_property
    def heads(self) -> tuple[HeadSpec, ...]:
        """The action's heads for these slots."""
        return head_specs(self.slot_ids, self.internal_levels)
