"""What a packet says of its run's score, by the terms of the env's reward (:mod:`envs.reward`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import SeedStage
from policies.strategic.messages import SystemState


@dataclass(frozen=True)
class ScoreTerms:
    """What a score is made of; None is what is not known.

    Attributes:
        accuracy: Of validation, percent.
        living: Living seeds.
        extra: Their parameters.
        host: The host's own parameters.
    """

    accuracy: float | None
    living: int
    extra: int | None
    host: int | None

    def score(self, parameter_rent: float, path_rent: float) -> float | None:
        """Accuracy/100 − rent · log2(1 + extra/host) − rent · living; None where one of them is not known.

        Args:
            parameter_rent: Score lost per doubling of the parameters.
            path_rent: Score lost per living seed.
        """
        if self.accuracy is None or self.extra is None:
            return None
        doublings = 0.0
        if self.extra:
            if self.host is None:
                return None
            doublings = math.log2(1.0 + self.extra / self.host)
        return self.accuracy / 100.0 - parameter_rent * doublings - path_rent * self.living


NOTHING = ScoreTerms(None, 0, None, None)
"""Of what cannot be read."""


def score_terms(packet: SystemState) -> ScoreTerms:
    """Those of a packet.

    Parameters of living seeds are read from Obs V3, as a share of the budget. The host's are all that the optimiser
    has, less these; a seed is in it from TRAINING on, so that one that is GERMINATED beside others leaves the host's
    unknown. They are the same in all packets of a run.
    """
    living = [seed.stage for seed in packet.seeds if seed.is_living]
    extra = _extra(packet) if living else 0
    return ScoreTerms(packet.validation_accuracy, len(living), extra, _host(packet, living, extra))


def _extra(packet: SystemState) -> int | None:
    budget = None if packet.budgets is None else packet.budgets.parameters
    if packet.observation is None or budget is None:
        return None
    share = packet.observation[_place("seed_parameters", len(packet.seeds), packet.internal_levels)]
    return round(math.expm1(share * math.log1p(max(budget, 1))))


def _host(packet: SystemState, living: Sequence[SeedStage], extra: int | None) -> int | None:
    counts = packet.graph.parameters.count or ()
    outside = sum(stage is SeedStage.GERMINATED for stage in living)
    if not counts or None in counts or extra is None or 0 < outside < len(living):
        return None
    host = sum(count for count in counts if count is not None) - (0 if outside else extra)
    return host if host > 0 else None


@cache
def _place(name: str, slots: int, internal_levels: bool) -> int:
    """Where Obs V3 has a number of the whole host."""
    layout = ObservationLayout(SlotConfig.for_row(slots, internal_levels))
    return next(at for at, field in enumerate(layout.fields) if field.name == name)
