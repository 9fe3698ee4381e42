"""Kinds of values in a packet, and the metrics that are known."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from envs.vocabulary import BLENDING_METHODS, SeedStage

LARGEST_NUMBER = 1e30
"""float32, in which packets are computed with, still has room above."""

LARGEST_WHOLE_NUMBER = 2**53
"""Up to which every JSON reader keeps whole numbers exactly."""

MOST_PACKET_BYTES = 1 << 20
"""Of a packet as JSON, whichever way it comes. One of 128 layers, with 16 slots, has some 100,000; the largest known,
with 128 slots and layers that each read all before them, 750,000."""


class Message(BaseModel):
    """What is checked as it is made and never changes: of the kinds that it says, with no fields but those it has."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


@dataclass(frozen=True)
class ByName:
    """Marks a field whose values are members of an enumeration: they are written as their names, and read from them."""

    def __get_pydantic_core_schema__(self, enum: type[IntEnum], handler: GetCoreSchemaHandler) -> CoreSchema:
        """Of pydantic: anything but a name is left to be refused."""

        def member(value: object) -> object:
            return enum.__members__.get(value, value) if isinstance(value, str) else value

        written = core_schema.plain_serializer_function_ser_schema(
            lambda value: value.name, return_schema=core_schema.str_schema()
        )
        return core_schema.no_info_before_validator_function(member, handler(enum), serialization=written)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Of pydantic: the names."""
        members = schema["schema"]["members"]
        return {"type": "string", "enum": [member.name for member in members]}


Name = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
NotNegative = Annotated[float, Field(ge=0.0, le=LARGEST_NUMBER)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Natural = Annotated[int, Field(ge=0, le=LARGEST_WHOLE_NUMBER)]
Count = Annotated[int, Field(ge=1, le=LARGEST_WHOLE_NUMBER)]
Stage = Annotated[SeedStage, ByName()]
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
        meaning: What it is, and its unit.
        least: The smallest that it can be.
        most: The largest.
    """

    meaning: str
    least: float = 0.0
    most: float = LARGEST_NUMBER


METRICS = {
    "loss": Metric("Mean training loss since the previous packet.", least=-LARGEST_NUMBER),
    "gradient_norm": Metric("Norm of the host's gradient, mean over steps."),
    "samples_per_s": Metric("Samples trained on per second."),
    "hook_latency_ms": Metric("Time that measuring took in the previous step, milliseconds."),
    "step_latency_ms": Metric("Time of the previous step, milliseconds."),
    "apply_ms": Metric("Time that carrying out the previous decision took, milliseconds."),
    "loss_delta": Metric("Training loss now less that of the previous packet.", least=-LARGEST_NUMBER),
    "loss_volatility": Metric("Standard deviation of the training loss over the last 5 packets."),
    "grad_var": Metric("Variance of the gradient over the steps, mean over parameters."),
    "grad_conflict_rate": Metric("Share of steps whose gradient points against that of the step before.", most=1.0),
    "optimizer_lr": Metric("Learning rate of the first parameter group."),
    "gpu_util_percent": Metric("Time in which the accelerator computed, percent.", most=100.0),
    "gpu_mem_free_gb": Metric("Free memory of the accelerator, 10⁹ bytes."),
    "cpu_util_percent": Metric("Time in which the processors computed, percent of all of them.", most=100.0),
    "process_memory_share": Metric(
        "Memory of the process as a share of what it may have: the machine's, or its container's.", most=1.0
    ),
    "isolation_violations": Metric("Times since the previous packet that a seed's gradient reached the host."),
}
"""The metrics that are known; a packet may have any of them and no others."""

TupleT = TypeVar("TupleT", bound=tuple[Any, ...])


def once(values: TupleT, what: str) -> TupleT:
    """The values, none of which may be given twice.

    Raises:
        ValueError: one is.
    """
    if len(set(values)) < len(values):
        ((twice, _),) = Counter(values).most_common(1)
        raise ValueError(f"the {what} {twice!r} is given twice")
    return values


def check_rows(rows: Rows, count: int, where: str) -> None:
    """Hold rows to a table of ``count``.

    Raises:
        ValueError: one is not in it.
    """
    if rows and max(rows) >= count:
        raise ValueError(f"{where} names row {max(rows)} of a table of {count}: rows count from 0")
