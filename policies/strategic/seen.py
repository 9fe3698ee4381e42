"""What a policy was shown in training, so that in play it reads nothing and draws nothing else.

An input, an op or a blueprint that training never had acts through weights that nobody has trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from envs.action_masks import mask_size, split_mask
from envs.vocabulary import Blueprint, HeadSpec, LifecycleOp
from policies.strategic.features import CODES
from policies.strategic.graph import EdgeArrays, GraphArrays, GraphBatch, NodeArrays, Nodes
from policies.strategic.registries import UNKNOWN
from policies.strategic.schema import CONTEXT, FORWARD_RELATIONS, NODE_TYPES, Columns


def _blocks(kind: str, columns: Columns) -> tuple[str, ...]:
    """KIND.NAME of what is known together, by the first of each."""
    firsts = [columns.block_of.index(block) for block in range(len(columns.blocks))]
    return tuple(f"{kind}.{columns.names[first]}" for first in firsts)


_COLUMNS = (
    {name: kind.columns for name, kind in NODE_TYPES.items()}
    | {relation.name: relation.attributes for relation in FORWARD_RELATIONS}
    | {"context": CONTEXT}
)
_BLOCKS = {kind: _blocks(kind, columns) for kind, columns in _COLUMNS.items()}
_EDGES = tuple(f"{relation.name}.edges" for relation in FORWARD_RELATIONS)
INPUTS = (*(name for names in _BLOCKS.values() for name in names), *CODES, *_EDGES)
"""All that the network may be told, as KIND.NAME; numbers that are known together have the name of their first, and
RELATION.edges is that there are any."""
OPS = tuple(op.name for op in LifecycleOp)
BLUEPRINTS = tuple(blueprint.name for blueprint in Blueprint)


@dataclass(frozen=True)
class Seen:
    """What there was in training.

    Attributes:
        inputs: Those of ``INPUTS`` that were known somewhere.
        ops: Those of ``OPS`` that a mask admitted.
        blueprints: Likewise.

    Raises:
        ValueError: a name that there is not.
    """

    inputs: frozenset[str] = frozenset()
    ops: frozenset[str] = frozenset()
    blueprints: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for what, known in _ALL.items():
            if unknown := getattr(self, what) - set(known):
                raise ValueError(f"there is nothing called {min(unknown)!r} among the {what}")

    @classmethod
    def of(cls, graphs: GraphBatch, heads: Sequence[HeadSpec]) -> Self:
        """In a batch, with the action's heads that its masks are of."""
        edges, relation = graphs.attributes, graphs.edges.relation
        numbers = {name: nodes.numbers for name, nodes in graphs.nodes.items()}
        numbers |= {
            of.name: edges[relation == at][:, : of.attributes.encoded] for at, of in enumerate(FORWARD_RELATIONS)
        }
        numbers["context"] = graphs.context
        known = [(numbers[kind][:, columns.width :] > 0).any(dim=0) for kind, columns in _COLUMNS.items()]
        known.append(torch.stack([(_codes(graphs.nodes, code) != UNKNOWN).any() for code in CODES]))
        known.append(torch.stack([(relation == at).any() for at in range(len(_EDGES))]))
        masks = split_mask(graphs.action_mask != 0, heads)
        return cls(
            frozenset(_chosen(INPUTS, torch.cat(known))),
            frozenset(_chosen(OPS, masks["op"].any(dim=0))),
            frozenset(_chosen(BLUEPRINTS, masks["blueprint"].any(dim=0))),
        )

    def __or__(self, other: Seen) -> Seen:
        """What there was in either."""
        return Seen(self.inputs | other.inputs, self.ops | other.ops, self.blueprints | other.blueprints)

    @property
    def never(self) -> dict[str, tuple[str, ...]]:
        """What there was not, by attribute, in order."""
        return {what: tuple(n for n in known if n not in getattr(self, what)) for what, known in _ALL.items()}

    @classmethod
    def all_but(cls, never: Mapping[str, Iterable[str]]) -> Self:
        """Everything but what :attr:`never` says.

        Raises:
            ValueError: a name that there is not.
        """
        missing = cls(**{what: frozenset(names) for what, names in never.items()})
        return cls(**{what: frozenset(known) - getattr(missing, what) for what, known in _ALL.items()})

    def restrict(self, arrays: GraphArrays, heads: Sequence[HeadSpec]) -> GraphArrays:
        """Graphs to play, as training could have shown them: the rest is unknown, and not admitted. WAIT always is."""
        nodes = {
            name: NodeArrays(of.present, self._hidden(name, of.values), self._hidden_codes(name, of.codes))
            for name, of in arrays.nodes.items()
        }
        edges = {
            name: EdgeArrays(self._hidden_ends(name, of.ends), self._hidden(name, of.values))
            for name, of in arrays.edges.items()
        }
        context = self._hidden("context", arrays.context)
        return replace(
            arrays, nodes=nodes, edges=edges, context=context, action_mask=self._admitted(arrays.action_mask, heads)
        )

    def _hidden(self, kind: str, values: Tensor) -> Tensor:
        seen = [name in self.inputs for name in _BLOCKS[kind]]
        if all(seen):
            return values
        shown = torch.tensor([seen[block] for block in _COLUMNS[kind].block_of], device=values.device)
        return values.where(shown, torch.nan)

    def _hidden_ends(self, relation: str, ends: Tensor) -> Tensor:
        return ends if f"{relation}.edges" in self.inputs else torch.full_like(ends, -1)

    def _hidden_codes(self, kind: str, codes: Tensor) -> Tensor:
        names = [f"{kind}.{code.name}" for code in NODE_TYPES[kind].codes]
        seen = [name in self.inputs or name not in CODES for name in names]
        return codes if all(seen) else codes.where(torch.tensor(seen, device=codes.device), UNKNOWN)

    def _admitted(self, mask: Tensor, heads: Sequence[HeadSpec]) -> Tensor:
        """The flat mask without what was never admitted; what no op that is left needs is all zero."""
        seen, plants, needs = (of.to(mask.device) for of in _gates(self, tuple(heads)))
        mask = mask * seen
        views = split_mask(mask, heads)
        ops = views["op"] * (views["blueprint"].any(dim=-1, keepdim=True) | ~plants)
        return mask * (ops.float() @ needs > 0)


@lru_cache
def _gates(seen: Seen, heads: tuple[HeadSpec, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Which entries of the flat mask were seen; which ops need a blueprint; which entries each op needs, itself one."""
    shown = torch.ones(mask_size(heads), dtype=torch.bool)
    needs = torch.zeros(heads[0].size, mask_size(heads))
    views, needed = split_mask(shown, heads), split_mask(needs, heads)
    for op in list(LifecycleOp)[: heads[0].size]:
        views["op"][op] = op is LifecycleOp.WAIT or op.name in seen.ops
        needed["op"][op, op] = 1.0
        for head in heads[1:]:
            if head.masked_by_op:
                needed[head.name][op, op] = 1.0
            elif op in head.needed_by:
                needed[head.name][op] = 1.0
    for at in range(len(views["blueprint"])):
        views["blueprint"][at] = BLUEPRINTS[at] in seen.blueprints
    return shown, needed["blueprint"].any(dim=-1), needs


_ALL: Mapping[str, tuple[str, ...]] = {"inputs": INPUTS, "ops": OPS, "blueprints": BLUEPRINTS}


def _codes(nodes: Mapping[str, Nodes], code: str) -> Tensor:
    """A column of codes ``[n]``."""
    kind, name = code.split(".")
    return nodes[kind].codes[:, [of.name for of in NODE_TYPES[kind].codes].index(name)]


def _chosen(names: Sequence[str], flags: Tensor) -> list[str]:
    return [name for name, flag in zip(names, flags.tolist(), strict=False) if flag]
