"""A host as layers: what it is made of, and which layer reads which."""

from __future__ import annotations

from dataclasses import dataclass

from envs.batched.parameters import ParameterSpecs

EMBEDDING = "embedding"
"""Layer type of a table of rows that are looked up."""


@dataclass(frozen=True)
class HostLayer:
    """A module of a host that has parameters. Pooling has none: it belongs to the layer before it.

    Attributes:
        name: No two of a host are called the same.
        layer_type: Class of the module in lower case, as PyTorch calls it.
        parameters: Names in the host's specs; the first one is the matrix, kernel or table, if there is one.
        segment: The segment that it belongs to; behind the last slot, the number of segments.
        reads: Names of the layers whose outputs it reads, added up where there are several.
        activation: The function that its output passes before anybody reads it, in lower case; None where there is
            none.
    """

    name: str
    layer_type: str
    parameters: tuple[str, ...]
    segment: int
    reads: tuple[str, ...]
    activation: str | None = None

    def channels(self, specs: ParameterSpecs) -> tuple[int, int]:
        """Features that come in and go out, in a member of these parameters."""
        outputs, *rest = specs[self.parameters[0]].shape
        inputs = rest[0] if rest else outputs
        return (outputs, inputs) if self.layer_type == EMBEDDING else (inputs, outputs)
