"""Where tensors came from: who gave what somebody reads, whatever was done to it in between.

Data are followed by autograd: whatever is done between two modules, a sum, a view, a concatenation, leads from what one
reads back to what another gave. Where gradients end (``no_grad``, whole numbers, what is computed outside of torch or
under reentrant checkpointing) nobody can tell, and nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

_CONCATENATIONS = ("CatBackward", "StackBackward")
_OPAQUE = "CheckpointFunctionBackward"
"""What reentrant checkpointing leaves of all that it runs: one node that says nothing of what is in it."""


class Passage(NamedTuple):
    """A way from what reads back to what gave.

    Attributes:
        volume: Numbers per sample of what is read that come along it; the most where there are several ways.
        beside: Whether others come in beside it, side by side.
    """

    volume: float
    beside: bool


class Provenance:
    """Who gave which tensors in a forward. Who gives is a kind, such as layer, and a number."""

    def __init__(self) -> None:
        self._gave: dict[Node, tuple[str, int]] = {}
        self._aliases: dict[Node, Node] = {}

    def give(self, value: Any, kind: str, number: int) -> None:
        """A value was given; what was given before stays that of the first."""
        for node in origins(value):
            self._gave.setdefault(node, (kind, number))

    def replace(self, before: list[Node], value: Any) -> None:
        """A value that stands in place of another counts as that one."""
        after = origins(value)
        if len(before) == len(after):
            self._aliases |= {new: old for new, old in zip(after, before, strict=True) if new is not old}

    def known(self, kind: str) -> set[int]:
        """Numbers of those of a kind that gave anything that can be followed."""
        return {number for of, number in self._gave.values() if of == kind}

    def giver(self, node: Node) -> tuple[Node, tuple[str, int] | None]:
        """The node that one counts as, and who gave it, if it is known."""
        node = self._aliases.get(node, node)
        return node, self._gave.get(node)

    def ways(self, nodes: Mapping[Node, float], *kinds: str) -> tuple[dict[tuple[str, int], Passage], set[Node]]:
        """What of some kinds comes first behind nodes of which so many numbers per sample are read.

        Returns:
            It with the ways to it, and all nodes on them.
        """
        found: dict[tuple[str, int], Passage] = {}
        waiting, visited = [(node, Passage(volume, beside=False)) for node, volume in nodes.items()], set[Node]()
        while waiting:
            node, passage = waiting.pop()
            node, gave = self.giver(node)
            if gave is not None and gave[0] in kinds:
                other = found.get(gave, passage)
                found[gave] = Passage(max(other.volume, passage.volume), other.beside or passage.beside)
            elif node not in visited and not is_opaque(node):
                waiting += _before(node, passage)
            visited.add(node)
        return dict(sorted(found.items())), visited


class Sources:
    """Which of a kind come first behind the nodes of a forward that is over. Each node is looked at once.

    Args:
        provenance: Of the forward.
        kind: Such as layer.
    """

    def __init__(self, provenance: Provenance, kind: str) -> None:
        self._provenance, self._kind = provenance, kind
        self._found: dict[Node, frozenset[int]] = {}

    def behind(self, nodes: Iterable[Node]) -> tuple[int, ...]:
        """Their numbers, in order."""
        nodes = tuple(nodes)
        waiting = list(nodes)
        while waiting:
            if waiting[-1] in self._found:
                waiting.pop()
                continue
            node, gave = self._provenance.giver(waiting[-1])
            is_source = gave is not None and gave[0] == self._kind
            before = () if is_source or is_opaque(node) else [of for of, _ in node.next_functions if of is not None]
            first = [of for of in before if of not in self._found]
            if first:
                waiting += first
            else:
                own = (gave[1],) if gave is not None and is_source else ()
                self._found[waiting.pop()] = frozenset(own).union(*(self._found[of] for of in before))
        return tuple(sorted(frozenset().union(*(self._found[node] for node in nodes))))


def _before(node: Node, passage: Passage) -> Iterator[tuple[Node, Passage]]:
    """What a node was made of; of what lies side by side each has its part of the volume."""
    side_by_side = node.name().startswith(_CONCATENATIONS)
    for before, output in node.next_functions:
        if before is not None and side_by_side:
            share = _size(before, output) / max(_size(node, 0), 1)
            yield before, Passage(passage.volume * share, beside=True)
        elif before is not None:
            yield before, passage


def _size(node: Node, output: int) -> int:
    """Numbers in the tensor that a node stands for."""
    return math.prod(node._input_metadata[output].shape)


def is_opaque(node: Node) -> bool:
    """Whether nobody can tell what is behind."""
    return node.name() == _OPAQUE


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or gives."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(tensors(item) for item in value.values())
    elif isinstance(value, tuple | list):
        yield from chain.from_iterable(tensors(item) for item in value)
    elif is_dataclass(value):
        yield from chain.from_iterable(tensors(getattr(value, of.name, None)) for of in fields(value))


def origins(value: Any) -> list[Node]:
    """Where the tensors in it came from, those of which that is known."""
    return [tensor.grad_fn for tensor in tensors(value) if tensor.grad_fn is not None]
