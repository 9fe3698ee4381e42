"""What a packet says of its run's score, by the terms of the env's reward (:mod:`envs.reward`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from policies.strategic.messages import SystemState


@dataclass(frozen=True)
class ScoreTerms:
    """What a score is made of.

    Attributes:
        accuracy: Of validation, percent.
        doublings: log2(1 + parameters of living seeds / the host's).
        living: Living seeds.
    """

    accuracy: float
    doublings: float
    living: int

    def score(self, parameter_rent: float, path_rent: float) -> float:
        """Accuracy/100, less the rents.

        Args:
            parameter_rent: Score lost per doubling of the parameters.
            path_rent: Score lost per living seed.
        """
        return self.accuracy / 100.0 - parameter_rent * self.doublings - path_rent * self.living


def score_terms(packet: SystemState) -> ScoreTerms | None:
    """Those of a packet; None where it does not measure one of them.

    The parameters of living seeds are read from Obs V3, as a share of the budget, and the host's are all that the
    optimiser has, less these.
    """
    living = sum(seed.is_living for seed in packet.seeds)
    doublings = _doublings(packet) if living else 0.0
    if packet.validation_accuracy is None or doublings is None:
        return None
    return ScoreTerms(packet.validation_accuracy, doublings, living)


def _doublings(packet: SystemState) -> float | None:
    budget = None if packet.budgets is None else packet.budgets.parameters
    counts = packet.graph.parameters.count
    if packet.observation is None or budget is None or counts is None:
        return None
    share = packet.observation[_place("seed_parameters", len(packet.seeds), packet.internal_levels)]
    extra = math.expm1(share * math.log1p(max(budget, 1)))
    everything = sum(count for count in counts if count is not None)
    if None in counts or everything <= extra:
        return None
    return math.log2(everything / (everything - extra))


@cache
def _place(name: str, slots: int, internal_levels: bool) -> int:
    """Where Obs V3 has a number of the whole host."""
    layout = ObservationLayout(SlotConfig.for_row(slots, internal_levels))
    return next(at for at, field in enumerate(layout.fields) if field.name == name)
