"""Committed growth as data, and planted into a fresh model or into a copy that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from envs.blueprints import blueprints_for
from envs.live.errors import LiveError
from envs.live.examples import Example
from envs.live.places import KINDS, Place, Places, slot_key
from envs.live.slot import GROWTH, Growth, LiveSlot
from envs.vocabulary import AlphaAlgorithm, Blueprint

FORMAT = "esper-ray growth 1"


@dataclass(frozen=True)
class GrownSeed:
    """A seed as it is, without its weights.

    Attributes:
        place: Where it is.
        blueprint: Its kind.
        algorithm: How it blends.
        level: Internal levels that are on.
        alpha: How far it is blended in.
    """

    place: Place
    blueprint: Blueprint
    algorithm: AlphaAlgorithm
    level: int
    alpha: float

    @classmethod
    def of(cls, slot: LiveSlot) -> GrownSeed:
        """That of a slot that has one."""
        if slot.seed_kind is None:
            raise ValueError(f"the slot {slot.place.name!r} has no seed")
        return cls(slot.place, slot.seed_kind, slot.seed_algorithm, slot.seed_level, float(slot.alpha))

    def to_card(self) -> dict[str, Any]:
        """Plain numbers and names."""
        place = self.place
        return {
            "slot": place.name,
            "kind": place.kind.name,
            "width": place.width,
            "batch_axis": place.batch_axis,
            "places": place.places,
            "item": place.item,
            "dtype": str(place.dtype).removeprefix("torch."),
            "blueprint": self.blueprint.name,
            "algorithm": self.algorithm.name,
            "level": self.level,
            "alpha": self.alpha,
        }

    @classmethod
    def from_card(cls, entry: Mapping[str, Any]) -> GrownSeed:
        """The inverse of :meth:`to_card`.

        Raises:
            LiveError: a field is missing, or not of its kind.
        """
        try:
            dtype = getattr(torch, entry["dtype"])
            if not isinstance(dtype, torch.dtype) or not isinstance(entry["slot"], str):
                raise ValueError("slot must be a name and dtype a type of tensors")
            place = Place(
                entry["slot"],
                KINDS[entry["kind"]],
                _whole(entry, "width", 1),
                _whole(entry, "batch_axis", 0),
                _whole(entry, "places", 1),
                None if entry["item"] is None else _whole(entry, "item", 0),
                dtype,
            )
            algorithm, alpha = AlphaAlgorithm[entry["algorithm"]], float(entry["alpha"])
            if not 0.0 <= alpha <= 1.0:
                raise ValueError(f"alpha must be from 0 to 1, got {alpha:g}")
            return cls(place, Blueprint[entry["blueprint"]], algorithm, _whole(entry, "level", 0), alpha)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LiveError(f"this is no seed of a card: {type(error).__name__} {error} in {entry!r}") from error


def _whole(entry: Mapping[str, Any], name: str, least: int) -> int:
    value = entry[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def card_of(seeds: Sequence[GrownSeed]) -> dict[str, Any]:
    """Seeds as plain data; JSON takes it."""
    return {"format": FORMAT, "seeds": [seed.to_card() for seed in seeds]}


def plant(model: nn.Module, seeds: list[GrownSeed], seed: int) -> None:
    """Give a fresh model these seeds, with initial weights, attached and visible, as parameters of its own.

    Args:
        model: Has modules of the slots' names, and no growth yet.
        seeds: In the order in which data passes their slots.
        seed: Of the weights.

    Raises:
        LiveError: the model lacks a module, or has grown already; it is as it was then.
    """
    check_ungrown(model)
    modules = dict(model.named_modules())
    for grown in seeds:
        if grown.place.name not in modules:
            raise LiveError(f"the model has no module {grown.place.name!r}, on which the card has a seed")
        if grown.blueprint not in blueprints_for(grown.place.kind.topology):
            raise LiveError(f"on {grown.place.kind.name}s no {grown.blueprint.name} grows, which the card names")
    places = [grown.place for grown in seeds]
    if len({place.name for place in places}) < len(places):
        raise LiveError("the card has two seeds on one module")
    growth = Growth(places, [parameter_near(model, place.name).device for place in places])
    for number, (grown, slot) in enumerate(zip(seeds, growth.slots(), strict=True)):
        slot.plant(grown.blueprint)
        slot.set_form(grown.algorithm, grown.level, np.random.default_rng([seed, number]))
        slot.set_alpha(grown.alpha)
    graft(model, growth)


def check_ungrown(model: nn.Module) -> None:
    """Refuse a model that has the name of the slots' submodule.

    Raises:
        LiveError: it has.
    """
    taken = getattr(model, GROWTH, None)
    if isinstance(taken, Growth):
        raise LiveError(
            "the model grows already, or has grown, and cannot grow anew: take a fresh one, load a grower's state to "
            "go on with a run, or rebuild() to plant what was committed"
        )
    if taken is not None:
        raise LiveError(f"the model has an attribute {GROWTH!r}, which is the name that slots live under: rename it")


def graft(model: nn.Module, growth: Growth) -> None:
    """Make the slots a submodule of the model, and let them watch its modules."""
    model.add_module(GROWTH, growth)
    for slot in growth.slots():
        slot.watch(model)


def uproot(model: nn.Module) -> None:
    """Take away the slots that a model has, and the seeds in them."""
    growth = getattr(model, GROWTH, None)
    if isinstance(growth, Growth):
        for slot in growth.slots():
            slot.empty()
        prune_empty(model, growth)


def make_room(model: nn.Module, state: Mapping[str, Any], example: Example, batch_axis: int = 0) -> None:
    """Give a model just the slots whose seeds a state dict of it has: loading that plants them.

    Args:
        model: Has modules of the slots' names; what has grown in it goes.
        state: Of a model that has grown.
        example: A batch of at least two inputs.
        batch_axis: Of the example.

    Raises:
        LiveError: a slot that the model cannot have.
    """
    uproot(model)
    parts = [name.split(".") for name in state]
    keys = {part[1] for part in parts if part[0] == GROWTH}
    if keys:
        possible = Places(model, example, batch_axis)
        names = [name for name, _ in model.named_modules() if name and slot_key(name) in keys]
        places = possible.chosen(names)
        graft(model, Growth(places, [possible.device(place) for place in places]))


def prune_empty(model: nn.Module, growth: Growth) -> None:
    """Take away the slots of a model that have no seed, and the submodule if it is empty then."""
    for name, slot in list(growth.named_slots()):
        if slot.seed_kind is None:
            slot.unwatch()
            delattr(growth, name)
    if not growth.slots():
        delattr(model, GROWTH)


def parameter_near(model: nn.Module, name: str) -> nn.Parameter:
    """A floating-point parameter of a module, or of what it is a part of.

    Raises:
        LiveError: the model has none.
    """
    while True:
        for parameter in model.get_submodule(name).parameters():
            if parameter.is_floating_point():
                return parameter
        if not name:
            raise LiveError("the model has no parameters: there is nothing to train, and nothing to grow")
        name = name.rpartition(".")[0]
