"""Means and interquartile means with intervals over training seeds and held-out hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from envs.seeding import Purpose, seed_sequence

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

CONFIDENCE = 0.95
RESAMPLES = 4999
TRIMMED_EACH_SIDE = 0.25


def interquartile_mean(values: FloatArray) -> FloatArray:
    """Mean of the middle half: steadier than the mean, less wasteful than the median (Agarwal et al. 2021).

    Args:
        values: ``[..., R]``; the mean is over the last axis.
    """
    return stats.trim_mean(values, TRIMMED_EACH_SIDE, axis=-1)


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
    kinds: Sequence[int] | IntArray,
    resamples: int = RESAMPLES,
    origins: Mapping[str, str] | None = None,
) -> dict[str, Summary]:
    """Mean and interquartile mean of every policy in one world, with their stratified-bootstrap distributions.

    Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021), section 4.2: runs are
    drawn with replacement within each task, the stratum, and the interquartile mean is taken anew over what was drawn.
    Here the strata are the kinds of host that the world draws, and a run has a second level, the held-out hosts, which
    are the same for every policy. So each resample draws (1) for every policy its training seeds, with replacement and
    independently of the other policies, and (2) as many hosts of each kind as there are, with replacement and once for
    all policies; the statistics are taken over all drawn pairs of seed and host. The common draw of hosts makes
    differences between policies paired. A control that was not trained has one row and varies with the hosts only.

    Intervals hold for the kinds in the proportions given: how many there are of each is not drawn anew. With few
    training seeds, or few hosts of a kind, they are too narrow, as they can't know of those that were not tried.

    Args:
        results: ``[K, E]`` per policy, K training seeds on the same E hosts.
        kinds: The kind of each host, ``[E]``.
        resamples: R.
        origins: Policies that come from another one's trainings, row by row, and that policy's name: they share its
            draws of training seeds, so that differences are paired there too.

    Raises:
        ValueError: the policies' numbers of hosts differ.
    """
    numbers = {values.shape[1] for values in results.values()} | {len(kinds)}
    if len(numbers) != 1:
        raise ValueError(f"every policy must have played the same hosts, got numbers of hosts {sorted(numbers)}")
    rng = np.random.default_rng(seed_sequence(Purpose.BOOTSTRAP, 0))
    host = _drawn_hosts(np.asarray(kinds), resamples, rng)[:, None, :]
    rows: dict[str, IntArray] = {}
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


def mean_by_kind(values: FloatArray, kinds: Sequence[int] | IntArray, num_kinds: int) -> list[float | None]:
    """Mean over the hosts of each kind; None where there is none.

    Args:
        values: ``[K, E]``, K training seeds on E hosts.
        kinds: The kind of each host, ``[E]``.
        num_kinds: Length of the result.
    """
    by_host, kind = values.mean(axis=0), np.asarray(kinds)
    return [float(by_host[kind == each].mean()) if (kind == each).any() else None for each in range(num_kinds)]


def _drawn_hosts(kinds: IntArray, resamples: int, rng: np.random.Generator) -> IntArray:
    """Indices of hosts ``[resamples, E]``, drawn with replacement among those of each kind."""
    strata = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    drawn = [members[rng.integers(len(members), size=(resamples, len(members)))] for members in strata]
    return np.concatenate(drawn, axis=1)
