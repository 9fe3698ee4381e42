"""The host of a packet as a graph: its nodes and edges as columns.

Ten thousand entries of a column are read in a few milliseconds; as many rows would take some hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from policies.strategic.packet_values import (
    BlendingMethod,
    Message,
    Name,
    Names,
    Natural,
    NotNegative,
    Number,
    Rows,
    Share,
    check_rows,
    once,
)

MOST_NODES = 128
"""Nodes of each kind in a packet, slots among them; of a larger model the source sends a sample."""
MOST_EDGES = 8 * MOST_NODES
"""Edges of each relation."""


class Columns(Message):
    """A table: its first column says how long all are."""

    @property
    def size(self) -> int:
        """Its rows."""
        return len(getattr(self, next(iter(type(self).model_fields))))

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        for name in type(self).model_fields:
            column = getattr(self, name)
            if column is not None and len(column) != self.size:
                raise ValueError(
                    f"{name} has {len(column)} entries for {self.size} rows: give one each, None if unknown"
                )
        return self

    def column(self, name: str) -> Sequence[Any]:
        """The entries of a column, one per row, None where not measured."""
        values: Sequence[Any] | None = getattr(self, name)
        return (None,) * self.size if values is None else values


class _Nodes(Columns):
    name: Annotated[Names, Field(max_length=MOST_NODES)]
    """What the source calls it; no two are called the same."""

    @field_validator("name")
    @classmethod
    def _different(cls, names: Names) -> Names:
        return once(names, "name")


class Layers(_Nodes):
    """Layers: modules of the host that have parameters. What has none, such as pooling, is no node."""

    layer_type: tuple[Name | None, ...] | None = None
    """Class of the module in lower case, such as conv2d."""
    input_channels: tuple[Natural | None, ...] | None = None
    """Channels or features that come in."""
    output_channels: tuple[Natural | None, ...] | None = None
    """Channels or features that go out."""
    activation_type: tuple[Name | None, ...] | None = None
    """Of the function that follows it, such as relu."""
    dropout_rate: tuple[Share | None, ...] | None = None
    """Of the dropout that follows it, 0 where none does."""
    weight_norm: tuple[NotNegative | None, ...] | None = None
    """Euclidean norm of its parameters."""
    gradient_norm: tuple[NotNegative | None, ...] | None = None
    """Euclidean norm of their gradient, root of the mean square over the epoch's steps."""
    update_frequency: tuple[Share | None, ...] | None = None
    """Share of the epoch's steps that moved its parameters, by a gradient that is not 0 or by momentum."""
    loss_share: tuple[Share | None, ...] | None = None
    """Its squared gradient norm as a share of the sum over all layers of the model."""
    in_degree: tuple[Natural | None, ...] | None = None
    """Layers that it reads, in the whole model."""
    out_degree: tuple[Natural | None, ...] | None = None
    """Layers that read it, in the whole model."""
    depth: tuple[Share | None, ...] | None = None
    """Where it stands in the order in which data passes: 0 is the first layer of the whole model, 1 the last."""


class Activations(_Nodes):
    """Activation functions between layers."""

    activation_type: tuple[Name | None, ...] | None = None
    """Such as relu."""
    saturation_rate: tuple[Share | None, ...] | None = None
    """Share of its outputs on up to 16 validation samples at which its slope is below 0.01."""
    gradient_flow: tuple[NotNegative | None, ...] | None = None
    """Gradient norm of the layers before it over that of the layers after it, each together."""
    computational_cost: tuple[NotNegative | None, ...] | None = None
    """FLOPs per sample."""


class Parameters(_Nodes):
    """Groups of parameters that an optimiser treats alike."""

    count: tuple[Natural | None, ...] | None = None
    """Parameters in it."""
    learning_rate: tuple[NotNegative | None, ...] | None = None
    """Now."""
    momentum: tuple[Share | None, ...] | None = None
    """Of SGD, or the first beta of Adam and its like."""
    gradient_variance: tuple[NotNegative | None, ...] | None = None
    """Variance of the gradient over the epoch's steps, mean over parameters."""
    optimizer_family: tuple[Name | None, ...] | None = None
    """Class of the optimiser in lower case, such as adamw."""


class _Edges(Columns):
    source: Annotated[Rows, Field(max_length=MOST_EDGES)]
    """Row of the node where it begins."""
    target: Rows
    """Row of the node where it ends."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        keys = [getattr(self, name) for name, field in type(self).model_fields.items() if field.is_required()]
        once(tuple(zip(*keys, strict=True)), "edge")
        return self


class Connects(_Edges):
    """From a layer to a layer that reads it."""

    connection_strength: tuple[NotNegative | None, ...] | None = None
    """Norm of the target's weights that read the source, over the norm of all of its weights."""
    data_flow_volume: tuple[NotNegative | None, ...] | None = None
    """Numbers per sample that the target reads of the source, behind what is pooled on the way."""
    latency_ms: tuple[NotNegative | None, ...] | None = None
    """From the end of the source to the end of the target in the previous step, milliseconds."""


class Feeds(_Edges):
    """From a layer to an activation function that reads it."""

    activation_frequency: tuple[Share | None, ...] | None = None
    """Share of the function's outputs that are not 0, on up to 16 validation samples."""
    saturation_events: tuple[NotNegative | None, ...] | None = None
    """Outputs on those samples at which its slope is below 0.01, per sample."""


class Influences(_Edges):
    """From an activation function to a layer that reads it."""

    gradient_contribution: tuple[NotNegative | None, ...] | None = None
    """Norm of the gradient that comes back along this edge, over that along all edges into the function."""
    nonlinearity_strength: tuple[Share | None, ...] | None = None
    """Share of the variance of the function's output that a line through it leaves unexplained."""


class Tunes(_Edges):
    """From a group of parameters to a layer that has some of them."""

    update_magnitude: tuple[NotNegative | None, ...] | None = None
    """Norm of the layer's change in the epoch, over the norm of its parameters before the epoch."""
    convergence_rate: tuple[Number | None, ...] | None = None
    """1 − this epoch's update magnitude over that of the epoch before."""


class Allowed(_Edges):
    """From a seed to a group of parameters whose optimiser can blend it in, one edge per method."""

    method: tuple[BlendingMethod, ...]
    """Method of blending that is permitted."""


class Monitors(Columns):
    """The layers that a seed watches."""

    layer: Rows
    """Rows of the layers."""
    monitoring_frequency: tuple[NotNegative | None, ...] | None = None
    """Measurements per epoch."""
    adaptation_trigger_threshold: tuple[NotNegative | None, ...] | None = None
    """Relative change of the layer's gradient norm at which the seed's owner acts."""

    @field_validator("layer")
    @classmethod
    def _different(cls, layers: Rows) -> Rows:
        return once(layers, "layer")


class Graph(Message):
    """The host as a graph. A table that is left out is empty."""

    layers: Layers = Layers(name=())
    """Layer nodes."""
    layer_count: Natural = 0
    """Layers of the model, sent or not."""
    sampled: bool = False
    """Whether some of the model's nodes or edges were left out."""
    activations: Activations = Activations(name=())
    """Activation nodes."""
    parameters: Parameters = Parameters(name=())
    """Parameter nodes."""
    connects: Connects = Connects(source=(), target=())
    """Layer to layer."""
    feeds: Feeds = Feeds(source=(), target=())
    """Layer to activation."""
    influences: Influences = Influences(source=(), target=())
    """Activation to layer."""
    tunes: Tunes = Tunes(source=(), target=())
    """Parameter to layer."""
    allowed: Allowed = Allowed(source=(), target=(), method=())
    """Seed to parameter; the rows of seeds are those of ``SystemState.seeds``."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sent = self.layers.size
        if self.layer_count < sent or (self.layer_count > sent and not self.sampled):
            raise ValueError(
                f"layer_count must be {sent} where all layers are sent, and more where they are sampled, "
                f"got {self.layer_count} with sampled {self.sampled}"
            )
        layers, activations, parameters = sent, self.activations.size, self.parameters.size
        for name, sources, targets in (
            ("connects", layers, layers),
            ("feeds", layers, activations),
            ("influences", activations, layers),
            ("tunes", parameters, layers),
        ):
            edges: _Edges = getattr(self, name)
            check_rows(edges.source, sources, f"{name}.source")
            check_rows(edges.target, targets, f"{name}.target")
        check_rows(self.allowed.target, parameters, "allowed.target")
        return self
