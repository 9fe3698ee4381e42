"""Who is above whom."""

import pytest

from esper_ray.experiments.results.verdicts import PLAYABLE, AbovePlayable, above_playable
from esper_ray.measuring.controls import TRAINING_SCHEDULE


def _evaluation(score, controls, differences):
    """An arm with that interval of its score, and each control with its own and that of the arm minus it."""
    policies = {"arm": {"score": {"mean_ci95": score}}, "static_final": {"score": {"mean_ci95": [0.99, 1.0]}}}
    policies |= {name: {"score": {"mean_ci95": interval}} for name, interval in controls.items()}
    return {"policies": policies, "differences": {"arm": {n: {"mean_ci95": d} for n, d in differences.items()}}}


@pytest.mark.parametrize(
    ("best", "difference", "verdict"),
    [
        ((0.70, 0.74), (0.02, 0.09), AbovePlayable(paired=True, apart=True)),
        ((0.74, 0.78), (0.01, 0.05), AbovePlayable(paired=True, apart=False)),
        ((0.74, 0.78), (-0.01, 0.07), AbovePlayable(paired=False, apart=False)),
    ],
)
@pytest.mark.parametrize("name", [PLAYABLE[0], PLAYABLE[-1], TRAINING_SCHEDULE])
def test_one_control_decides_and_an_oracle_does_not(name, best, difference, verdict):
    controls = dict.fromkeys(PLAYABLE, (0.4, 0.5)) | {name: best}
    differences = dict.fromkeys(PLAYABLE, (0.2, 0.3)) | {name: difference}
    evaluation = _evaluation([0.76, 0.80], controls, differences)
    assert above_playable(evaluation, "arm", trainings=2) == verdict
    assert above_playable(evaluation, "arm", trainings=1) is None
    del evaluation["policies"][PLAYABLE[1]]
    assert above_playable(evaluation, "arm", trainings=2) is None
