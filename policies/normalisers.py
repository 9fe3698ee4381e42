"""A network's running scales, of observations and of returns, and how an update of the learner changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from policies.return_scale import ReturnScale
from policies.running_moments import RunningMoments


@dataclass(frozen=True)
class Normalisers:
    """Both scales, which change in one transaction per update: begin, collect, commit; or roll back.

    Collecting changes nothing yet. The returns are committed before the critic's targets are scaled, which are then
    of unit size. The observations are committed after the update's last step: the stored log-probabilities belong to
    the scale that the rollout was played with.

    Attributes:
        observations: Of what is observed.
        returns: Of the critic's targets.
        observed: Sums of observations at real steps, as ``observations`` collects them.
    """

    observations: RunningMoments
    returns: ReturnScale
    observed: Callable[[Mapping[str, Tensor], Tensor], Tensor]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Around an update: commits the observations at its end; if it fails, both scales are as they were before."""
        scales = (self.observations, self.returns)
        for scale in scales:
            scale.begin()
        try:
            yield
        except BaseException:
            for scale in scales:
                scale.roll_back()
            raise
        self.observations.commit(decay=1.0)

    def collect(
        self, obs: Mapping[str, Tensor], returns: Tensor, real: Tensor, average: Callable[[Tensor], Tensor]
    ) -> None:
        """Add the observations and the returns of the real steps to what is collected.

        Args:
            obs: Observation leaves ``[..., n]``.
            returns: In reward units, ``[...]``.
            real: bool ``[...]``.
            average: Averages over learner processes, so that all of them keep the same scales.

        Raises:
            FloatingPointError: a return is not finite; nothing is collected.
        """
        if not returns.isfinite().all():
            bad = int((~returns.isfinite()).sum())
            raise FloatingPointError(
                f"{bad} of {int(real.sum())} returns are not finite: the env paid a NaN or infinite reward, or the "
                "critic's weights are broken; resume from an earlier checkpoint"
            )
        self.returns.collect(average(self.returns.sums(returns, real, obs)))
        self.observations.collect(average(self.observed(obs, real)))

    def commit_returns(self, decay: float) -> None:
        """From here on scale by the returns collected, too; nothing happens where none are left.

        Args:
            decay: What the scale keeps of its past.
        """
        self.returns.commit(decay)
