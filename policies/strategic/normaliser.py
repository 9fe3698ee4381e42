"""Measured numbers on scales of unit size. What was not measured is NaN on the way in, and a mask of 0 on the way out.

Metrics are scaled by a mean and a variance that forget (an exponentially weighted moving average), the numbers of
parameters and seeds by constants.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from envs.ranges import LARGEST
from policies.replacing import replacing
from policies.running_moments import power_sums

METRIC_PRIORS = {
    "loss": (0.8, 0.3),
    "gradient_norm": (1.0, 0.5),
    "samples_per_s": (4500.0, 500.0),
    "hook_latency_ms": (12.0, 6.0),
}
"""Mean and deviation of each metric that has a scale, before any was seen."""

SCALED_METRICS = tuple(METRIC_PRIORS)

LIVE_METRICS = ("samples_per_s", "hook_latency_ms")
"""Those that depend on the machine. They adapt to every run; the others keep the scale of the policy's training."""

STEP = 0.1
"""Weight of what is new in the moving average."""

LEAST_DEVIATION = 0.1
"""Smallest deviation to divide by, in those of the priors: a metric that hardly varies is not blown up."""

PARAMETER_FIELDS = ("count", "learning_rate", "momentum", "gradient_variance")
PARAMETER_LIMIT = 5.0

UNKNOWN_SEED_STATISTIC = 0.5


class MetricNormaliser:
    """A mean and a variance of every metric of ``SCALED_METRICS`` (M of them).

    In training all metrics adapt, by one step per iteration from what the iteration saw together: a step per packet
    would follow the loss of one host so closely that the next host's reads as 33 deviations. A run that a policy is
    played in gets its own (:meth:`for_run`). A packet is normalised first, and observed once the decision on it is
    committed: it is not measured by itself.

    Args:
        adapting: Metrics that observations change.
    """

    def __init__(self, adapting: Collection[str] = SCALED_METRICS) -> None:
        means, deviations = torch.tensor(tuple(METRIC_PRIORS.values()), dtype=torch.float64).unbind(-1)
        self._least = LEAST_DEVIATION * deviations
        self._moments = torch.stack([means, deviations.square()])
        self._adapts = torch.tensor([metric in adapting for metric in SCALED_METRICS])

    def for_run(self) -> MetricNormaliser:
        """One that begins with these moments, of which what depends on the machine adapts, and no other."""
        run = MetricNormaliser(LIVE_METRICS)
        run._moments = self._moments.clone()
        return run

    @property
    def moments(self) -> Tensor:
        """Means and variances, float64 ``[2, M]``; not a view."""
        return self._moments.clone()

    def normalise(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Metrics in deviations from their means. Changes nothing.

        Args:
            values: ``[..., M]`` (:func:`metric_values`). What is infinite counts as not measured.

        Returns:
            float32 ``[..., M]``, 0 where not measured; and its mask, bool.
        """
        mean, variance = self._moments.to(values.device)
        measured = values.isfinite()
        deviation = variance.sqrt().maximum(self._least.to(values.device))
        scaled = (values.double().clamp(-LARGEST, LARGEST) - mean) / deviation
        return torch.where(measured, scaled, 0.0).float(), measured

    def observe(self, sums: Tensor) -> None:
        """Take one step of the moving average towards what was seen together.

        The new moments are those of a mixture, of the past with weight 0.9 and of what is new with 0.1. A metric that
        was not measured keeps its moments, to the bit.

        Args:
            sums: float64 ``[3, M]`` (:func:`metric_sums`). Several learners pass the average of theirs.
        """
        count, total, squares = sums
        mean, variance = self._moments
        new_mean = total / count
        new_variance = (squares / count - new_mean.square()).clamp(min=0.0)
        stepped = torch.stack(
            [
                mean + STEP * (new_mean - mean),
                (1.0 - STEP) * variance + STEP * new_variance + STEP * (1.0 - STEP) * (new_mean - mean).square(),
            ]
        )
        self._moments = torch.where(self._adapts & (count > 0), stepped, self._moments)

    def to_json(self) -> dict[str, dict[str, float]]:
        """Metric → mean and variance."""
        pairs = zip(SCALED_METRICS, self._moments.T.tolist(), strict=True)
        return {metric: {"mean": mean, "variance": variance} for metric, (mean, variance) in pairs}

    def load_json(self, content: Any) -> None:
        """Take over what :meth:`to_json` gave.

        Raises:
            ValueError: it is something else; nothing is changed.
        """
        if not isinstance(content, Mapping) or set(content) != set(SCALED_METRICS):
            raise ValueError(f"there must be the moments of {', '.join(SCALED_METRICS)}, got {content!r}")
        rows = []
        for metric in SCALED_METRICS:
            entry = content[metric]
            if not isinstance(entry, Mapping) or set(entry) != {"mean", "variance"}:
                raise ValueError(f"{metric} must have a mean and a variance, got {entry!r}")
            row = [entry["mean"], entry["variance"]]
            if not all(isinstance(x, float) and abs(x) <= LARGEST**2 for x in row) or row[1] < 0:
                raise ValueError(f"{metric} must have a finite mean and a variance of 0 or more, got {entry!r}")
            rows.append(row)
        self._moments = torch.tensor(rows, dtype=torch.float64).T.contiguous()

    def save(self, path: Path) -> None:
        """Write the moments into a JSON file, whole or not at all.

        Raises:
            OSError: it cannot be written; the one before is still there.
        """
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(self.to_json(), indent=1))

    def load(self, path: Path) -> Self:
        """Take over the moments of a file; returns itself.

        Raises:
            OSError: it cannot be read.
            ValueError: it holds something else; nothing is changed.
        """
        content = path.read_bytes()
        try:
            self.load_json(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} does not hold moments of metrics: {error}") from error
        return self


def metric_values(metrics: Mapping[str, float]) -> Tensor:
    """A packet's metrics as a row, float64 ``[M]``; NaN where it has none."""
    return torch.tensor([metrics.get(metric, torch.nan) for metric in SCALED_METRICS], dtype=torch.float64)


def metric_sums(values: Tensor) -> Tensor:
    """Count, sum and sum of squares of what was measured in ``[..., M]``: float64 ``[3, M]``."""
    columns = values.reshape(-1, len(SCALED_METRICS)).unbind(-1)
    sums = [power_sums(column.double().clamp(-LARGEST, LARGEST), column.isfinite()) for column in columns]
    return torch.stack(sums, dim=-1)


def normalise_parameters(values: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of parameter groups, each on a fixed scale and no further than 5 from 0.

    (log(1 + count) − 9)/3, log10(learning rate) + 2, (momentum − 0.9)/0.05, (log10(gradient variance) + 3)/1.5.

    Args:
        values: ``[..., 4]`` in the order of ``PARAMETER_FIELDS``.

    Returns:
        float32 ``[..., 4]``, 0 where not measured; and its mask, bool.
    """
    measured = values.isfinite()
    count, rate, momentum, variance = values.double().unbind(-1)
    scaled = torch.stack(
        [
            (count.clamp(min=0.0).log1p() - 9.0) / 3.0,
            rate.clamp(min=0.0).log10() + 2.0,
            (momentum - 0.9) / 0.05,
            (variance.clamp(min=0.0).log10() + 3.0) / 1.5,
        ],
        dim=-1,
    ).clamp(-PARAMETER_LIMIT, PARAMETER_LIMIT)
    return torch.where(measured, scaled, 0.0).float(), measured


def normalise_seed_statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics of seeds that are shares by nature (activity, success, risk), clamped to [0, 1].

    Args:
        values: ``[..., k]``, any number of statistics; what is not finite counts as not measured.

    Returns:
        float32 of the same shape, 0.5 where not measured; and its mask, bool.
    """
    measured = values.isfinite()
    return torch.where(measured, values.clamp(0.0, 1.0), UNKNOWN_SEED_STATISTIC).float(), measured
