"""Means and interquartile means with intervals over training seeds, held-out hosts and test samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from envs.seeding import Purpose, seed_sequence

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int64] | npt.NDArray[np.float32]

CONFIDENCE = 0.95
RESAMPLES = 1999
TRIMMED_EACH_SIDE = 0.25
CELLS_AT_ONCE = 1 << 24
"""Numbers that are drawn at a time, of 8 bytes."""


def interquartile_mean(values: FloatArray) -> FloatArray:
    """Mean of the middle half: steadier than the mean, less wasteful than the median (Agarwal et al. 2021).

    Args:
        values: ``[..., R]``; the mean is over the last axis.
    """
    return stats.trim_mean(values, TRIMMED_EACH_SIDE, axis=-1)


@dataclass(frozen=True)
class Source:
    """One thing that a statistic would be another for, if it were drawn again: trainings, hosts of a kind, or samples.

    Attributes:
        draws: ``[R]``, the statistic on resamples of these alone, all else as it is.
        units: How many independent ones there are.
    """

    draws: FloatArray
    units: int

    @property
    def freedom(self) -> int:
        """Degrees of freedom; with none nothing can be said about this source."""
        return self.units - 1

    @property
    def variance(self) -> float:
        """Of the statistic. A resample of n varies by (n − 1)/n of what n fresh ones do."""
        return float(np.var(self.draws)) * self.units / self.freedom


@dataclass(frozen=True)
class Estimate:
    """A statistic, and how much it varies by each source.

    Attributes:
        value: On the data themselves.
        sources: By name; those of two estimates that have the same name are the same draws.
    """

    value: float
    sources: Mapping[str, Source]

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % interval: each source has a margin of Student's t, and the margins add up as squares.

        Banerjee, "Approximate confidence interval for linear functions of means of k populations" (1960): such an
        interval covers at least what it says. Degrees of freedom by Satterthwaite's rule are fewer than it believes
        where three trainings happen to agree, and a percentile interval over three, which knows of nothing beyond
        them, would cover 73 %.
        """
        t = {name: float(stats.t.ppf(0.5 + CONFIDENCE / 2, source.freedom)) for name, source in self.sources.items()}
        margin = math.sqrt(sum(t[name] ** 2 * source.variance for name, source in self.sources.items()))
        return self.value - margin, self.value + margin

    def __sub__(self, other: Estimate) -> Estimate:
        """Their difference, draw by draw: paired in what both have in common, if both come from one call."""
        sources = dict(self.sources)
        for name, source in other.sources.items():
            own = sources.get(name)
            draws = -source.draws if own is None else own.draws - source.draws
            sources[name] = replace(source, draws=draws)
        return Estimate(self.value - other.value, sources)


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
    per_sample: Mapping[str, npt.NDArray[np.floating]] | None = None,
) -> dict[str, Summary]:
    """Mean and interquartile mean of every policy in one world, and how much they vary by what was drawn.

    Three things were drawn, crossed with each other: training seeds, held-out hosts, and the samples of the test
    split. As Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021), section
    4.2, resamples are drawn with replacement within strata, here the kinds of host, and each statistic is taken anew
    over all pairs of seed and host; but of one source at a time, so that :attr:`Estimate.interval` can allow for how
    few there are of each; each kind of host is a source, for a kind of which there are few may be the one that varies
    most. What hosts and trainings vary by together is in both sources, so that intervals are a little
    too wide rather than too narrow.

    Hosts and samples are drawn once for all policies, and training seeds once for those of one origin: differences
    are paired in these. Kinds of which there is one host are drawn as one kind. A policy with one row was not trained,
    or was trained once: then nothing is known of other trainings, and its interval holds for that one. Intervals hold
    for the kinds of host in the proportions given, and an outcome that one training in five has stays unseen by three
    in half of the cases.

    Args:
        results: ``[K, E]`` per policy, K training seeds on the same E hosts.
        kinds: The kind of each host, ``[E]``.
        resamples: R.
        origins: Policies that come from another one's trainings, row by row, and that policy's name.
        per_sample: By policy ``[K, E, I]``, what each test sample adds to the result, times I: a result moves by as
            much as their mean does. Without it samples are taken as given.

    Raises:
        ValueError: the policies' numbers of hosts, or of samples, differ, or those of trainings of one origin.
    """
    numbers = {values.shape[1] for values in results.values()} | {len(kinds)}
    if len(numbers) != 1:
        raise ValueError(f"every policy must have played the same hosts, got numbers of hosts {sorted(numbers)}")
    samples = {values.shape[2] for values in (per_sample or {}).values()}
    if len(samples) > 1:
        raise ValueError(f"every policy must have been tested on the same samples, got numbers {sorted(samples)}")
    rng = np.random.default_rng(seed_sequence(Purpose.BOOTSTRAP, 0))
    kind = _strata(np.asarray(kinds))
    strata = {f"hosts of kind {each}": np.flatnonzero(kind == each) for each in np.unique(kind)}
    hosts = {name: some[rng.integers(len(some), size=(resamples, len(some)))] for name, some in strata.items()}
    number = samples.pop() if samples else 1
    weights = rng.multinomial(number, np.full(number, 1 / number), size=resamples).astype(np.float32) / number
    rows: dict[str, IntArray] = {}
    summaries = {}
    for name, values in results.items():
        origin, trainings = (origins or {}).get(name, name), len(values)
        if origin not in rows:
            rows[origin] = rng.integers(trainings, size=(resamples, trainings))
        if rows[origin].shape[1] != trainings:
            raise ValueError(f"{name} has {trainings} rows, and others that come from {origin} {rows[origin].shape[1]}")
        sources = {of: _by_hosts(values, strata[of], hosts[of]) for of in strata}
        sources[f"trainings of {origin}"] = _by_trainings(values, rows[origin])
        if per_sample is not None:
            sources["samples"] = _by_samples(values, per_sample[name], weights)
        known = {of: pair for of, pair in sources.items() if pair[0].freedom > 0}
        summaries[name] = Summary(
            Estimate(float(interquartile_mean(values.ravel())), {of: iqm for of, (iqm, _) in known.items()}),
            Estimate(float(values.mean()), {of: mean for of, (_, mean) in known.items()}),
        )
    return summaries


def _by_hosts(values: FloatArray, members: IntArray, drawn: IntArray) -> tuple[Source, Source]:
    def again(some: IntArray) -> FloatArray:
        everybody = np.tile(np.arange(values.shape[1]), (len(some), 1))
        everybody[:, members] = some
        return values[:, everybody].swapaxes(0, 1)

    return _both(again, drawn, values.size, len(members))


def _by_trainings(values: FloatArray, drawn: IntArray) -> tuple[Source, Source]:
    def again(some: IntArray) -> FloatArray:
        return values[some]

    return _both(again, drawn, values.size, len(values))


def _by_samples(
    values: FloatArray, per_sample: npt.NDArray[np.floating], weights: npt.NDArray[np.float32]
) -> tuple[Source, Source]:
    def again(some: npt.NDArray[np.float32]) -> FloatArray:
        return np.moveaxis(values[..., None] + (moves @ some.T).astype(np.float64), -1, 0)

    moves = (per_sample - per_sample.mean(axis=-1, keepdims=True)).astype(np.float32)
    return _both(again, weights, values.size, weights.shape[1])


def _both(again: Callable[[Any], FloatArray], drawn: Numbers, cells: int, units: int) -> tuple[Source, Source]:
    """How the interquartile mean and the mean vary by one source.

    Args:
        again: The results ``[r, K, E]`` on r resamples, given what was drawn for them.
        drawn: For all resamples, ``[R, ...]``.
        cells: Results in a resample.
        units: See :class:`Source`.
    """
    at_once = max(1, CELLS_AT_ONCE // cells)
    iqm, mean = [], []
    for first in range(0, len(drawn), at_once):
        results = again(drawn[first : first + at_once])
        results = results.reshape(len(results), -1)
        iqm.append(interquartile_mean(results))
        mean.append(results.mean(axis=1))
    return Source(np.concatenate(iqm), units), Source(np.concatenate(mean), units)


def mean_by_kind(values: FloatArray, kinds: Sequence[int] | IntArray, num_kinds: int) -> list[float | None]:
    """Mean over the hosts of each kind; None where there is none.

    Args:
        values: ``[K, E]``, K training seeds on E hosts.
        kinds: The kind of each host, ``[E]``.
        num_kinds: Length of the result.
    """
    by_host, kind = values.mean(axis=0), np.asarray(kinds)
    return [float(by_host[kind == each].mean()) if (kind == each).any() else None for each in range(num_kinds)]


def _strata(kinds: IntArray) -> IntArray:
    """The kinds, those of a single host taken together, and with another one if there is only one such."""
    values, place, count = np.unique(kinds, return_inverse=True, return_counts=True)
    single = count == 1
    if single.sum() == 1 and len(values) > 1:
        single[np.argmin(np.where(single, len(kinds) + 1, count))] = True
    return np.where(single[place], -1, place)
