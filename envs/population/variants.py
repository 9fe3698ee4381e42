"""What follows from the sizes of a task's host variants: parameter counts, and masks where variants mix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.batched.parameters import ParameterLayout, count_parameters
from envs.blueprints.base import SeedModule
from envs.blueprints.costs import cost_tables, parameters_of
from envs.limits import ParameterCosts
from envs.population.blending import gate_parameters
from envs.tasks.base import Task
from envs.vocabulary import Blueprint

IntArray = npt.NDArray[np.int64]


class VariantTables:
    """Tables with one row per variant, looked up by each member's variant.

    Args:
        task: Its host and variants.
        modules: The topology's blueprints.
        layout: Flat layout of the widest host.
        device: Where the masks are needed.
    """

    def __init__(
        self, task: Task, modules: dict[Blueprint, SeedModule], layout: ParameterLayout, device: torch.device
    ) -> None:
        host, variants, slots = task.host, task.variants, range(task.slots.num_slots)
        widths = np.array([[host.slot_width(variant, slot) for slot in slots] for variant in variants])
        seeds, levels = cost_tables(modules, task.slots.blueprints, widths, parameters_of)
        self._costs = ParameterCosts(
            host=np.array([count_parameters(host.parameters(variant)) for variant in variants]),
            blueprint=seeds,
            level=levels,
            gate=np.array([[count_parameters(gate_parameters(int(w))) for w in row] for row in widths]),
            offered=np.array([blueprint in modules for blueprint in task.slots.blueprints]),
        )
        masks = np.stack([layout.present(host.parameters(variant)) for variant in variants])
        self.mixed = not masks.all()
        self._parameters = torch.from_numpy(masks).to(device)
        self._widths = torch.from_numpy(widths).to(device)

    def costs(self, variant: IntArray) -> ParameterCosts:
        """Parameter counts of members of these variants (``[N]``)."""
        return self._costs.rows(variant)

    def parameters_present(self, variant: IntArray) -> Tensor | None:
        """``[m, P]`` host parameters that exist in members of these variants, or None if all do."""
        return self._parameters[torch.from_numpy(variant)] if self.mixed else None

    def channels_present(self, variant: IntArray, slot: int) -> Tensor | None:
        """int64 ``[m]``, how many channels exist at a slot in members of these variants, or None if all do."""
        return self._widths[torch.from_numpy(variant), slot] if self.mixed else None
