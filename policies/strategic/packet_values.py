"""Kinds of values in a packet, and the metrics that are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from envs.vocabulary import BLENDING_METHODS, SeedStage

LARGEST_NUMBER = 1e30
"""float32, in which packets are computed with, still has room above."""

LARGEST_WHOLE_NUMBER = 2**53
"""Up to which every JSON reader keeps whole numbers exactly."""


class Message(BaseModel):
    """What is checked as it is made and never changes: of the kinds that it says, with no fields but those it has."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _stage_of(value: object) -> object:
    """A stage by its name; anything else is left to be refused."""
    return SeedStage.__members__.get(value, value) if isinstance(value, str) else value


Name = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
NotNegative = Annotated[float, Field(ge=0.0, le=LARGEST_NUMBER)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Natural = Annotated[int, Field(ge=0, le=LARGEST_WHOLE_NUMBER)]
Count = Annotated[int, Field(ge=1, le=LARGEST_WHOLE_NUMBER)]
Stage = Annotated[
    SeedStage,
    BeforeValidator(_stage_of),
    PlainSerializer(lambda stage: stage.name, return_type=str),
    WithJsonSchema({"type": "string", "enum": [stage.name for stage in SeedStage]}),
]
BlendingMethod = Annotated[
    str,
    Field(pattern=rf"^({'|'.join(BLENDING_METHODS)})$"),
    WithJsonSchema({"type": "string", "enum": list(BLENDING_METHODS)}),
]

Names = tuple[Name, ...]
Rows = tuple[Natural, ...]
"""Numbers of nodes, from 0, in the order of their table."""


@dataclass(frozen=True)
class Metric:
    """A number that a run may measure of itself.

    Attributes:
        least: The smallest that it can be.
        most: The largest.
        meaning: What it is, and its unit.
    """

    least: float
    most: float
    meaning: str


METRICS = {
    "loss": Metric(0.0, LARGEST_NUMBER, "Mean training loss since the previous packet."),
    "gradient_norm": Metric(0.0, LARGEST_NUMBER, "Norm of the host's gradient, mean over steps."),
    "samples_per_s": Metric(0.0, LARGEST_NUMBER, "Samples trained on per second."),
    "hook_latency_ms": Metric(0.0, LARGEST_NUMBER, "Time that measuring took in the previous step, milliseconds."),
    "step_latency_ms": Metric(0.0, LARGEST_NUMBER, "Time of the previous step, milliseconds."),
    "apply_ms": Metric(0.0, LARGEST_NUMBER, "Time that carrying out the previous decision took, milliseconds."),
    "loss_delta": Metric(-LARGEST_NUMBER, LARGEST_NUMBER, "Training loss now less that of the previous packet."),
    "loss_volatility": Metric(0.0, LARGEST_NUMBER, "Standard deviation of the training loss over the last 5 packets."),
    "grad_var": Metric(0.0, LARGEST_NUMBER, "Variance of the gradient over the steps, mean over parameters."),
    "grad_conflict_rate": Metric(0.0, 1.0, "Share of steps whose gradient points against that of the step before."),
    "optimizer_lr": Metric(0.0, LARGEST_NUMBER, "Learning rate of the first parameter group."),
    "gpu_util_percent": Metric(0.0, 100.0, "Time in which the accelerator computed, percent."),
    "gpu_mem_free_gb": Metric(0.0, LARGEST_NUMBER, "Free memory of the accelerator, 10⁹ bytes."),
    "cpu_util_percent": Metric(0.0, 100.0, "Time in which the processors computed, percent of all of them."),
    "process_memory_share": Metric(0.0, 1.0, "Memory of the process as a share of the machine's."),
    "isolation_violations": Metric(
        0.0, LARGEST_NUMBER, "Times since the previous packet that a seed's gradient reached the host."
    ),
}
"""The metrics that are known; a packet may have any of them and no others."""

TupleT = TypeVar("TupleT", bound=tuple[Any, ...])


def once(values: TupleT, what: str) -> TupleT:
    """The values, none of which may be given twice.

    Raises:
        ValueError: one is.
    """
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise ValueError(f"the {what} {twice!r} is given twice")
    return values


def check_rows(rows: Rows, count: int, where: str) -> None:
    """Hold rows to a table of ``count``.

    Raises:
        ValueError: one is not in it.
    """
    if rows and max(rows) >= count:
        raise ValueError(f"{where} names row {max(rows)} of a table of {count}: rows count from 0")
