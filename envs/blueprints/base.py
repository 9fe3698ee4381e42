"""What a blueprint must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from envs.batched.parameters import ParameterSpecs, matrix_flops


class SeedModule(Protocol):
    """A kind of seed, stateless: parameters come in stacked over members.

    Its last linear or convolution starts at zero with nothing after it, so that the delta is exactly 0 at birth
    and still has a gradient.
    """

    def parameters(self, width: int) -> ParameterSpecs:
        """Parameters of one member whose slot has ``width`` channels.

        Every size must not shrink as the width grows, so that a narrow member's values fit in a wide layout.
        """
        ...

    def flops(self, width: int, places: int, level: int | None = None) -> int:
        """FLOPs of one member's delta for one sample: two per weight of a convolution or matrix and application.

        Args:
            width: Channels of the slot.
            places: Pixels of a map or tokens of a sequence there; 1 for a vector.
            level: Internal level of the seed; None for the highest.
        """
        ...

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """The change that the seed proposes.

        Args:
            parameters: Name → ``[M, *shape]``.
            u: Seed input in the topology's layout (``envs.batched.activations``).
            present: int64 ``[M]``, how many channels exist; the others, behind them, pad. None where all exist.

        Returns:
            Same shape as ``u``; 0 in channels that only pad.
        """
        ...


class LadderModule(ABC, SeedModule):
    """A kind of seed whose internal levels build on each other.

    Each parameter's ``level`` says from which internal level on it takes part; every level has the same number of
    parameters. A level that is off is held at an output of 0 from outside, so :meth:`SeedModule.delta` need not
    know the members' levels.

    Attributes:
        levels: Highest level that is computed.
    """

    levels: int

    @abstractmethod
    def shortened(self, levels: int) -> SeedModule:
        """The same kind computed up to this level only, for members that are no higher."""


Operation = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | None], Tensor]
"""Input (some members' and others'), stacked parameters ``[M, *shape]``, number of channels present → output; equal
ones do the same."""


@dataclass(frozen=True)
class Layer:
    """One step of a chain.

    Attributes:
        operation: What it computes.
        names: Parameters that it takes.
    """

    operation: Operation
    names: tuple[str, ...] = ()


class Chain(ABC):
    """A seed that is a chain of layers.

    Where seeds of several blueprints live in one slot, a layer that they share runs once for all of them
    (``envs.population.merging``).
    """

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """From the seed's input to its delta."""

    @abstractmethod
    def parameters(self, width: int) -> ParameterSpecs:
        """See :class:`SeedModule`."""

    def flops(self, width: int, places: int, level: int | None = None) -> int:
        """See :class:`SeedModule`."""
        return matrix_flops(self.parameters(width), places, level)

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """See :class:`SeedModule`."""
        for layer in self.layers:
            u = layer.operation([u], [parameters[name] for name in layer.names], present)
        return u
