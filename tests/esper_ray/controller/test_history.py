import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.vocabulary import SeedStage
from esper_ray.controller.history import DIFFERENCES, THROUGHPUT_EPOCHS, History
from tests.esper_ray.controller.evaluations import EMPTY, packet, seed, seen_packets


def after(packets):
    history = History()
    for seen in packets:
        history = history.observe(seen)
    return history


LOSSES = st.lists(st.none() | st.floats(0.0, 10.0), max_size=15)


@given(LOSSES)
def test_the_loss_delta_is_between_the_last_two_losses_that_were_measured(losses):
    history = after(packet(epoch, validation_loss=loss) for epoch, loss in enumerate(losses))
    known = [loss for loss in losses if loss is not None]
    assert history.loss_delta == (known[-1] - known[-2] if len(known) > 1 else None)


@given(LOSSES)
def test_volatility_is_of_ten_differences(losses):
    history = after(packet(epoch, training_loss=loss) for epoch, loss in enumerate(losses))
    known = [loss for loss in losses if loss is not None][-DIFFERENCES - 1 :]
    if len(known) <= DIFFERENCES:
        assert history.loss_volatility is None
    else:
        differences = [now - before for before, now in itertools.pairwise(known)]
        assert history.loss_volatility == pytest.approx(statistics.pstdev(differences))


def test_throughput_is_compared_with_the_runs_own_median():
    rates = [100.0, 90.0, 110.0, 1000.0, 95.0]
    packets = [packet(epoch, metrics={"samples_per_s": rate}) for epoch, rate in enumerate([*rates, 60.0])]
    assert after(packets).throughput_drop == pytest.approx(0.4)
    assert after(packets[:-1]).throughput_drop is None
    stopped = [packet(epoch, metrics={"samples_per_s": 0.0}) for epoch in range(7)]
    assert after(stopped).throughput_drop is None


@given(st.lists(seen_packets(), max_size=6), st.integers(0, 11))
def test_a_run_that_goes_back_forgets_what_came_later(packets, epoch):
    before = [seen for seen in sorted(packets, key=lambda seen: seen.epoch) if seen.epoch < epoch]
    again = packet(epoch, validation_loss=0.5, training_loss=0.25, metrics={"samples_per_s": 10.0})
    later = [packet(now, validation_loss=9.0, training_loss=9.0) for now in (epoch, epoch + 1)]
    straight, back = after([*before, again]), after([*before, *later, again])
    assert straight.training == back.training
    assert straight.throughput == back.throughput
    assert back.validation[-1] == (epoch, 0.5)


def test_a_step_in_an_epoch_does_not_forget_the_epochs_loss():
    history = after([packet(1, validation_loss=0.4), packet(2, validation_loss=0.5), packet(2)])
    assert history.loss_delta == pytest.approx(0.1)


def test_a_seed_is_as_old_as_it_was_seen_or_says():
    stages = (SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.BLENDING)
    life = [packet(3 + epoch, (seed(stage, age_epochs=0),)) for epoch, stage in enumerate(stages)]
    assert after(life).developing["stem"].since == 3
    assert after([packet(40, (seed(SeedStage.HOLDING, age_epochs=30),))]).developing["stem"].since == 10
    assert after([*life, packet(9, (seed(SeedStage.FOSSILIZED),))]).developing == {}
    assert after([*life, packet(9), packet(10, (seed(SeedStage.GERMINATED),))]).developing["stem"].since == 10
    other = seed(SeedStage.GERMINATED, blueprint="attention")
    assert after([*life, packet(8, (other,))]).developing["stem"].since == 8


def test_it_does_not_grow_with_the_run():
    history = after(
        packet(epoch, (EMPTY,), validation_loss=1.0, training_loss=1.0, metrics={"samples_per_s": 1.0})
        for epoch in range(3 * THROUGHPUT_EPOCHS)
    )
    lengths = (len(history.validation), len(history.training), len(history.throughput))
    assert lengths == (2, DIFFERENCES + 1, THROUGHPUT_EPOCHS + 1)
