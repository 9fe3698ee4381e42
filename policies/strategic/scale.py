"""Running scale of a graph's numbers: the network reads differences and not offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.vocabulary import HeadSpec
from policies.observation_scale import ObservationScale
from policies.running_moments import RunningMoments
from policies.strategic.encoding import KEPT
from policies.strategic.graph import GraphBatch
from policies.strategic.schema import CONTEXT, NODE_TYPES, Columns
from policies.strategic.seen import BLUEPRINTS, INPUTS, OPS, Seen

_SCALED: dict[str, Columns] = {name: kind.columns for name, kind in NODE_TYPES.items()} | {"context": CONTEXT}
_ENDS = tuple(accumulate(columns.width for columns in _SCALED.values()))
_PLACES = {name: slice(end - _SCALED[name].width, end) for name, end in zip(_SCALED, _ENDS, strict=True)}
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
        scales = torch.stack([mean, self.deviation(ObservationScale.MINIMUM), varied, count == 0])
        parts = {name: of.numbers for name, of in graphs.nodes.items()} | {"context": graphs.context}
        number, mask = _places(tuple(map(len, parts.values())), count.device)
        values = torch.cat([part.flatten() for part in parts.values()])
        mean, deviation, varied, never = F.pad(scales, (0, 1), value=1.0)[:, number].unbind()
        limit = ObservationScale.LIMIT
        relative = ((values - mean) / deviation).clamp(-limit, limit) * varied
        scaled = torch.where(values[mask] > never, relative, values).split([part.numel() for part in parts.values()])
        *numbers, context = (of.view_as(part) for of, part in zip(scaled, parts.values(), strict=True))
        nodes = {
            name: replace(of, numbers=mine) for (name, of), mine in zip(graphs.nodes.items(), numbers, strict=True)
        }
        return replace(graphs, nodes=nodes, context=context)

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


@lru_cache(KEPT)
@torch.inference_mode(False)
def _places(rows: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of so many rows of each of ``_SCALED``, one after the other, where each number's scale and mask are.

    A mask has the one behind the last scale, and is its own mask.
    """
    scales, masks, start = [], [], 0
    for count, (name, columns) in zip(rows, _SCALED.items(), strict=True):
        own = torch.arange(columns.width, columns.encoded)
        of_row = torch.cat([torch.tensor(columns.block_of) + columns.width, own])
        first = start + columns.encoded * torch.arange(count).unsqueeze(1)
        place = torch.arange(_PLACES[name].start, _PLACES[name].stop)
        scales.append(torch.cat([place, torch.full_like(own, -1)]).repeat(count))
        masks.append((first + of_row).flatten())
        start += count * columns.encoded
    return torch.cat(scales).to(device), torch.cat(masks).to(device)


def _known_sums(numbers: Tensor, columns: Columns) -> Tensor:
    """Count, sum and sum of squares of what is known in encoded numbers ``[n, encoded]``: float64 ``[3, width]``."""
    values, masks = numbers.double().split([columns.width, len(columns.blocks)], dim=-1)
    known = masks[:, columns.block_of]
    return torch.stack([known.sum(dim=0), (values * known).sum(dim=0), (values.square() * known).sum(dim=0)])
