"""Means and interquartile means with intervals over training seeds and held-out episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from esper_ray.evaluation import CONFIDENCE, interquartile_mean

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 4999


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap distribution.

    Attributes:
        value: On the data themselves.
        draws: ``[R]``, on each resample.
    """

    value: float
    draws: FloatArray

    @property
    def interval(self) -> tuple[float, float]:
        """Percentile interval that holds 95 % of the draws."""
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(self.draws, [tail, 100 - tail])
        return float(low), float(high)

    def __sub__(self, other: Estimate) -> Estimate:
        """Their difference, resample by resample: paired, if both come from one call."""
        return Estimate(self.value - other.value, self.draws - other.draws)


@dataclass(frozen=True)
class Summary:
    """Both statistics of a policy on the same draws.

    The interquartile mean is steadier where all hosts are of one kind. Where a world draws several, it leaves out the
    easiest and the hardest, whole kinds of them, and only the mean says what an average host got.
    """

    iqm: Estimate
    mean: Estimate

    def __sub__(self, other: Summary) -> Summary:
        """Differences of both."""
        return Summary(self.iqm - other.iqm, self.mean - other.mean)

    def to_json(self) -> dict[str, Any]:
        """``iqm``, ``ci95``, ``mean`` and ``mean_ci95``, as in evaluation.json."""
        return {
            "iqm": self.iqm.value,
            "ci95": list(self.iqm.interval),
            "mean": self.mean.value,
            "mean_ci95": list(self.mean.interval),
        }


def summarise_runs(
    results: Mapping[str, FloatArray],
    resamples: int = RESAMPLES,
    seed: int = 0,
    origins: Mapping[str, str] | None = None,
) -> dict[str, Summary]:
    """Mean and interquartile mean of every policy on one task, with their stratified-bootstrap distributions.

    Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021), section 4.2: runs are
    drawn with replacement within each task, the stratum, and the interquartile mean is taken anew over what was drawn.
    Here a run has a second level, the held-out hosts on which it is evaluated, and those are the same for every
    policy. So each resample draws (1) for every policy its training seeds, with replacement and independently of the
    other policies, and (2) hosts, with replacement and once for all policies; the statistics are taken over all drawn
    pairs of seed and host. The common draw of hosts makes differences between policies paired. A control that was not
    trained has one row and varies with the hosts only.

    With few training seeds percentile intervals are too narrow: they can't know of seeds that were not trained.

    Args:
        results: ``[K, E]`` per policy, K training seeds on the same E hosts.
        resamples: R.
        seed: Of the draws.
        origins: Policies that come from another one's trainings, row by row, and that policy's name: they share its
            draws of training seeds, so that differences are paired there too.

    Raises:
        ValueError: the policies' numbers of hosts differ.
    """
    hosts = {values.shape[1] for values in results.values()}
    if len(hosts) != 1:
        raise ValueError(f"every policy must have played the same hosts, got numbers of hosts {sorted(hosts)}")
    (num_hosts,) = hosts
    rng = np.random.default_rng(seed)
    host = rng.integers(num_hosts, size=(resamples, 1, num_hosts))
    rows: dict[str, npt.NDArray[np.int64]] = {}
    summaries = {}
    for name, values in results.items():
        trained, origin = len(values), (origins or {}).get(name, name)
        if origin not in rows:
            rows[origin] = rng.integers(trained, size=(resamples, trained, 1))
        drawn = values[rows[origin], host].reshape(resamples, -1)
        summaries[name] = Summary(
            Estimate(float(interquartile_mean(values.ravel())), interquartile_mean(drawn)),
            Estimate(float(values.mean()), drawn.mean(axis=1)),
        )
    return summaries
