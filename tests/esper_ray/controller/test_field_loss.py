"""The loss of decisions in the field: the project's V-trace, and nothing learnt of a choice that was not one."""

import dataclasses

import pytest
import torch

from esper_ray.config import LearnerConfig
from esper_ray.controller.commands import Kind
from esper_ray.controller.learner.experience_store import Told
from esper_ray.controller.learner.field_loss import FieldBatch, batches, field_loss
from esper_ray.controller.learner.score import score_terms
from esper_ray.controller.learner.steps import check_readable, stretches_of
from esper_ray.learning.advantages import action_returns, vtrace_returns
from policies.strategic.labels import UNKNOWN_RISK
from policies.strategic.schema import RISK_CLASSES
from tests.esper_ray.controller.field import Field, policy

torch.set_num_threads(1)
SETTINGS = LearnerConfig(gamma=0.9, gae_lambda=0.8, entropy_coeff=0.0)
WEIGHTS = torch.ones(len(RISK_CLASSES))
VETOES = {1: Kind.PAUSE, 4: Kind.OPTIMIZER}


def stretch(field, checkpoint, run_id="a run", epochs=8, kinds=None, **reported):
    run = [
        Told(at, of.decision, of.report, score_terms(check_readable(of.decision)), True)
        for at, of in enumerate(field.play(run_id, epochs, kinds, **reported))
    ]
    (found,) = stretches_of(run, checkpoint, 0.03, 0.0)
    return found


@pytest.fixture(scope="module")
def checkpoint():
    return policy()


@pytest.fixture(scope="module")
def moved(checkpoint):
    """A policy that has moved on since."""
    network, generator = checkpoint.network(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.fixture(scope="module")
def two(checkpoint):
    field = Field(checkpoint)
    long = stretch(field, checkpoint, "long", 8, VETOES)
    return [long, dataclasses.replace(stretch(field, checkpoint, "short", 4), terminated=True)]


def loss_of(network, stretches, checkpoint, settings=SETTINGS, risk_weight=0.25):
    batch = FieldBatch.of(stretches)
    scale, temperature = checkpoint.return_scale, checkpoint.play_temperature
    return batch, field_loss(network, batch, settings, scale, temperature, WEIGHTS, risk_weight)


def test_a_batch_has_every_step_in_its_place(two):
    batch = FieldBatch.of(two)
    assert batch.real.tolist() == [[True] * 7 + [False], [True] * 3 + [False] * 5]
    assert batch.places.tolist() == [[*range(8)], [8, 9, 10, 11, 0, 0, 0, 0]]
    assert batch.terminated.nonzero().tolist() == [[1, 2]]
    assert batch.rewards[batch.real].tolist() == pytest.approx([step.reward for of in two for step in of.steps])
    assert batch.actions[batch.real].tolist() == [list(step.action) for of in two for step in of.steps]
    assert (batch.risk[~batch.real] == UNKNOWN_RISK).all()


def test_the_targets_are_the_projects_vtrace_on_the_same_data(two, moved, checkpoint):
    batch, found = loss_of(moved, two, checkpoint)
    with torch.no_grad():
        _, output = batch.read(moved, checkpoint.return_scale, checkpoint.play_temperature)
    ratios = []
    for row, of in enumerate(two):
        values, told = output.value[row, : len(of) + 1], output.distribution.log_prob(batch.actions)[row]
        for at, step in enumerate(of.steps):
            new = told[at].sum() if step.decided else torch.tensor(0.0)  # vetoed: as if there had been no choice
            ratios.append(float((new - sum(step.log_probs)).exp()))
        rewards = torch.tensor([[step.reward for step in of.steps]])
        terminated = torch.tensor([[False] * (len(of) - 1) + [of.terminated]])
        real = torch.ones_like(terminated)
        mine = torch.tensor([ratios[-len(of) :]])
        targets = vtrace_returns(rewards, values[None], terminated, real, mine, 0.9, 0.8)
        worth = action_returns(rewards, values[None], terminated, real, targets, 0.9)
        torch.testing.assert_close(found.signals.targets[row, : len(of)], targets[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.signals.worth[row, : len(of)], worth[0], atol=1e-5, rtol=1e-4)
    assert not all(abs(ratio - 1.0) < 1e-3 for ratio in ratios), "the policy has moved"


def test_the_policy_that_acted_has_ratios_of_1_and_no_policy_loss(two, checkpoint):
    _, found = loss_of(checkpoint.network(), two, checkpoint)
    assert found.terms.log_ratios.sum(dim=-1).abs().max() < 1e-4
    assert abs(float(found.terms.policy.sum())) < 1e-3


def gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def test_of_vetoed_steps_the_value_is_learnt_and_no_choice(checkpoint, moved):
    every = dict.fromkeys(range(8), Kind.PAUSE)
    vetoed = stretch(Field(checkpoint), checkpoint, kinds=every)
    settings = dataclasses.replace(SETTINGS, entropy_coeff=0.1)
    _, found = loss_of(moved, [vetoed], checkpoint, settings, risk_weight=0.0)
    assert found.terms.policy.abs().max() == 0.0
    assert not found.terms.decided.any()
    learnt = gradients(moved, found.total)
    choosing = [gradient for name, gradient in learnt.items() if name.startswith("heads.action.")]
    assert all((gradient == 0).all() for gradient in choosing)
    assert learnt["heads.value.2.weight"].abs().sum() > 0


def test_beside_vetoed_steps_the_others_are_learnt_as_before(two, moved, checkpoint):
    batch, found = loss_of(moved, two, checkpoint)
    decided = torch.tensor([[step.decided for step in of.steps] + [False] * (8 - len(of)) for of in two])
    assert not found.terms.decided[~decided].any()
    assert found.terms.decided[decided].any()
    _, output = batch.read(moved, checkpoint.return_scale, checkpoint.play_temperature)
    tables = [table.detach().requires_grad_() for table in output.distribution.log_probs]
    chosen = dataclasses.replace(output.distribution, log_probs=tuple(tables)).log_prob(batch.actions)
    torch.where(found.terms.decided, chosen, 0.0).sum().backward()
    for table in tables:
        assert (table.grad[~decided] == 0).all()
    assert any((table.grad[decided] != 0).any() for table in tables)


def test_risks_are_learnt_of_vetoed_steps_too(checkpoint, moved):
    every = dict.fromkeys(range(4), Kind.PAUSE)
    told = stretch(Field(checkpoint), checkpoint, epochs=4, kinds=every, loss_delta_sum=0.2)
    _, found = loss_of(moved, [told], checkpoint)
    assert found.confusion.sum(dim=1).tolist() == [0, 0, 0, 3, 0]
    assert gradients(moved, found.total)["heads.risk.2.weight"].abs().sum() > 0


def test_every_step_is_in_one_batch_whatever_the_order(two):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        made = [*batches(two, 4, generator)]
        assert sum(int(batch.real.sum()) for batch in made) == 10
        assert all(int(batch.real.sum()) <= 4 for batch in made)
        rewards = sorted(reward for batch in made for reward in batch.rewards[batch.real].tolist())
        assert rewards == pytest.approx(sorted(step.reward for of in two for step in of.steps))
