"""Running scale of a graph's numbers: the network reads differences and not offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from envs.vocabulary import HeadSpec
from policies.observation_scale import ObservationScale
from policies.running_moments import RunningMoments
from policies.strategic.graph import GraphBatch
from policies.strategic.schema import CONTEXT, NODE_TYPES, Columns
from policies.strategic.seen import BLUEPRINTS, INPUTS, OPS, Seen

_SCALED: dict[str, Columns] = {name: kind.columns for name, kind in NODE_TYPES.items()} | {"context": CONTEXT}
_ENDS = tuple(accumulate(columns.width for columns in _SCALED.values()))
_PLACES = {name: slice(end - _SCALED[name].width, end) for name, end in zip(_SCALED, _ENDS, strict=True)}
_BLOCKS = {name: torch.tensor(columns.block_of) for name, columns in _SCALED.items()}
_NAMED = {"inputs": INPUTS, "ops": OPS, "blueprints": BLUEPRINTS}
_SIZES = tuple(len(names) for names in _NAMED.values())


ROUNDING = 1e-4
"""Deviations up to this share of the mean, or of 1, are those of sums."""


class GraphScale(RunningMoments):
    """Shifts and scales what is known of nodes and of whole graphs by its mean and deviation in the rollouts so far.

    All nodes of a type share a scale, in all graphs of all worlds. What is not known reads what it is filled with,
    and never counts. What has been the same all along reads 0, whatever it becomes: nobody has trained its weights.
    Attributes of edges have their graph's own scale (:meth:`GraphBatch.from_arrays`).

    Behind the moments of these numbers stand counts of what was ever shown: see :attr:`seen`.
    """

    def __init__(self) -> None:
        super().__init__(_ENDS[-1] + sum(_SIZES))

    def forward(self, graphs: GraphBatch) -> GraphBatch:
        """The same graphs, scaled; unchanged before anything was seen."""
        count, mean, squared = self.moments.unbind()
        varied = squared > count * (ROUNDING * mean.abs().clamp(min=1.0)).square()
        deviation, limit, counted = self.deviation(ObservationScale.MINIMUM), ObservationScale.LIMIT, count > 0

        def scaled(name: str, numbers: Tensor) -> Tensor:
            columns, place = _SCALED[name], _PLACES[name]
            values, masks = numbers.split([columns.width, len(columns.blocks)], dim=-1)
            relative = ((values - mean[place]) / deviation[place]).clamp(-limit, limit) * varied[place]
            known = masks.index_select(-1, _BLOCKS[name].to(masks.device)).bool() & counted[place]
            return torch.cat([torch.where(known, relative, values), masks], dim=-1)

        nodes = {name: replace(of, numbers=scaled(name, of.numbers)) for name, of in graphs.nodes.items()}
        return replace(graphs, nodes=nodes, context=scaled("context", graphs.context))

    def sums(self, graphs: GraphBatch, heads: Sequence[HeadSpec]) -> Tensor:
        """What :meth:`collect` and :meth:`update` take of some graphs.

        Args:
            graphs: B of them, not scaled.
            heads: The action's, which the graphs' masks are of.

        Returns:
            float64 ``[3, k]``: count, sum and sum of squares of what is known of every number of ``moments``; of what
            was shown the count is 1.
        """
        numbers = {name: of.numbers for name, of in graphs.nodes.items()} | {"context": graphs.context}
        sums = [_known_sums(numbers[name], columns) for name, columns in _SCALED.items()]
        seen = Seen.of(graphs, heads)
        shown = [name in getattr(seen, what) for what, names in _NAMED.items() for name in names]
        counts = sums[0].new_tensor([shown, [0] * len(shown), [0] * len(shown)])
        return torch.cat([*sums, counts], dim=1)

    @property
    def seen(self) -> Seen:
        """What training has shown."""
        shown = (self.moments[0, _ENDS[-1] :] > 0).split(list(_SIZES))
        return Seen(
            **{
                what: frozenset(name for name, flag in zip(names, flags.tolist(), strict=True) if flag)
                for (what, names), flags in zip(_NAMED.items(), shown, strict=True)
            }
        )


def _known_sums(numbers: Tensor, columns: Columns) -> Tensor:
    """Count, sum and sum of squares of what is known in encoded numbers ``[n, encoded]``: float64 ``[3, width]``."""
    values, masks = numbers.double().split([columns.width, len(columns.blocks)], dim=-1)
    known = masks[:, columns.block_of]
    return torch.stack([known.sum(dim=0), (values * known).sum(dim=0), (values.square() * known).sum(dim=0)])
