"""Seeds of one blueprint in one slot, over the members that have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.batched.parameters import Init, ParameterLayout
from envs.blueprints.base import LadderModule, Layer, SeedModule
from envs.population.blending import GATE_BIAS, GATE_WEIGHT, gate_parameters
from envs.population.merging import layers_of
from envs.population.optimizer import TrainedRows

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


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
        levels: ``[m]`` internal level; what lies above it takes no part and does not move.
    """

    module: SeedModule
    slot: int
    layout: ParameterLayout
    rows: MemberRows
    gated: BoolArray
    levels: IntArray

    @classmethod
    def create(cls, module: SeedModule, slot: int, width: int, device: torch.device) -> SeedBank:
        """An empty bank for members of at most ``width`` channels."""
        layout = ParameterLayout(module.parameters(width) | gate_parameters(width))
        return cls(
            module, slot, layout, MemberRows.empty(layout.size, device), np.zeros(0, bool), np.zeros(0, np.int64)
        )

    @property
    def module_in_use(self) -> SeedModule:
        """The blueprint, no deeper than the highest internal level of any member needs."""
        if isinstance(self.module, LadderModule):
            return self.module.shortened(max(1, int(self.levels.max(initial=0))))
        return self.module

    def sync(
        self,
        wanted: BoolArray,
        gated: BoolArray,
        levels: IntArray,
        draw: Callable[[SeedBank, int], npt.NDArray[np.float32]],
    ) -> None:
        """Make the bank hold exactly the wanted members.

        Newcomers get fresh weights and no momentum; a member whose algorithm turned to or from GATE gets a fresh
        gate; one whose internal level moved loses what the levels in between propose.

        Args:
            wanted: ``[N]`` members whose seed here has weights.
            gated: ``[N]`` members whose algorithm is GATE.
            levels: ``[N]`` internal level of each member's seed here.
            draw: Fresh row ``[P]`` of this bank for a member; called for newcomers only.
        """
        device = self.rows.flat.device
        before = np.zeros_like(wanted)
        before[self.rows.members] = True
        was_gated = np.zeros_like(wanted)
        was_gated[self.rows.members] = self.gated
        old_levels = levels.copy()
        old_levels[self.rows.members] = self.levels
        if (before & ~wanted).any():
            self.rows = self.rows.only(wanted)
        newcomers = np.flatnonzero(wanted & ~before)
        if len(newcomers):
            flat = torch.from_numpy(np.stack([draw(self, int(member)) for member in newcomers])).to(device)
            self.rows = self.rows.merged(MemberRows(newcomers, flat, torch.zeros_like(flat)))
        switched = (wanted & before & (gated != was_gated))[self.rows.members]
        if switched.any():
            self._renew_gates(torch.from_numpy(np.flatnonzero(switched)).to(device))
        self.gated, self.levels = gated[self.rows.members], levels[self.rows.members]
        old = old_levels[self.rows.members]
        if (old != self.levels).any():
            self._silence(old != self.levels, np.minimum(old, self.levels))

    def drop(self, members: BoolArray) -> None:
        """Forget the seeds of the marked members (``[N]``)."""
        kept = ~members[self.rows.members]
        self.gated, self.levels = self.gated[kept], self.levels[kept]
        self.rows = self.rows.only(~members)

    def adopt(self, rows: MemberRows, gated: BoolArray, levels: IntArray) -> None:
        """Put back saved rows (of members that the bank does not hold); ``gated`` and ``levels`` are ``[N]``."""
        self.rows = self.rows.merged(rows)
        self.gated, self.levels = gated[self.rows.members], levels[self.rows.members]

    def _renew_gates(self, index: Tensor) -> None:
        for values, fill in ((self.rows.flat, 1.0), (self.rows.momentum, 0.0)):
            views = self.layout.views(values)
            views[GATE_WEIGHT][index] = 0.0
            views[GATE_BIAS][index] = fill

    def _silence(self, changed: BoolArray, kept: IntArray) -> None:
        """Make the levels above ``kept`` (``[m]``) propose nothing in the ``changed`` rows (``[m]``).

        What started at zero starts there again, the momentum of the whole level is zeroed; so a level that is
        switched on leaves the function as it is until it is trained.
        """
        device = self.rows.flat.device
        above = torch.from_numpy(changed[:, None] & (self._level_of > kept[:, None])).to(device)
        starts_at_zero = torch.tensor([spec.init is Init.ZEROS for spec in self.layout.specs.values()], device=device)
        self.rows.flat.masked_fill_(self.layout.spread(above & starts_at_zero), 0.0)
        self.rows.momentum.masked_fill_(self.layout.spread(above), 0.0)

    @cached_property
    def _level_of(self) -> IntArray:
        """``[num_parameters]`` internal level from which on each takes part."""
        return np.array([spec.level for spec in self.layout.specs.values()])

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Of the blueprint in use."""
        return layers_of(self.module_in_use, self.layout.specs)

    def parameters_in_use(self) -> Tensor:
        """``[m, num_parameters]`` False for the gate of a member that does not use it and for levels that are off."""
        gate = np.array([name in (GATE_WEIGHT, GATE_BIAS) for name in self.layout.specs])
        in_use = (~gate | self.gated[:, None]) & (self._level_of <= self.levels[:, None])
        return torch.from_numpy(in_use).to(self.rows.flat.device)

    def relative_change(self, before: Tensor) -> FloatArray:
        """``[m]`` norm of the change since the parameters were ``before`` (``[m, P]``), over the norm of these.

        Only parameters that take part count; no other moves.
        """
        change = torch.linalg.vector_norm(self.rows.flat - before, dim=1)
        size = torch.linalg.vector_norm(self.layout.norms(before) * self.parameters_in_use(), dim=1)
        shares: FloatArray = (change / size).double().cpu().numpy()
        return shares

    def switched_on(self) -> Tensor | None:
        """``[m, P]`` parameters that may move, or None where internal levels hold none back."""
        return self.layout.spread(self.parameters_in_use()) if isinstance(self.module, LadderModule) else None

    def trained(self, lr: Tensor) -> TrainedRows:
        """These seeds as an epoch trains them; ``lr`` are the learning rates ``[N]`` of all members."""
        moving = self.switched_on()
        rates = lr[torch.from_numpy(self.rows.members).to(lr.device)]
        held = None if moving is None else ~moving
        return TrainedRows(self.layout, self.rows.flat, self.rows.momentum, rates, held)
