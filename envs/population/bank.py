"""Seeds of one blueprint in one slot, over the members that have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.blueprints.base import SeedModule
from envs.population.blending import GATE_BIAS, GATE_WEIGHT, gate_parameters
from envs.population.optimizer import GradientMeter
from envs.population.parameters import ParameterLayout

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass
class MemberRows:
    """Parameters and momentum of some members, in ascending order of member.

    Attributes:
        members: ``[m]`` members of the population.
        flat: ``[m, P]``.
        momentum: ``[m, P]``.
    """

    members: IntArray
    flat: Tensor
    momentum: Tensor

    @classmethod
    def empty(cls, size: int, device: torch.device) -> MemberRows:
        """No member yet."""
        return cls(np.empty(0, np.int64), torch.empty(0, size, device=device), torch.empty(0, size, device=device))

    def only(self, chosen: BoolArray) -> MemberRows:
        """Copies of the rows whose member is marked in ``chosen`` (``[N]``)."""
        kept = np.flatnonzero(chosen[self.members])
        index = torch.from_numpy(kept).to(self.flat.device)
        return MemberRows(self.members[kept], self.flat[index], self.momentum[index])

    def merged(self, other: MemberRows) -> MemberRows:
        """These rows and ``other``'s, whose members must be different ones."""
        members = np.concatenate([self.members, other.members])
        order = np.argsort(members)
        index = torch.from_numpy(order).to(self.flat.device)
        return MemberRows(
            members[order],
            torch.cat([self.flat, other.flat])[index],
            torch.cat([self.momentum, other.momentum])[index],
        )


@dataclass
class SeedBank:
    """One blueprint in one slot.

    Attributes:
        module: The blueprint.
        slot: Index of the slot.
        layout: Flat layout at the population's widest channel count, gate included.
        rows: Members that have this seed, with weights (TRAINING to FOSSILIZED).
        gated: ``[m]`` members whose algorithm is GATE; the others' gate parameters lie at their initial values.
        meter: Gradient statistics of the epoch under way.
    """

    module: SeedModule
    slot: int
    layout: ParameterLayout
    rows: MemberRows
    gated: BoolArray
    meter: GradientMeter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = GradientMeter(self.layout)

    @classmethod
    def create(cls, module: SeedModule, slot: int, width: int, device: torch.device) -> SeedBank:
        """An empty bank for members of at most ``width`` channels."""
        layout = ParameterLayout(module.parameters(width) | gate_parameters(width))
        return cls(module, slot, layout, MemberRows.empty(layout.size, device), np.zeros(0, bool))

    def sync(
        self, wanted: BoolArray, gated: BoolArray, draw: Callable[[SeedBank, int], npt.NDArray[np.float32]]
    ) -> None:
        """Make the bank hold exactly the wanted members.

        Newcomers get fresh weights and no momentum; a member whose algorithm turned to or from GATE gets a fresh
        gate.

        Args:
            wanted: ``[N]`` members whose seed here has weights.
            gated: ``[N]`` members whose algorithm is GATE.
            draw: Fresh row ``[P]`` of this bank for a member; called for newcomers only.
        """
        device = self.rows.flat.device
        before = np.zeros_like(wanted)
        before[self.rows.members] = True
        was_gated = np.zeros_like(wanted)
        was_gated[self.rows.members] = self.gated
        if (before & ~wanted).any():
            self.rows = self.rows.only(wanted)
        newcomers = np.flatnonzero(wanted & ~before)
        if len(newcomers):
            flat = torch.from_numpy(np.stack([draw(self, int(member)) for member in newcomers])).to(device)
            self.rows = self.rows.merged(MemberRows(newcomers, flat, torch.zeros_like(flat)))
        switched = (wanted & before & (gated != was_gated))[self.rows.members]
        if switched.any():
            self._renew_gates(torch.from_numpy(np.flatnonzero(switched)).to(device))
        self.gated = gated[self.rows.members]

    def drop(self, members: BoolArray) -> None:
        """Forget the seeds of the marked members (``[N]``)."""
        self.gated = self.gated[~members[self.rows.members]]
        self.rows = self.rows.only(~members)

    def adopt(self, rows: MemberRows, gated: BoolArray) -> None:
        """Put back saved rows (of members that the bank does not hold); ``gated`` is ``[N]``."""
        self.rows = self.rows.merged(rows)
        self.gated = gated[self.rows.members]

    def _renew_gates(self, index: Tensor) -> None:
        for values, fill in ((self.rows.flat, 1.0), (self.rows.momentum, 0.0)):
            views = self.layout.views(values)
            views[GATE_WEIGHT][index] = 0.0
            views[GATE_BIAS][index] = fill

    def parameters_in_use(self) -> Tensor:
        """``[m, num_parameters]`` False for the gate of a member that does not use it."""
        gate = torch.tensor([name in (GATE_WEIGHT, GATE_BIAS) for name in self.layout.specs])
        return (~gate | torch.from_numpy(self.gated)[:, None]).to(self.rows.flat.device)
