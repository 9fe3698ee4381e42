"""A policy of graphs grows a model by what a probe measures of it, and leaves the rest of the training alone."""

import dataclasses
import warnings

import pytest
import torch
from torch import nn

from envs.live.errors import LiveError
from envs.vocabulary import LifecycleOp
from esper_ray.controller.proposing import load_proposer
from esper_ray.live.probe import Probe
from policies.strategic.inference import StrategicRun
from tests.esper_ray.live.models import ARCHITECTURES, LeNet, Loop, growing, images, same_state, state_of
from tests.policies.strategic.test_inference import EVERYTHING, STEADY, trained

torch.set_num_threads(1)

EPOCHS = 16
WAITING = dataclasses.replace(EVERYTHING, ops=frozenset({"WAIT"}))


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    trained().save(place := tmp_path_factory.mktemp("eager"))
    return place


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    trained(WAITING).save(place := tmp_path_factory.mktemp("waiting"))
    return place


def train(loop, grower=None, epochs=EPOCHS):
    """Epochs, and what was decided in them."""
    decisions = [] if grower is None else [grower.decision]
    for _ in range(epochs):
        loop.epoch()
        if grower is not None:
            decisions.append(grower.end_epoch())
    return decisions


@pytest.mark.parametrize("name", ["LeNet", "TransformerEncoder", "LSTM, its last state", "tuples"])
def test_it_grows_models_of_any_kind_with_any_number_of_slots(name, eager):
    model, data, slots = ARCHITECTURES[name]
    loop = Loop(model, data)
    grower = growing(loop, slots, eager, EPOCHS)
    decisions = train(loop, grower)
    assert {decision.op for decision in decisions} > {LifecycleOp.GERMINATE}
    assert not any("not possible" in decision.note or "not measured" in decision.note for decision in decisions)
    assert grower.commit().policy == eager.name
    assert not loop.optimizer._optimizer_step_pre_hooks, "the probe is gone"


def test_it_reads_the_epochs_that_are_done_and_the_whole_runs_length(eager, monkeypatch):
    packets, read = [], StrategicRun.read
    monkeypatch.setattr(StrategicRun, "read", lambda run, packet: packets.append(packet) or read(run, packet))
    loop = Loop(LeNet, images)
    train(loop, growing(loop, ["c1", "c2"], eager, EPOCHS))
    assert [packet.epoch for packet in packets] == list(range(EPOCHS))
    assert {packet.max_epochs for packet in packets} == {EPOCHS}
    assert all(packet.validation_loss is not None for packet in packets)


def test_it_says_what_a_controllers_worker_would(tmp_path, monkeypatch):
    """Of the same packet; at the temperature that the policy is played at."""
    read, readings = StrategicRun.read, []

    def spied(run, packet):
        readings.append((packet, read(run, packet)))
        return readings[-1][1]

    trained(play_temperature=0.3).save(tmp_path)
    loop = Loop(LeNet, images)
    with monkeypatch.context() as patched:
        patched.setattr(StrategicRun, "read", spied)
        growing(loop, ["c1", "c2"], tmp_path, EPOCHS)
    proposer, _ = load_proposer(str(tmp_path))
    ((packet, reading),) = readings
    thought = proposer.think(packet, None, torch.Generator().manual_seed(0), greedy=False)
    assert tuple(thought.said["op_probs"].values()) == tuple(reading.result.distribution.op_log_probs[0].exp().tolist())


def test_waiting_changes_nothing_of_the_training(waiting):
    watched, plain = Loop(LeNet, images), Loop(LeNet, images)
    grower = growing(watched, ["c1", "c2"], waiting, EPOCHS)
    decisions = train(watched, grower)
    train(plain)
    assert {decision.op for decision in decisions} == {LifecycleOp.WAIT}
    grower.commit()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name]), name


def test_the_same_seed_gives_the_same_run(tmp_path):
    trained(STEADY).save(tmp_path)

    def actions(seed):
        loop = Loop(LeNet, images)
        return [decision.action for decision in train(loop, growing(loop, ["c1", "c2"], tmp_path, EPOCHS, seed=seed))]

    assert actions(1) == actions(1) != actions(2)


class Complex(nn.Module):
    """Has a parameter that no probe measures."""

    def __init__(self):
        super().__init__()
        self.inner, self.phase = LeNet(), nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def forward(self, x):
        return self.inner(x) * self.phase.real


def test_what_cannot_be_measured_is_refused_at_once_and_is_as_it_was(eager):
    loop = Loop(Complex, images)
    before = state_of(loop.model, loop.optimizer)
    with pytest.raises(LiveError, match="a probe measures real numbers only"):
        growing(loop, ["inner.c1"], eager, EPOCHS)
    assert same_state(before, state_of(loop.model, loop.optimizer))
    growing(loop, ["inner.c1"], epochs=EPOCHS)  # a policy that reads Obs V3 does without a probe


def test_where_measuring_fails_later_the_epoch_is_left_alone_and_it_is_said(eager, monkeypatch):
    loop = Loop(LeNet, images)
    grower = growing(loop, ["c1", "c2"], eager, EPOCHS)

    def fails(*_, **__):
        raise LiveError("the model does not run on the probe's inputs")

    loop.epoch()
    with monkeypatch.context() as patched:
        patched.setattr(Probe, "end_epoch", fails)
        decision = grower.end_epoch()
    assert decision.op is LifecycleOp.WAIT
    assert "not measured, and left alone: the model does not run" in decision.note
    assert all("not measured" not in decision.note for decision in train(loop, grower, EPOCHS - 1)[1:])


def test_runs_of_other_lengths_than_it_was_taught_are_warned_of(eager):
    loop = Loop(LeNet, images)
    with pytest.warns(UserWarning, match="trained over 15 to 60 epochs and may not finish in 61") as warned:
        growing(loop, ["c1"], eager, 61)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        growing(Loop(LeNet, images), ["c1"], eager, 60)
    assert "models.py" in warned[0].filename, "where grow() is called"
