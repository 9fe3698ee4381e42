"""What a graph of a training run is made of: node types, relations, and the numbers of each, declared once.

A number that nobody measured is NaN until it is encoded. From there on it is its fill-in, and the mask channel of its
block is 0, so that a network can tell "not measured" from "zero".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from envs.observation import base_fields, slot_fields
from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS, SeedStage

FULL_WIDTH = 256
"""Width that the encoded widths below are quoted at; a network of another width scales them."""
NUM_KERNELS = 32
"""Kernels that a policy can name: kernel k is Blueprint k, the rest is room for more."""
RISK_CLASSES = ("SAFE", "LOW", "MODERATE", "HIGH", "CRITICAL")


@dataclass(frozen=True)
class Block:
    """Numbers that are known together or not at all: one mask channel stands for all of them.

    Attributes:
        names: One per number.
        fill: What a number reads where it was not measured.
    """

    names: tuple[str, ...]
    fill: float = 0.0


def each(*names: str, fill: float = 0.0) -> tuple[Block, ...]:
    """A block per name: numbers that are measured one by one."""
    return tuple(Block((name,), fill) for name in names)


@dataclass(frozen=True)
class Columns:
    """The numbers of one kind of node, edge or context, in order.

    Attributes:
        blocks: What is known together.
    """

    blocks: tuple[Block, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all numbers."""
        return tuple(name for block in self.blocks for name in block.names)

    @property
    def width(self) -> int:
        """How many numbers there are."""
        return len(self.names)

    @property
    def encoded(self) -> int:
        """Width with the mask channels."""
        return self.width + len(self.blocks)

    @cached_property
    def block_of(self) -> tuple[int, ...]:
        """Index of each number's block."""
        return tuple(index for index, block in enumerate(self.blocks) for _ in block.names)

    @cached_property
    def fills(self) -> tuple[float, ...]:
        """Each number's fill-in."""
        return tuple(block.fill for block in self.blocks for _ in block.names)

    def place(self, name: str) -> slice:
        """Where a block stands among the numbers, by the name of its first."""
        start = self.names.index(name)
        return slice(start, start + len(self.blocks[self.block_of[start]].names))


@dataclass(frozen=True)
class Code:
    """A name that a registry numbered from 1; 0 is unknown.

    Attributes:
        name: Of the column.
        capacity: Largest number.
    """

    name: str
    capacity: int


@dataclass(frozen=True)
class Embedding:
    """A learned vector that is the sum of one vector per code.

    Attributes:
        width: Of the vector.
        codes: What it says.
    """

    width: int
    codes: tuple[Code, ...]


@dataclass(frozen=True)
class NodeType:
    """A kind of node.

    Attributes:
        name: Key of everything about it.
        raw: Width of what the encoder reads: numbers, embeddings, masks, and zeros up to here, which are room for
            more inputs without another shape of weights.
        encoded: Width of what the encoder yields at :data:`FULL_WIDTH`.
        columns: Its numbers.
        embeddings: Of its codes.
        context: Columns of the graph's context where each node reads it, too.
        fallback: A code whose learned row stands in for the numbers and embeddings that are unknown; it is read for
            nothing else.

    Raises:
        ValueError: the inputs do not fit into the raw width.
    """

    name: str
    raw: int
    encoded: int
    columns: Columns
    embeddings: tuple[Embedding, ...]
    context: Columns | None = None
    fallback: Code | None = None

    def __post_init__(self) -> None:
        context = 0 if self.context is None else self.context.encoded
        needed = self.columns.encoded + self.embedded + context
        if needed > self.raw:
            raise ValueError(f"{self.name} nodes have {needed} inputs, more than their raw width of {self.raw}")

    @property
    def embedded(self) -> int:
        """Width of all embeddings."""
        return sum(embedding.width for embedding in self.embeddings)

    @cached_property
    def codes(self) -> tuple[Code, ...]:
        """All codes, in the order of their columns; the fall-back's comes last."""
        codes = tuple(code for embedding in self.embeddings for code in embedding.codes)
        return codes if self.fallback is None else (*codes, self.fallback)


@dataclass(frozen=True)
class Relation:
    """A kind of edge.

    Attributes:
        source: Node type that it leaves.
        name: Verb.
        target: Node type that it enters.
        attributes: Its numbers.
        reverse: Whether it is the way back of a relation, with the same attributes.
    """

    source: str
    name: str
    target: str
    attributes: Columns = field(repr=False)
    reverse: bool = False

    @property
    def triple(self) -> tuple[str, str, str]:
        """Source, name and target, as PyG names a relation."""
        return self.source, self.name, self.target


_EVERYTHING = SlotConfig(("slot",), internal_levels=True)
"""A world with every op and input, whose names the graph takes over: where some do not exist, they stay 0."""
_STAGES = tuple(f"stage_{stage.name}" for stage in SeedStage)
SLOT_NUMBERS = tuple(field.name for field in slot_fields(_EVERYTHING) if field.name not in (*_STAGES, "internal_level"))
"""The slot's numbers of Obs V3 that a seed node takes as they are. The ten stage flags are the code ``stage``."""

CONTEXT = Columns(
    (
        Block(tuple(field.name for field in base_fields(_EVERYTHING))),
        *each("max_epochs"),
        *each("gpu_util_percent", "gpu_mem_free_gb", "cpu_util_percent", "process_memory_share"),
    )
)
"""What a graph knows as a whole: the host-wide numbers of Obs V3, of which time is a share of the run's length; that
length, which says what can still be finished; and hardware."""

_LAYER_TYPE, _ACTIVATION_TYPE = Code("layer_type", 64), Code("activation_type", 32)

_NODE_TYPES = (
    NodeType(
        "layer",
        raw=128,
        encoded=256,
        columns=Columns(
            each("in_channels", "out_channels", "dropout", "weight_norm", "gradient_norm", "update_frequency")
            + each("in_degree", "out_degree", "depth")
            + each("step_loss", "step_gradient_norm", "step_samples_per_s", "step_hook_latency_ms")
        ),
        embeddings=(Embedding(32, (_LAYER_TYPE,)), Embedding(16, (_ACTIVATION_TYPE,))),
        context=CONTEXT,
    ),
    NodeType(
        "seed",
        raw=64,
        encoded=256,
        columns=Columns(
            (
                Block(SLOT_NUMBERS),
                *each("activity_level", "success_rate", "risk", fill=0.5),
                *each("scope", "risk_tolerance", "quarantine_only", "internal_level"),
                Block(tuple(f"allows_{method}" for method in BLENDING_METHODS)),
            )
        ),
        embeddings=(
            # What grows here, said three ways. An individual seed's id is never among them.
            Embedding(16, (Code("blueprint", 64), Code("seed_kind", 64), Code("specialisation", 32))),
            Embedding(8, (Code("stage", len(SeedStage) - 1),)),
        ),
    ),
    NodeType(
        "activation",
        raw=32,
        encoded=128,
        columns=Columns(each("saturation_rate", "gradient_flow", "computational_cost")),
        embeddings=(Embedding(16, (_ACTIVATION_TYPE,)),),
        fallback=_LAYER_TYPE,
    ),
    NodeType(
        "parameter",
        raw=16,
        encoded=256,
        columns=Columns(each("count", "learning_rate", "momentum", "gradient_variance")),
        embeddings=(Embedding(8, (Code("optimizer_family", 16),)),),
    ),
)
NODE_TYPES: Mapping[str, NodeType] = MappingProxyType({node_type.name: node_type for node_type in _NODE_TYPES})
"""Node types by name, in the order in which they are numbered."""

FORWARD_RELATIONS = (
    Relation("layer", "connects", "layer", Columns(each("connection_strength", "data_flow_volume", "latency_ms"))),
    Relation("seed", "monitors", "layer", Columns(each("monitoring_frequency", "adaptation_trigger_threshold"))),
    Relation("layer", "feeds", "activation", Columns(each("activation_frequency", "saturation_events"))),
    Relation("activation", "influences", "layer", Columns(each("gradient_contribution", "nonlinearity_strength"))),
    Relation("parameter", "tunes", "layer", Columns(each("update_magnitude", "convergence_rate"))),
    # With which blending methods; the optimiser of the combination is the parameter node's own.
    Relation("seed", "allowed", "parameter", Columns((Block(tuple(f"with_{m}" for m in BLENDING_METHODS)),))),
)
"""The relations that a graph states, numbered in this order."""

RELATIONS = FORWARD_RELATIONS + tuple(
    Relation(relation.target, f"rev_{relation.name}", relation.source, relation.attributes, reverse=True)
    for relation in FORWARD_RELATIONS
)
"""And each of them in reverse: without these, nothing would ever reach a seed or a parameter."""

ATTRIBUTE_WIDTH = max(relation.attributes.encoded for relation in FORWARD_RELATIONS)
"""Width of the stacked attributes of all edges; a relation with fewer has zeros behind them."""
