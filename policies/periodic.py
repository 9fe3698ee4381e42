"""Growth at fixed intervals: in the next free slot, or where the host's gradient is largest.

They read hosts as graphs: only those say how wide a slot's host is, and so what a blueprint costs there, and how large
the gradients of the host's own layers are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from envs.action_masks import split_mask
from envs.blueprints.costs import cost_tables, parameters_of
from envs.blueprints.registry import blueprints_for
from envs.graph.layout import BLUEPRINTS, MAX_EPOCHS, OBSERVATION, GraphLayout
from envs.slots import SlotConfig
from envs.vocabulary import LIVING_STAGES, AlphaTarget, GerminationStyle, LifecycleOp, Tempo
from policies.bundle import Actions, BoolArray, Observations, PolicySettings
from policies.registry import register
from policies.rule import Memory, RulePolicy
from policies.strategic.greenhouse import GRAPH

IntArray = npt.NDArray[np.int64]
Views = Mapping[str, npt.NDArray[np.float32]]
"""Numbers of a graph by key, ``[N, rows]``, NaN where not measured."""

INTERVALS = 12
"""Of an episode: a seed is due at the end of each, while one can still be finished. docs/controls.md has the figures by
which it was chosen."""

SEED_EPOCHS = 11
"""Epochs that a seed takes which nothing delays, those of its germination and its fossilisation included: one as
GERMINATED, three in TRAINING, five of ramp, one in HOLDING in which its contribution is measured."""

ARGUMENTS = {
    "style": int(GerminationStyle.LINEAR_ADD),
    "tempo": int(Tempo.STANDARD),
    "alpha_target": int(AlphaTarget.FULL),
}
"""How every seed is blended in: as by the fixed schedule."""


@register("periodic")
class PeriodicGrowth(RulePolicy):
    """Grows a seed every twelfth of the episode, whatever becomes of it: the cheapest blueprint first.

    The n-th seed, from n = 1 on, germinates at epoch n · ⌊max_epochs / 12⌋, or in the first one after it that admits
    it, in the first free slot. Its blueprint is the one that adds the fewest parameters to this host in this slot, of
    those that the mask admits and that no seed of the host has yet; once all are in use, of those admitted. Seeds
    advance at each gate and are fossilised. Where several could act, fossilising comes before advancing, advancing
    before germinating, and within these the first slot. It ends with the slots, or when fewer than ``SEED_EPOCHS``
    epochs are left.

    Args:
        graph: Where everything is in the hosts' graphs.
    """

    def __init__(self, graph: GraphLayout) -> None:
        super().__init__(graph.structure.slots)
        self._graph = graph
        self._beside = [graph.structure.beside(slot) for slot in range(graph.structure.slots.num_slots)]

    @classmethod
    def build(cls, settings: PolicySettings) -> Self:
        """For the hosts whose graphs the settings describe.

        Raises:
            ValueError: they describe none.
        """
        if settings.graph is None:
            raise ValueError(f"{cls.__name__} reads hosts as graphs: give their layout as PolicySettings.graph")
        return cls(settings.graph)

    @property
    def reads_graphs(self) -> bool:
        """It does."""
        return True

    @property
    def feature_dim(self) -> int:
        """Length of ``graph``."""
        return self._graph.size

    def choices(self, observations: Observations, memory: Memory) -> tuple[Tensor, ...]:
        """The next step of the host's seeds, or a new one that is due."""
        views = {key: view.numpy() for key, view in self._graph.views(torch.from_numpy(observations[GRAPH])).items()}
        masks = split_mask(observations["action_mask"], self._heads)
        admitted = masks["slot"] != 0
        place = self._place(admitted[:, LifecycleOp.GERMINATE], views)
        chosen = np.arange(self._slots.num_slots) == place[:, None]
        op, slot = self.decide(
            {
                LifecycleOp.GERMINATE: admitted[:, LifecycleOp.GERMINATE] & chosen & self._due(views)[:, None],
                LifecycleOp.ADVANCE: admitted[:, LifecycleOp.ADVANCE],
                LifecycleOp.FOSSILIZE: admitted[:, LifecycleOp.FOSSILIZE],
            }
        )
        blueprint = self._cheapest(masks["blueprint"] != 0, place, views)
        return self.certain(self.assemble(op, {**ARGUMENTS, "slot": slot, "blueprint": blueprint}))

    def _place(self, free: BoolArray, views: Views) -> IntArray:
        """The slot of the next seed ``[N]``, of the free ones ``[N, S]``; any where none is free."""
        return free.argmax(axis=1)

    def _due(self, views: Views) -> BoolArray:
        """``[N]`` whether it is time for a further seed, and enough is left for it."""
        max_epochs = views[MAX_EPOCHS][:, 0]
        epoch = np.rint(self._layout.base(views[OBSERVATION], "epoch") * max_epochs)
        seeds = np.isin(self._layout.stages(views[OBSERVATION]), LIVING_STAGES).sum(axis=1)
        return (epoch >= (seeds + 1) * (max_epochs // INTERVALS)) & (max_epochs - epoch >= SEED_EPOCHS)

    def _cheapest(self, admitted: BoolArray, place: IntArray, views: Views) -> Actions:
        """The blueprint ``[N]`` of a seed in these slots."""
        widths = views["layers.output_channels"][:, [before for before, _ in self._beside]].astype(np.int64)
        hosts = np.arange(len(place))
        topology = self._graph.structure.topology
        costs = np.stack([_parameters(topology, self._slots, tuple(row)) for row in widths.tolist()])[hosts, :, place]
        grown = (views[BLUEPRINTS][:, :, None] == np.arange(costs.shape[1])).any(axis=1)
        order = np.where(admitted, costs + grown * (costs.max() + 1), np.iinfo(np.int64).max)
        return order.argmin(axis=1)


@register("gradient")
class GradientGrowth(PeriodicGrowth):
    """Grows as often as :class:`PeriodicGrowth`, and the same blueprints, but where the host's gradient is largest.

    The idea is that of GradMax (Evci et al., "GradMax: Growing Neural Networks using Gradient Information", ICLR 2022):
    what is added pays most where it gets the largest gradient. Of the free slots it takes the one whose neighbours in
    the host, the last layer before it and the first behind it, have the largest gradient: the square root of the sum
    of their squared gradient norms (before clipping, mean square over the epoch's mini-batches). A gradient that is not
    finite counts as 0; among equals it takes the first slot.

    What is the same: for a new connection that reads a slot's activation h and adds to what comes behind it, GradMax's
    gradient at birth is M = E[∂L/∂z · hᵀ], with z what the layer behind computes; where that layer is linear, M is the
    gradient of its weights, one of the two that are measured here. What is not: GradMax chooses the *weights* of new
    neurons in a layer that is given, as the leading singular vectors of M, to make their gradient as large as can be;
    seeds here start as an identity with random inner weights, and the measured norm, over all singular values and of
    both neighbours, only chooses the *place*.
    """

    def _place(self, free: BoolArray, views: Views) -> IntArray:
        """Where the neighbours' gradient is largest."""
        squares = np.nan_to_num(views["layers.gradient_norm"].astype(float)) ** 2
        size = squares[:, self._beside].sum(axis=2)
        return np.where(free, size, -1.0).argmax(axis=1)


@lru_cache(1024)
def _parameters(topology: str, slots: SlotConfig, widths: tuple[int, ...]) -> IntArray:
    """Parameters of every blueprint as it germinates in slots of these widths, ``[num_blueprints, S]``."""
    modules = blueprints_for(topology, slots.blueprints)
    return cost_tables(modules, slots.blueprints, np.array([widths]), parameters_of)[0][0]
