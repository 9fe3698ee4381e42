"""Asynchronous successive halving (ASHA, Li et al. 2020): who is stopped, told from the record alone.

Ray Tune's own scheduler has the same rule but keeps what it knows in memory, and Tune saves and restores an experiment
without its scheduler (docs/tuning.md has what that costs). Here the record is all there is to know.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from esper_ray.experiments.tuning.tuning_directory import Result
from esper_ray.experiments.tuning.tuning_file import Tuning


def is_stopped(tuning: Tuning, recorded: Sequence[Result], iteration: int, score: float) -> bool:
    """Whether a trial is stopped after an iteration.

    After grace, grace × r, grace × r² … iterations it is, if its score is below the best 1/r of those that came so far
    before it. The first to come goes on, and a score that was not measured (NaN) neither stops nor is compared with.

    Args:
        tuning: Says grace, r and the iterations of a trial.
        recorded: Of all trials until now.
        iteration: That the trial has done.
        score: After it.
    """
    if iteration >= tuning.base.run.iterations or iteration not in _rungs(tuning):
        return False
    earlier = [result.score for result in recorded if result.iteration == iteration and not np.isnan(result.score)]
    return bool(earlier) and bool(score < np.percentile(earlier, 100 * (1 - 1 / tuning.reduction_factor)))


def _rungs(tuning: Tuning) -> list[int]:
    """Iterations after which trials are compared."""
    rungs = [tuning.grace_iterations]
    while rungs[-1] * tuning.reduction_factor < tuning.base.run.iterations:
        rungs.append(rungs[-1] * tuning.reduction_factor)
    return rungs
