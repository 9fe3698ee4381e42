"""What a blueprint must offer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from envs.population.parameters import ParameterSpecs


class SeedModule(Protocol):
    """A kind of seed, stateless: parameters come in stacked over members.

    Its last linear or convolution starts at zero with nothing after it, so that the delta is exactly 0 at birth
    and still has a gradient (design: WORLD.md section 4).
    """

    def parameters(self, width: int) -> ParameterSpecs:
        """Parameters of one member whose slot has ``width`` channels.

        Every size must not shrink as the width grows, so that a narrow member's values fit in a wide layout.
        """
        ...

    def delta(self, parameters: dict[str, Tensor], u: Tensor, present: Tensor | None) -> Tensor:
        """The change that the seed proposes.

        Args:
            parameters: Name → ``[M, *shape]``.
            u: Seed input in the topology's layout (``envs.population.activations``).
            present: ``[M, C]`` channels that exist (1) or pad (0); None where all exist.

        Returns:
            Same shape as ``u``; 0 in channels that only pad.
        """
        ...


@runtime_checkable
class LadderModule(SeedModule, Protocol):
    """A kind of seed whose internal levels build on each other.

    Each parameter's ``level`` says from which internal level on it takes part; every level has the same number of
    parameters. A level that is off is held at an output of 0 from outside, so :meth:`SeedModule.delta` need not
    know the members' levels.
    """

    def shortened(self, levels: int) -> SeedModule:
        """The same kind computed up to this level only, for members that are no higher."""
        ...
