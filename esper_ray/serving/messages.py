"""What clients send and get: JSON in, what a policy reads out, and in between everything that can be wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from envs.action_masks import mask_size, split_mask
from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import HeadSpec
from esper_ray.reading import describe_problems
from policies.bundle import Actions, Observations

ModelT = TypeVar("ModelT", bound=BaseModel)

MOST_PROBLEMS = 3


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered.

    Attributes:
        status: Of HTTP.
        reason: What was wrong, and what to do.
    """

    status: int
    reason: str


class RefusedError(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(status, reason)


class StrictRequest(BaseModel):
    """A body with no fields but its own, which are of the kinds that it says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class OpenRequest(StrictRequest):
    """Body of ``POST /sessions``.

    Attributes:
        seed: Of the policy's draws; drawn itself if None.
        greedy: Take the most probable choices instead of drawing.
    """

    seed: int | None = Field(default=None, ge=0, lt=2**63)
    greedy: bool = False


class ActRequest(StrictRequest):
    """Body of ``POST /sessions/NAME/actions``: one host's observation as the env gives it.

    Attributes:
        obs: Measured numbers.
        blueprint_indices: Kind of the seed in each slot, −1 where there is none.
        action_mask: 1 where the env admits a choice, 0 elsewhere.
        step: Decisions before this one; the same one again gets the same answer. None takes it as the next.
    """

    obs: list[float]
    blueprint_indices: list[int]
    action_mask: list[int]
    step: int | None = Field(default=None, ge=0)


def parse(model: type[ModelT], body: bytes) -> ModelT:
    """Read a body.

    Raises:
        RefusedError: 400 if it is not JSON, 422 if it is not what the model says.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise RefusedError(400, f"the body is not JSON: {first['msg']}") from None
        raise RefusedError(422, describe_problems(error, MOST_PROBLEMS, "the body")) from None


class Interface(Protocol):
    """What a policy reads and answers."""

    def described(self) -> dict[str, Any]:
        """For clients, as JSON."""
        ...

    def read(self, body: bytes) -> tuple[int | None, Any]:
        """The step that a body of ``POST /sessions/NAME/actions`` asks for, and what is to be decided on.

        Raises:
            RefusedError: 400 if it is not JSON, 422 if the policy cannot read it.
        """
        ...

    def answer(self, step: int, decided: Any) -> dict[str, Any]:
        """A decision as JSON.

        Args:
            step: Decisions before it.
            decided: What the policy's replica made of it.
        """
        ...


@dataclass(frozen=True)
class ObservationInterface:
    """Of a policy that reads Obs V3 (see :class:`Interface` for the methods).

    Attributes:
        task: That it was trained on, or several with commas between them.
        slots: Of the hosts.
        iteration: Iterations that it was trained for.
    """

    task: str
    slots: SlotConfig
    iteration: int

    @cached_property
    def layout(self) -> ObservationLayout:
        """Of the vector ``obs``."""
        return ObservationLayout(self.slots)

    @cached_property
    def _ranges(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        fields = self.layout.fields
        return np.array([field.low for field in fields]), np.array([field.high for field in fields])

    def described(self) -> dict[str, Any]:
        """Names of all numbers, lengths and choices."""
        return {
            "reads": "observation",
            "task": self.task,
            "iteration": self.iteration,
            "slots": list(self.slots.slot_ids),
            "obs": [field.name for field in self.layout.fields],
            "blueprints": [blueprint.name for blueprint in self.slots.blueprints],
            "action_mask": mask_size(self.slots.heads),
            "heads": {head.name: list(head.choices) for head in self.slots.heads},
        }

    def read(self, body: bytes) -> tuple[int | None, Observations]:
        """An observation, see :meth:`observation`."""
        request = parse(ActRequest, body)
        return request.step, self.observation(request)

    def observation(self, request: ActRequest) -> Observations:
        """The request's observation, leaves with leading axis 1.

        Raises:
            RefusedError: 422 if it cannot be one of this policy's hosts.
        """
        slots, fields = self.slots, self.layout.fields
        lengths = {
            "obs": len(fields),
            "blueprint_indices": slots.num_slots,
            "action_mask": mask_size(slots.heads),
        }
        for name, length in lengths.items():
            given = len(getattr(request, name))
            if given != length:
                raise RefusedError(422, f"{name} must have {length} numbers for this policy, got {given}")
        obs = np.array(request.obs)
        low, high = self._ranges
        outside = np.flatnonzero((obs < low) | (obs > high))
        if len(outside):
            place = int(outside[0])
            field = fields[place]
            raise RefusedError(
                422, f"obs[{place}] ({field.name}) must be in [{field.low:g}, {field.high:g}], got {obs[place]:g}"
            )
        for place, index in enumerate(request.blueprint_indices):
            if not -1 <= index < len(slots.blueprints):
                raise RefusedError(
                    422,
                    f"blueprint_indices[{place}] must be -1 or in [0, {len(slots.blueprints) - 1}], got {index}",
                )
        for place, admitted in enumerate(request.action_mask):
            if admitted not in (0, 1):
                raise RefusedError(422, f"action_mask[{place}] must be 0 or 1, got {admitted}")
        mask = np.array(request.action_mask, np.int8)
        check_choices(mask, slots.heads, "action_mask")
        return {
            "obs": obs.astype(np.float32)[None],
            "blueprint_indices": np.array(request.blueprint_indices, np.int64)[None],
            "action_mask": mask[None],
        }

    def answer(self, step: int, decided: Actions) -> dict[str, Any]:
        """Of the indices ``[num_heads]``."""
        return {"step": step, **chosen(self.slots.heads, decided)}


def check_choices(mask: np.ndarray[Any, Any], heads: Sequence[HeadSpec], where: str) -> None:
    """Whatever op a policy takes, it must find a choice in every head that the op needs.

    Args:
        mask: Flat.
        heads: That it is of.
        where: In the request it is.

    Raises:
        RefusedError: 422 if there is none.
    """
    op, *others = heads
    views = split_mask(mask, heads)
    admitted = np.flatnonzero(views[op.name])
    if not len(admitted):
        raise RefusedError(422, f"{where} admits no {op.name}: at least WAIT is always possible")
    for taken in admitted.tolist():
        for head in others:
            view = views[head.name][taken] if head.masked_by_op else views[head.name]
            if taken in head.needed_by and not view.any():
                raise RefusedError(
                    422, f"{where} admits the op {op.choices[taken]}, but no {head.name}, which that op needs"
                )


def chosen(heads: Sequence[HeadSpec], action: Actions) -> dict[str, Any]:
    """Indices ``[num_heads]`` as JSON, and the names of the choices that matter."""
    indices = action.tolist()
    needed = {
        head.name: head.choices[index]
        for head, index in zip(heads, indices, strict=True)
        if indices[0] in head.needed_by
    }
    return {"action": indices, "choices": needed}
