"""Who is stopped follows from the record alone, as Ray Tune's own ASHA decides while it lives."""

from hypothesis import given
from hypothesis import strategies as st
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from esper_ray.experiments.tuning.halving_rule import is_stopped
from esper_ray.experiments.tuning.tuning_directory import Result
from esper_ray.experiments.tuning.tuning_file import Tuning
from tests.esper_ray.experiments.tuning.small import SMALL


def tuning_of(iterations, grace, factor):
    settings = SMALL["settings"] | {"iterations": iterations}
    return Tuning(**SMALL | {"settings": settings, "grace_iterations": grace, "reduction_factor": factor})


@given(
    iterations=st.integers(2, 30),
    grace=st.integers(1, 4),
    factor=st.integers(2, 4),
    trials=st.integers(1, 12),
    random=st.randoms(use_true_random=False),
    scores=st.sampled_from([lambda random: random.random(), lambda random: random.randrange(3) / 2]),
)
def test_it_decides_as_rays_scheduler_that_is_never_stopped(iterations, grace, factor, trials, random, scores):
    tuning = tuning_of(iterations, min(grace, iterations), factor)
    ray = ASHAScheduler("iteration", "score", "max", iterations, tuning.grace_iterations, factor)
    running = {Trial("a trial", trial_id=f"{number:03d}", stub=True): 0 for number in range(trials)}
    for trial in running:
        ray.on_trial_add(None, trial)
    recorded = []
    while running:
        trial = random.choice(list(running))
        running[trial] = iteration = running[trial] + 1
        score = scores(random)
        decision = ray.on_trial_result(None, trial, {"iteration": iteration, "score": score})
        stopped = is_stopped(tuning, recorded, iteration, score)
        assert (decision == TrialScheduler.STOP) == (stopped or iteration == iterations)
        recorded.append(Result(trial.trial_id, iteration, score, stopped))
        if decision == TrialScheduler.STOP:
            del running[trial]


def test_the_worse_half_is_stopped_at_every_rung_and_nobody_between_them():
    tuning = tuning_of(8, 1, 2)
    recorded = [Result(f"{number}", 2, score, False) for number, score in enumerate((0.1, 0.5, 0.9))]
    assert [is_stopped(tuning, recorded, 2, score) for score in (0.4, 0.5, 0.6)] == [True, False, False]
    assert not is_stopped(tuning, recorded, 3, 0.0)
    assert not is_stopped(tuning, recorded, 4, 0.0), "the first to come goes on"


def test_a_score_that_was_not_measured_neither_stops_nor_is_compared_with():
    tuning = tuning_of(8, 1, 2)
    nan = float("nan")
    assert not is_stopped(tuning, [Result("0", 1, 0.5, False)], 1, nan)
    assert not is_stopped(tuning, [Result("0", 1, nan, False)], 1, 0.5)
    assert is_stopped(tuning, [Result("0", 1, nan, False), Result("1", 1, 0.6, False)], 1, 0.5)
