"""The way in: make a model grow, see where it could, and plant what was committed into a fresh one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, Protocol

import numpy as np
from torch import nn
from torch.optim import Optimizer

from envs.limits import LifecycleRules
from envs.live.errors import LiveError
from envs.live.examples import Example
from envs.live.host import LiveHost
from envs.live.places import Places, forward_flops
from envs.live.planting import FORMAT, GrownSeed, check_ungrown, plant
from envs.ranges import Range
from envs.vocabulary import Blueprint
from esper_ray.live.choosing import Training
from esper_ray.live.graph_chooser import GraphChooser
from esper_ray.live.grower import Chooser, Grower, PolicyChooser
from esper_ray.live.policies import Decider, GraphDecider, Policy, find_policy
from esper_ray.live.possible import Possible
from esper_ray.live.refusals import refuse_model, refuse_processes, refuse_stranger
from esper_ray.live.scalars import ScalarWriter
from policies.player import Player
from policies.scripted import FixedSchedule


class Controlling(Protocol):
    """Who decides for models beside their training."""

    def attend(self, training: Training) -> Chooser:
        """Who chooses for one of them, from now on.

        Raises:
            LiveError: nobody can, for that model.
            UserError: who decides cannot, for that model.
        """
        ...


SHORTEST = 12
"""Epochs that a seed needs to be grown, blended and judged, with some to spare."""


def grow(
    model: nn.Module,
    optimizer: Optimizer,
    slots: Sequence[str] | str | None = None,
    *,
    example: Example,
    evaluate: Callable[[], tuple[float, float]],
    max_epochs: int,
    policy: Policy | None = None,
    controller: Controlling | None = None,
    force: bool = False,
    chance: float | None = None,
    governor: bool = True,
    contributions: Literal["all", "single"] = "all",
    counterfactual_interval: int = 5,
    lr_scale: float = 1.0,
    without: Sequence[str] | str = (),
    parameter_budget: int | None = None,
    max_living_seeds: int | None = None,
    batch_axis: int = 0,
    deterministic: bool = False,
    seed: int = 0,
    initial_weights: np.random.Generator | None = None,
    writer: ScalarWriter | None = None,
) -> Grower:
    """Let a policy grow a model while somebody's own loop trains it.

    The first decision is made at once; then the loop calls :meth:`Grower.end_epoch` after every epoch, and
    :meth:`Grower.commit` at the end. ``docs/grow.md`` has a loop, what happens in it, and what it costs.

    Args:
        model: On its device already, not compiled yet. It gets a submodule ``growth``, and a forward hook where a seed
            is.
        optimizer: Of the model. Seeds join its groups.
        slots: Modules on whose outputs seeds can grow: names, globs (``body.*`` is what lies directly in ``body``) or
            last parts of names. Without them the error lists the candidates.
        example: A batch of at least two inputs, as the loop passes them: a tensor, a tuple or a dict of arguments. On
            the first 16 a policy of graphs and a controller watch activation functions.
        evaluate: Loss and accuracy in percent on validation data, without side effects. It is called now and then two
            or three times an epoch, the model in mode ``eval`` and without gradients; modes and randomness are put
            back afterwards.
        max_epochs: Epochs that the model will be trained for.
        policy: Who decides: the shipped policy by default; the directory of an export or of an imitation;
            "heuristic" or another name; the file of a schedule; or a :class:`policies.bundle.PolicyBundle`.
        controller: Who decides in place of a policy, a :class:`esper_ray.controller.service.Controller`.
        force: Take an export that was trained on another topology, under a controller too.
        chance: Accuracy of guessing, in percent, above 0. Without it a collapse to guessing is not noticed.
        governor: Save the model in healthy epochs, and go back if the training breaks; takes the model's and the
            optimiser's memory once more, on the CPU.
        contributions: "all" measures what seeds are worth alone and in pairs; "single" leaves the pairs out.
        counterfactual_interval: Epochs between these measurements.
        lr_scale: Share of the optimiser's steps that seeds take.
        without: Kinds of seed that must not grow, by name: ``["ATTENTION", "FLEX_ATTENTION"]`` for a decoder that is
            to generate with a cache of keys and values.
        parameter_budget: Parameters that seeds may have together, enough for one at least; 16 times the model's by
            default.
        max_living_seeds: At most so many seeds at once, at least 1; one per slot by default.
        batch_axis: Axis of the batch in the example.
        deterministic: Take the policy's likeliest action instead of drawing one.
        seed: Of the policy's draws and the seeds' initial weights, from 0 on.
        initial_weights: Draws the latter in place of ``seed``; such a run cannot be kept and resumed.
        writer: Takes scalars, as TensorBoard's ``SummaryWriter`` does.

    Returns:
        What is called after every epoch.

    Raises:
        LiveError: something that nothing can be grown with, a run in which nothing could ever grow, or a schedule
            that could never be carried out; the model is as it was.
        UserError: an export or a schedule that cannot be read, or a controller whose policy does not fit.
    """
    refuse_model(model)
    refuse_processes()
    check_ungrown(model)
    max_epochs = _checked_epochs(max_epochs)
    _check_numbers(contributions, counterfactual_interval, lr_scale, chance)
    seed = _checked_seed(seed)
    if controller is not None:
        refuse_stranger("controller must be a Controller of esper_ray.controller.service", controller, "attend")
    if writer is not None:
        refuse_stranger("writer must be an object that takes scalars, a SummaryWriter say", writer, "add_scalar")
    kinds = _kinds_of_seed(_names("without", without))
    places = Places(model, example, batch_axis)
    wanted = _names("slots", () if slots is None else slots)
    if not wanted:
        raise LiveError(
            f"name the slots, the modules on whose outputs seeds may grow; this model has\n{places.table()}"
        )
    chosen = places.chosen(wanted)
    try:
        rules = LifecycleRules(parameter_budget=parameter_budget, max_living_seeds=max_living_seeds)
    except ValueError as error:
        raise LiveError(str(error)) from error
    training = Training(model, optimizer, example, batch_axis, len(chosen), chosen[0].kind, max_epochs, force)
    decider: Decider | GraphDecider | None = None
    if controller is None:
        decider = find_policy(policy, training.kind, training.slots, max_epochs, force)
        chooser: Chooser = (
            GraphChooser(decider, training, seed, deterministic)
            if isinstance(decider, GraphDecider)
            else PolicyChooser(decider, Player(decider.policy, 1, seed, deterministic))
        )
    elif policy is None:
        chooser = controller.attend(training)
    else:
        raise LiveError("a policy and a controller are both to decide: give one of them")
    host: LiveHost | None = None
    try:
        decided = chooser.slots_of(len(chosen))
        host_flops = forward_flops(model, example, batch_axis)
        devices = [places.device(place) for place in chosen]
        host = LiveHost(model, optimizer, chosen, devices, decided, evaluate, lr_scale, seed, kinds, initial_weights)
        possible = Possible(host.costs, rules, chosen)
        if isinstance(decider, Decider) and isinstance(decider.policy, FixedSchedule):
            possible.check(decider.name, decider.policy, max_epochs)
        return Grower(
            host,
            chooser,
            decided,
            max_epochs,
            rules,
            chance=chance,
            governor=governor,
            pairs=contributions == "all",
            counterfactual_interval=counterfactual_interval,
            flops=lambda: forward_flops(model, example, batch_axis),
            host_flops=host_flops,
            writer=writer,
        )
    except BaseException:
        chooser.end()
        if host is not None:
            host.withdraw()
        raise


def _checked_epochs(max_epochs: object) -> int:
    if not isinstance(max_epochs, Integral) or int(max_epochs) < SHORTEST:
        raise LiveError(
            f"max_epochs must be a whole number of at least {SHORTEST}, got {max_epochs!r}: a seed is trained, blended "
            "and judged over epochs; call end_epoch more often than once per pass if your passes are few and long"
        )
    return int(max_epochs)


def _check_numbers(contributions: str, interval: int, lr_scale: float, chance: float | None) -> None:
    if contributions not in ("all", "single"):
        raise LiveError(f'contributions must be "all" or "single", got {contributions!r}')
    if interval not in Range(1, np.inf, whole=True):
        raise LiveError(f"counterfactual_interval must be a whole number of at least 1, got {interval!r}")
    if lr_scale not in Range(0.0, 1.0, above=True):
        raise LiveError(f"lr_scale must be above 0 and at most 1, got {lr_scale!r}")
    if chance is not None and chance not in Range(0.0, 100.0, above=True):
        raise LiveError(
            f"chance must be the accuracy of guessing in percent, above 0 and at most 100, got {chance!r}: with ten "
            "classes that are equally frequent it is 10; leave it out where it is not known"
        )


def _checked_seed(seed: object) -> int:
    if not isinstance(seed, Integral) or seed not in Range(0, 2**64 - 1, whole=True):  # torch's generators take these
        raise LiveError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}")
    return int(seed)


def _names(argument: str, given: object) -> list[str]:
    """One name, or several."""
    if isinstance(given, str):
        return [given]
    names: list[str] = []
    for name in given if isinstance(given, Iterable) else [given]:
        if not isinstance(name, str):
            raise LiveError(f"{argument} must be a name or a list of names, got a value of type {type(name).__name__}")
        names.append(name)
    return names


def _kinds_of_seed(names: Sequence[str]) -> list[Blueprint]:
    if unknown := [name for name in names if name not in Blueprint.__members__]:
        raise LiveError(f"no kind of seed is called {unknown[0]!r}: {', '.join(Blueprint.__members__)}")
    return [Blueprint[name] for name in names]


def candidates(model: nn.Module, example: Example, batch_axis: int = 0) -> str:
    """The modules of a model that can be slots, a line each: name, kind, width, cheapest seed.

    Args:
        model: As for :func:`grow`.
        example: Likewise.
        batch_axis: Likewise.

    Raises:
        LiveError: the model does not run on the example.
    """
    refuse_model(model)
    return Places(model, example, batch_axis).table()


def rebuild(model: nn.Module, card: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Plant what a run has committed into a fresh model.

    The seeds are parameters of the model then, with initial weights: load a state dict of the committed model, or
    train the whole network from scratch with an optimiser that is made afterwards.

    Args:
        model: Fresh, of the same modules.
        card: ``Report.card``.
        seed: Of the seeds' initial weights.

    Returns:
        The model.

    Raises:
        LiveError: no card, or one that does not fit; the model is as it was then.
    """
    refuse_model(model)
    if not isinstance(card, Mapping) or card.get("format") != FORMAT or not isinstance(card.get("seeds"), list):
        raise LiveError(f'a card is what Report.card gives, a dict with the format "{FORMAT}", got {str(card)[:80]}')
    grown = [GrownSeed.from_card(entry) for entry in card["seeds"]]
    if grown:
        plant(model, grown, seed)
    return model
