"""What a training run says of itself at one moment: :class:`SystemState`, one packet, whoever trains.

A number that was not measured is None, never 0; so is one that is not finite, which no JSON carries. A packet is
checked as it is made: fields that are unknown, columns of other lengths, rows that do not exist are refused, by
pydantic's ``ValidationError``.

Nodes and edges of the graph are columns, not rows: a column that is None was measured nowhere. docs/packet.md is
written from the descriptions below, by ``python -m policies.strategic.packet_page docs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from envs.action_masks import mask_size
from envs.observation import HIGH, LOW, ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import LIVING_STAGES, NO_BLUEPRINT, Blueprint
from policies.strategic.graph_columns import MOST_EDGES, MOST_NODES, Columns, Graph, Monitors
from policies.strategic.packet_values import (
    METRICS,
    BlendingMethod,
    Count,
    Message,
    Name,
    Names,
    Natural,
    NotNegative,
    Number,
    Share,
    Stage,
    check_rows,
    once,
)


class SeedState(Message):
    """A slot and what lives there. Every slot has one; of an empty one little more than its stage is known."""

    slot: Name
    """Id of the slot."""
    stage: Stage
    """Where in its life the slot is."""
    seed_id: Name | None = None
    """Of the individual."""
    blueprint: Name | None = None
    """Kind of its module."""
    kind: Name | None = None
    """Kind of seed, where blueprints of one kind are to be read alike."""
    alpha: Share | None = None
    """Blend amplitude."""
    alpha_target: Share | None = None
    """Where it goes or rests."""
    alpha_schedule: Name | None = None
    """How it moves, such as linear."""
    age_epochs: Natural | None = None
    """Epochs in this stage."""
    internal_level: Natural | None = None
    """Levels inside that are switched on."""
    internal_max_level: Count | None = None
    """Levels inside that there are."""
    gradient_norm: NotNegative | None = None
    """Norm of its gradient, root of the mean square over the epoch's steps."""
    gradient_health: Share | None = None
    """max(0, 1 − 0.5·v − 0.8·x), where v and x are the shares of its tensors whose gradient vanishes and explodes."""
    learning_rate: NotNegative | None = None
    """Of its parameters, now."""
    layer_depth: Share | None = None
    """Where it stands in the order in which data passes: 0 before all layers, 1 behind them."""
    monitored_layers: Monitors | None = None
    """The layers that it watches; None where nobody says, and then the three with the largest loss share are taken."""
    scope: Share | None = None
    """Watched layers as a share of all."""
    specialisation: Name | None = None
    """What it is for."""
    risk_tolerance: Number | None = None
    """Risk up to which it may go on; read as 0 below 0 and as 1 above 1, as are the next three."""
    activity_level: Number | None = None
    """Norm of its parameters' change in the epoch, over their norm before the epoch."""
    success_rate: Number | None = None
    """Seeds of its blueprint in this run that were kept, as a share of those whose fate is known."""
    risk: Number | None = None
    """Expected harm, as whoever assesses it sees it."""
    quarantine_only: bool | None = None
    """Whether it may only be watched."""
    allowed_blending_methods: tuple[BlendingMethod, ...] | None = None
    """Ways in which it may be blended in."""
    policy_version: Name | None = None
    """Of the policy that planted it."""

    @field_validator("allowed_blending_methods")
    @classmethod
    def _different(cls, methods: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return methods if methods is None else once(methods, "method")

    @property
    def is_living(self) -> bool:
        """Whether a seed lives in the slot."""
        return self.stage in LIVING_STAGES

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.is_living and (self.seed_id is not None or self.blueprint is not None):
            raise ValueError(
                f"{self.slot} is {self.stage.name}: no seed lives there, so it has no seed_id and no blueprint"
            )
        if self.internal_level is not None and self.internal_level > (self.internal_max_level or 0):
            raise ValueError(
                f"internal_level {self.internal_level} is above internal_max_level {self.internal_max_level}"
            )
        return self


class Budgets(Message):
    """What bounds the growth; None is unknown."""

    living_seeds: Natural | None = None
    """Seeds that may live at a time."""
    parameters: Natural | None = None
    """Parameters that living seeds may have together."""


class Hardware(Message):
    """What the run computes on."""

    device: Name | None = None
    """Kind of device, such as cpu or cuda."""
    devices: Natural | None = None
    """Of that kind."""
    device_memory_gb: NotNegative | None = None
    """Memory of one of them, 10⁹ bytes."""
    cpu_cores: Count | None = None
    """Of the machine."""
    memory_gb: NotNegative | None = None
    """Of the machine, or of the process's container where that may have less, 10⁹ bytes."""


class SystemState(Message):
    """One packet: a training run at the end of an epoch, or at a step of it."""

    schema_version: Literal[1] = 1
    """Of this format."""
    run_id: Name
    """Of the run."""
    packet_id: Name
    """Of the packet; no two of a run have the same."""
    timestamp_ns: Annotated[int, Field(ge=0, lt=2**63)]
    """When it was made, nanoseconds since 1970."""
    declared: Names
    """Keys that the source can measure in this run, in the form TYPE.FIELD; what is sent must be among them."""
    epoch: Natural
    """Epochs done."""
    max_epochs: Count | None = None
    """Epochs of the whole run."""
    global_step: Natural | None = None
    """Steps of the optimiser done."""
    training_loss: Number | None = None
    """Mean over the epoch."""
    validation_loss: Number | None = None
    """At the epoch's end."""
    validation_accuracy: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """At the epoch's end, percent."""
    metrics: Annotated[
        dict[str, Number],
        WithJsonSchema(
            {
                "type": "object",
                "properties": {
                    name: {
                        "type": "number",
                        "minimum": metric.least,
                        "maximum": metric.most,
                        "description": metric.meaning,
                    }
                    for name, metric in METRICS.items()
                },
                "additionalProperties": False,
            }
        ),
    ] = Field(default_factory=dict)
    """What was measured of the metrics that are known; the others are left out."""
    graph: Graph = Graph()
    """The host."""
    seeds: Annotated[tuple[SeedState, ...], Field(max_length=MOST_NODES)] = ()
    """Every slot, in the order in which data passes them."""
    internal_levels: bool = False
    """Whether seeds can be grown and shrunk inside; ``observation`` and ``action_mask`` are longer then."""
    budgets: Budgets | None = None
    """What bounds the growth."""
    observation: tuple[Annotated[float, Field(ge=LOW, le=HIGH)], ...] | None = None
    """Obs V3 of the host, as the flat policy reads it; there a loss that is not finite is the largest number."""
    blueprint_indices: tuple[Annotated[int, Field(ge=NO_BLUEPRINT, le=len(Blueprint) - 1)], ...] | None = None
    """Kind of the seed in each slot as the flat policy reads it, −1 where there is none."""
    action_mask: tuple[Annotated[int, Field(ge=0, le=1)], ...] | None = None
    """1 where the run admits a choice, 0 elsewhere."""
    hardware: Hardware | None = None
    """What the run computes on."""

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, metrics: dict[str, float]) -> dict[str, float]:
        for name, value in metrics.items():
            metric = METRICS.get(name)
            if metric is None:
                raise ValueError(f"{name!r} is not a known metric: there are {', '.join(METRICS)}")
            if not metric.least <= value <= metric.most:
                raise ValueError(f"{name} must be from {metric.least:g} to {metric.most:g}, got {value:g}")
        return metrics

    @field_validator("declared")
    @classmethod
    def _known_keys(cls, declared: Names) -> Names:
        for key in once(declared, "key"):
            if key not in KEYS:
                raise ValueError(f"{key!r} is not a key that can be measured: docs/packet.md lists them")
        return declared

    @field_validator("seeds")
    @classmethod
    def _different_slots(cls, seeds: tuple[SeedState, ...]) -> tuple[SeedState, ...]:
        once(tuple(seed.slot for seed in seeds), "slot")
        return seeds

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_rows(self.graph.allowed.source, len(self.seeds), "graph.allowed.source")
        watched = 0
        for seed in self.seeds:
            if seed.monitored_layers is not None:
                check_rows(seed.monitored_layers.layer, self.graph.layers.size, f"monitored_layers of {seed.slot}")
                watched += seed.monitored_layers.size
        if watched > MOST_EDGES:
            raise ValueError(f"monitored_layers of all slots together must be at most {MOST_EDGES}, got {watched}")
        for name, expected in flat_sizes(len(self.seeds), self.internal_levels).items():
            values = getattr(self, name)
            if values is not None and len(values) != expected:
                raise ValueError(f"{name} must have {expected} numbers for {len(self.seeds)} slots, got {len(values)}")
        declared = set(self.declared)
        for key in KEYS:
            if key not in declared and any(value is not None for value in self.measurements(key)):
                raise ValueError(f"{key} is sent but not declared: add it to declared, or leave it out")
        return self

    def measurements(self, key: str) -> Sequence[Any]:
        """What was measured under a key of ``KEYS``: one entry per node or edge, None where it was not.

        Of seeds, those that live.
        """
        kind, name = key.split(".")
        if kind == "run":
            return (getattr(self, name),)
        if kind == "metrics":
            return (self.metrics.get(name),)
        living = [seed for seed in self.seeds if seed.is_living]
        if kind == "seeds":
            return [getattr(seed, name) for seed in living]
        if kind == "monitors":
            tables = [seed.monitored_layers for seed in living if seed.monitored_layers is not None]
            return [value for table in tables for value in table.column(name)]
        table: Columns = getattr(self.graph, kind)
        return table.column(name)


@cache
def flat_sizes(num_slots: int, internal_levels: bool) -> dict[str, int]:
    """Lengths of what the flat policy reads of a host with so many slots."""
    if not num_slots:
        return {"observation": 0, "blueprint_indices": 0, "action_mask": 0}
    slots = SlotConfig.for_row(num_slots, internal_levels)
    return {
        "observation": ObservationLayout(slots).size,
        "blueprint_indices": num_slots,
        "action_mask": mask_size(slots.heads),
    }


def _measured(model: type[Message]) -> tuple[str, ...]:
    """Fields that may be None."""
    return tuple(
        name for name, field in model.model_fields.items() if not field.is_required() and field.default is None
    )


KEYS = tuple(
    f"{kind}.{name}"
    for kind, names in {
        "run": _measured(SystemState),
        "metrics": tuple(METRICS),
        **{
            kind: _measured(type(field.default))
            for kind, field in Graph.model_fields.items()
            if isinstance(field.default, Columns)
        },
        "seeds": _measured(SeedState),
        "monitors": _measured(Monitors),
    }.items()
    for name in names
)
"""All that a source may be able to measure, as TYPE.FIELD; coverage is counted over those that it declares."""
