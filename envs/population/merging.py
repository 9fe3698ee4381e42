"""Seeds of several blueprints in one slot, computed layer by layer, where equal layers run as one.

A call on tiny tensors costs far more than its arithmetic. The chains of a slot's blueprints are therefore aligned at
their ends: what CONV_LIGHT, CONV_HEAVY, CONV_SMALL and DEPTHWISE do after their last convolution, say, is one
normalisation and one convolution over all their members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.batched.activations import stack
from envs.batched.parameters import ParameterSpecs
from envs.blueprints.base import Chain, LadderModule, Layer, Operation, SeedModule


@dataclass(frozen=True)
class Whole:
    """The operation of a blueprint that is no chain: all of its delta."""

    module: SeedModule
    names: tuple[str, ...]

    def __call__(self, x: Sequence[Tensor], parameters: Sequence[Tensor], present: Tensor | None) -> Tensor:
        """See :class:`envs.blueprints.base.Operation`."""
        return self.module.delta(dict(zip(self.names, parameters, strict=True)), stack(x), present)


def layers_of(module: SeedModule, specs: ParameterSpecs) -> tuple[Layer, ...]:
    """A blueprint's layers; ``specs`` are its parameters."""
    if isinstance(module, Chain):
        return module.layers
    top = module.levels if isinstance(module, LadderModule) else 0
    names = tuple(name for name, spec in specs.items() if spec.level <= top)
    return (Layer(Whole(module, names), names),)


@dataclass(frozen=True)
class Piece:
    """Some members of an output: ``start`` to ``stop`` on the member axis of output ``of``."""

    of: int
    start: int
    stop: int


@dataclass(frozen=True)
class MergedParameter:
    """One parameter of a stage, stacked over its runs.

    Attributes:
        parts: Run and name of each, in order.
    """

    parts: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Stage:
    """One call for all members whose chains share a layer.

    Attributes:
        operation: What is computed.
        sources: Where their values are.
        parameters: Its slice of the plan's parameters.
        present: int64 ``[members]``, how many channels exist, or None if all do.
    """

    operation: Operation
    sources: tuple[Piece, ...]
    parameters: slice
    present: Tensor | None


class MergePlan:
    """In which calls the chains of one slot are computed.

    Args:
        chains: Layers of each run (one blueprint over the members that have it).
        specs: Parameters of each run.
        counts: Members of each run.
        present: Of each run, see :class:`envs.blueprints.base.SeedModule`; None for all of them where all exist.
    """

    def __init__(
        self,
        chains: Sequence[Sequence[Layer]],
        specs: Sequence[ParameterSpecs],
        counts: Sequence[int],
        present: Sequence[Tensor | None],
    ) -> None:
        self.counts, self._present = counts, present
        self.parameters: list[MergedParameter] = []
        self.stages: list[Stage] = []
        places: list[Piece] = []
        for count in counts:
            start = places[-1].stop if places else 0
            places.append(Piece(0, start, start + count))
        for left in range(max(len(chain) for chain in chains), 0, -1):
            for layers in _equal_layers(chains, specs, left):
                self._add_stage(layers, places)
        self.delta = _joined(places)
        # Every output is read once, piece by piece.
        read = [piece for sources in (*(stage.sources for stage in self.stages), self.delta) for piece in sources]
        self._pieces = [
            sorted((piece for piece in read if piece.of == output), key=lambda piece: piece.start)
            for output in range(len(self.stages) + 1)
        ]
        self._sizes = [[piece.stop - piece.start for piece in pieces] for pieces in self._pieces]

    def _add_stage(self, layers: Mapping[int, Layer], places: list[Piece]) -> None:
        runs, first = tuple(layers), len(self.parameters)
        for names in zip(*(layer.names for layer in layers.values()), strict=True):
            self.parameters.append(MergedParameter(tuple(zip(runs, names, strict=True))))
        operation = next(iter(layers.values())).operation
        sources = _joined([places[run] for run in runs])
        widths = [width for run in runs if (width := self._present[run]) is not None]
        present = stack(widths) if widths else None
        self.stages.append(Stage(operation, sources, slice(first, len(self.parameters)), present))
        start = 0
        for run in runs:
            places[run] = Piece(len(self.stages), start, start + self.counts[run])
            start += self.counts[run]

    def compute(self, u: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The deltas of all runs, in pieces, one run's members after the other's.

        Args:
            u: Inputs, in the same order.
            parameters: One per entry of ``self.parameters``, ``[members of its parts, *shape]``.
        """
        values: dict[Piece, Tensor] = {}

        def cut(output: int, value: Tensor) -> None:
            pieces, sizes = self._pieces[output], self._sizes[output]
            values.update(zip(pieces, torch.split(value, sizes) if len(sizes) > 1 else [value], strict=True))

        cut(0, u)
        for number, stage in enumerate(self.stages, start=1):
            x = [values.pop(piece) for piece in stage.sources]
            cut(number, stage.operation(x, parameters[stage.parameters], stage.present))
        return [values.pop(piece) for piece in self.delta]


def _equal_layers(
    chains: Sequence[Sequence[Layer]], specs: Sequence[ParameterSpecs], left: int
) -> list[dict[int, Layer]]:
    """The layers with ``left`` to go, itself included, those that can run together in one dict: run → layer."""
    groups: dict[object, dict[int, Layer]] = {}
    for run, chain in enumerate(chains):
        if len(chain) >= left:
            layer = chain[-left]
            shapes = tuple(specs[run][name].shape for name in layer.names)
            groups.setdefault((layer.operation, shapes), {})[run] = layer
    return list(groups.values())


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Neighbours of one output as one piece."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].of == piece.of and joined[-1].stop == piece.start:
            joined[-1] = Piece(piece.of, joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return tuple(joined)
