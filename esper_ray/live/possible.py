"""What can never grow in a host, whatever its training is like: refused before the first epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.limits import DEFAULT_BUDGET_FACTOR, LifecycleRules, ParameterCosts
from envs.live.errors import LiveError
from envs.live.places import Place
from envs.vocabulary import Blueprint
from policies.scripted import FixedSchedule


class Possible:
    """Which kinds of seed a host's slots offer, within its rules.

    Args:
        costs: Of the host, ``N = 1``.
        rules: Of its growth.
        places: Its slots.

    Raises:
        LiveError: there is nothing that could ever grow.
    """

    def __init__(self, costs: ParameterCosts, rules: LifecycleRules, places: Sequence[Place]) -> None:
        self._places = places
        if rules.max_living_seeds == 0:
            raise LiveError("max_living_seeds=0 lets nothing grow: allow at least 1, or leave it out for one per slot")
        self._kinds = [Blueprint(int(kind)) for kind in np.flatnonzero(costs.offered)]
        if not self._kinds:
            raise LiveError(f"without= names every kind of seed that can grow on {places[0].kind.name}s: leave one out")
        given, number = rules.parameter_budget, len(places)
        budget = DEFAULT_BUDGET_FACTOR * int(costs.host[0]) if given is None else given
        prices = costs.blueprint[0, self._kinds, :number] + costs.gate[0, :number]  # as the masks count them
        self._affordable = prices <= budget
        if not self._affordable.all(axis=1).any():  # a kind is admitted where it fits in every empty slot
            dearest = prices.max(axis=1)
            cheapest = int(dearest.argmin())
            raise LiveError(
                f"a parameter_budget of {budget:,} lets nothing grow: the cheapest seed that fits in each of these "
                f"slots, {self._kinds[cheapest].name}, has up to {dearest[cheapest]:,} parameters, a gate included; "
                "give at least as many"
            )

    def check(self, who: str, policy: FixedSchedule, max_epochs: int) -> None:
        """Hold what a fixed schedule plans against the host.

        Args:
            who: Planned it, for the message.
            policy: The schedule as a policy.
            max_epochs: Of the run.

        Raises:
            LiveError: a plan that can never be carried out.
        """
        if policy.max_epochs != max_epochs:
            raise LiveError(
                f"{who} counts the epochs of a run of {policy.max_epochs}, and this one has {max_epochs}: make it for "
                f"max_epochs={max_epochs}"
            )
        if len(policy.schedules) != 1:
            raise LiveError(
                f"{who} has {len(policy.schedules)} schedules, one per host, and this is one model: give it one"
            )
        names = [repr(place.name) for place in self._places]
        for plan in policy.schedules[0].plans:
            planned = f"{who} plans {plan.blueprint.name} in slot {plan.slot}"
            if plan.slot >= len(names):
                raise LiveError(f"{planned}, but the model's slots, from 0 on, are {', '.join(names)}")
            planned += f" ({names[plan.slot]})"
            possible = [kind for kind, fits in zip(self._kinds, self._affordable[:, plan.slot], strict=True) if fits]
            if plan.blueprint not in possible:
                raise LiveError(
                    f"{planned}, where it cannot grow: possible there are {', '.join(kind.name for kind in possible)}"
                )
            if plan.epoch >= max_epochs:
                raise LiveError(
                    f"{planned} at epoch {plan.epoch}, and the run of {max_epochs} epochs is over then: plan it earlier"
                )
