"""The reward: what the user wants, telescoped, so that no stage or warning can be farmed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from envs.episode_state import EpisodeArrays, per_host
from envs.lifecycle import Lifecycle
from envs.ranges import NotNegative, Share, check_numbers
from envs.vocabulary import SeedStage

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

RewardMode = Literal["score", "sparse", "shaped"]
SCORE_COMPONENTS = ("accuracy", "parameter_rent", "path_rent")
COMPONENTS = (*SCORE_COMPONENTS, "compute_rent", "governor", "germination", "shaping", "contribution")

GOVERNOR_PENALTY = -1.0

STAGE_POTENTIAL = {
    SeedStage.GERMINATED: 0.1,
    SeedStage.TRAINING: 0.2,
    SeedStage.BLENDING: 0.5,
    SeedStage.HOLDING: 0.8,
    SeedStage.FOSSILIZED: 1.0,
}
"""Shaping potential of a slot by stage (mode ``shaped``); stages that are not named have none."""


@dataclass(frozen=True)
class RewardConfig:
    """Terms of the score and of its payment.

    Attributes:
        mode: ``score`` pays every epoch's change of score; ``sparse`` pays the same sum on the last epoch;
            ``shaped`` adds potential-based shaping on stages (Ng et al. 1999) and a term for contributions.
        parameter_rent: λ, score lost per doubling of the parameters.
        path_rent: κ, score lost per living seed.
        germination_cost: Reward lost per GERMINATE, beside the score. A prune gives back the whole rent, so that in a
            host that needs nothing germinating to prune is worth as much as waiting, and a policy drifts into it.
        compute_rent: μ, reward lost per doubling of what the host's training costs beside that of a host that nothing
            is grown in (see :func:`compute_rent`). It is no part of the score.
        gamma: The learner's discount, needed for shaping that leaves the best policy as it is.
        shaping_weight: Size of the shaping potential (``shaped``).
        contribution_weight: Reward per percentage point of a contribution just measured, over 100 (``shaped``).
    """

    mode: RewardMode = "score"
    parameter_rent: NotNegative = 0.03
    path_rent: NotNegative = 0.0
    germination_cost: NotNegative = 0.0
    compute_rent: NotNegative = 0.0
    gamma: Share = 1.0
    shaping_weight: NotNegative = 0.1
    contribution_weight: NotNegative = 0.1

    def __post_init__(self) -> None:
        if self.mode not in get_args(RewardMode):
            raise ValueError(f"unknown reward mode {self.mode!r}: choose one of {', '.join(get_args(RewardMode))}")
        check_numbers(self)


def score_components(accuracy: FloatArray, lifecycle: Lifecycle, config: RewardConfig) -> FloatArray:
    """The score's terms ``[N, 3]`` in ``SCORE_COMPONENTS`` order; their sum is the score.

    score = accuracy/100 − λ·log2(1 + extra parameters/host parameters) − κ·(living seeds).

    Args:
        accuracy: ``[N]`` percent.
        lifecycle: Living seeds and their parameters.
        config: λ and κ.
    """
    growth = np.log2(1.0 + lifecycle.extra_parameters / lifecycle.costs.host)
    living = lifecycle.living.sum(axis=1)
    return np.stack([accuracy / 100.0, -config.parameter_rent * growth, -config.path_rent * living], axis=1)


def compute_rent(training_flops: IntArray, never_grown: IntArray, config: RewardConfig) -> FloatArray:
    """What the training has cost, as a term beside the score: −μ·log2(FLOPs up to now/FLOPs of never growing) ``[N]``.

    Like the score's terms it is a potential: its changes are paid, so that an episode pays −μ times the doublings of
    its whole cost, in whichever epoch they were caused. 0 where nothing was grown.

    Args:
        training_flops: ``[N]`` of each host's episode up to now.
        never_grown: ``[N]`` what the same host would have cost up to now without a seed.
        config: μ.
    """
    return -config.compute_rent * np.log2(training_flops / never_grown)


class RewardAccount(EpisodeArrays):
    """Turns scores into rewards, host by host; every reward is the sum of its components.

    Args:
        num_hosts: N.
        config: Terms.

    Attributes:
        score: ``[N, 3]`` score components now, in ``SCORE_COMPONENTS`` order.
    """

    score: FloatArray = per_host(0.0, len(SCORE_COMPONENTS))
    _compute_rent: FloatArray = per_host(0.0)
    _owed: FloatArray = per_host(0.0, len(COMPONENTS))
    _potential: FloatArray = per_host(0.0)

    def __init__(self, num_hosts: int, config: RewardConfig) -> None:
        super().__init__(num_hosts)
        self.config = config

    def open(self, hosts: IntArray, score: FloatArray, compute_rent: FloatArray) -> None:
        """Take in the initial score components ``[m, 3]`` and compute rent ``[m]`` of hosts whose episode begins."""
        self.score[hosts], self._compute_rent[hosts] = score, compute_rent

    def pay(
        self,
        score: FloatArray,
        compute_rent: FloatArray,
        lifecycle: Lifecycle,
        germinated: BoolArray,
        contribution: FloatArray,
        terminated: BoolArray,
        stopped: BoolArray,
    ) -> FloatArray:
        """Book one epoch.

        Args:
            score: ``[N, 3]`` score components after it.
            compute_rent: ``[N]`` after it, see :func:`compute_rent`.
            lifecycle: Stages after it.
            germinated: ``[N]`` hosts in which it germinated a seed.
            contribution: ``[N, S]`` contributions measured in it, NaN elsewhere.
            terminated: ``[N]`` hosts whose episode ends with it.
            stopped: ``[N]`` hosts that the governor stopped in it.

        Returns:
            Reward components ``[N, 8]`` in ``COMPONENTS`` order.
        """
        earned = np.zeros_like(self._owed)
        earned[:, : len(SCORE_COMPONENTS)] = score - self.score
        earned[:, COMPONENTS.index("compute_rent")] = compute_rent - self._compute_rent
        earned[:, COMPONENTS.index("governor")] = np.where(stopped, GOVERNOR_PENALTY, 0.0)
        earned[:, COMPONENTS.index("germination")] = np.where(germinated, -self.config.germination_cost, 0.0)
        self.score, self._compute_rent = score.copy(), compute_rent.copy()
        if self.config.mode == "sparse":
            self._owed += earned
            earned = np.where(terminated[:, None], self._owed, 0.0)
        if self.config.mode == "shaped":
            potential = np.where(terminated, 0.0, self._stage_potential(lifecycle))
            earned[:, COMPONENTS.index("shaping")] = self.config.gamma * potential - self._potential
            self._potential = potential
            measured = np.nansum(contribution, axis=1) / 100.0
            earned[:, COMPONENTS.index("contribution")] = self.config.contribution_weight * measured
        return earned

    def _stage_potential(self, lifecycle: Lifecycle) -> FloatArray:
        by_stage = np.zeros(len(SeedStage))
        by_stage[list(STAGE_POTENTIAL)] = list(STAGE_POTENTIAL.values())
        return self.config.shaping_weight * by_stage[lifecycle.stage].mean(axis=1)
