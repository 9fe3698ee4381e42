"""The asynchronous algorithm: V-trace, its agreement with PPO's learning signals, and that nothing hangs."""

import copy
import functools

import numpy as np
import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.core.learner.training_data import TrainingData

from esper_ray.config import LearnerConfig
from esper_ray.learning.advantages import action_returns, vtrace_returns
from esper_ray.learning.impala import EsperImpala, EsperImpalaConfig
from esper_ray.learning.loss import Minibatch, impala_loss, ppo_loss
from esper_ray.learning.ppo import EsperPPOConfig
from policies.encoders import BlueprintEncoder
from policies.network_config import NetworkConfig
from policies.rl_module import FORWARD_RESULT, HEAD_LOG_PROBS
from tests.esper_ray.learning.masked_toy_env import ENV_ID, HEADS, register
from tests.esper_ray.learning.test_advantages import alone, literal_returns
from tests.esper_ray.learning.test_learner import EPISODE, MODULE, Parts, normalisers

torch.set_num_threads(1)


def config_of(algorithm=EsperImpalaConfig, settings=None, fragment=EPISODE, stop=0.0, hosts=4, env=None, **arguments):
    register()
    return algorithm.of(
        env_id=ENV_ID,
        env_config={"episode_length": EPISODE, "stop_probability": stop, **(env or {})},
        heads=HEADS,
        encoder=functools.partial(BlueprintEncoder.from_space, embedding_dim=4),
        rollout_length=fragment,
        envs_per_runner=hosts,
        network=NetworkConfig(feature_dim=16, hidden_dim=16, head_dim=8),
        learner=settings or LearnerConfig(minibatches=2),
        **arguments,
    )


@pytest.fixture(scope="module")
def ray_session():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def impala_parts():
    built = []

    def build(config):
        built.append(Parts(config))
        return built[-1]

    yield build
    for parts in built:
        parts.learner.shutdown()


def output_of(parts, batch):
    return parts.learner.module.forward_train({MODULE: batch})[MODULE][FORWARD_RESULT]


def test_terminated_and_cut_episode_by_hand():
    # γ = 0.5, λ = 1, r = (1, 2, 4), V = (8, 4, 2), V after the end 16, ratios (0.5, 3, 0.25): ρ = c = (0.5, 1, 0.25).
    # Terminated: ρδ = (0.5·(1 + 2 − 8), 2 + 1 − 4, 0.25·(4 − 2)) = (−2.5, −1, 0.5);
    #   A_2 = 0.5, A_1 = −1 + 0.5·1·0.5 = −0.75, A_0 = −2.5 + 0.5·0.5·(−0.75) = −2.6875; vs = (5.3125, 3.25, 2.5).
    #   y = (1 + 3.25/2, 2 + 2.5/2, 4).
    # Cut: ρδ_2 = 0.25·(4 + 8 − 2) = 2.5; A = (−2.4375, 0.25, 2.5); vs = (5.5625, 4.25, 4.5); y_2 = 4 + 16/2.
    # The third row is the second, cut after two steps: V after the end is 2, and what follows is padding.
    rewards = torch.tensor([[1.0, 2.0, 4.0]] * 3)
    values = torch.tensor([[8.0, 4.0, 2.0, 16.0]] * 3)
    ratios = torch.tensor([[0.5, 3.0, 0.25]] * 3)
    terminated = torch.tensor([[False, False, True], [False] * 3, [False] * 3])
    real = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    targets = vtrace_returns(rewards, values, terminated, real, ratios, gamma=0.5, gae_lambda=1.0)
    assert targets.tolist() == [[5.3125, 3.25, 2.5], [5.5625, 4.25, 4.5], [5.25, 3.0, 0.0]]
    worth = action_returns(rewards, values, terminated, real, targets, gamma=0.5)
    assert worth.tolist() == [[2.625, 3.25, 4.0], [3.125, 4.25, 12.0], [2.5, 3.0, 0.0]]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=5),
    st.sampled_from([(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)]),
    st.floats(1.0, 5.0),
    st.integers(0, 2**31),
)
def test_of_an_unchanged_policy_vtrace_is_the_lambda_return(episodes, discounts, ratio, seed):
    rng = np.random.default_rng(seed)
    gamma, gae_lambda = discounts
    longest = max(length for length, _ in episodes)
    rewards = rng.normal(size=(len(episodes), longest))
    values = rng.normal(size=(len(episodes), longest + 1))
    terminated = np.zeros(rewards.shape, dtype=bool)
    real = np.zeros(rewards.shape, dtype=bool)
    expected = np.zeros(rewards.shape)
    for row, (length, ends) in enumerate(episodes):
        real[row, :length] = True
        terminated[row, length - 1] = ends
        expected[row, :length] = literal_returns(rewards[row, :length], values[row, : length + 1], ends, *discounts)
    inputs = [torch.from_numpy(array) for array in (rewards, values, terminated, real)]
    targets = vtrace_returns(*inputs, torch.full(rewards.shape, ratio, dtype=torch.float64), gamma, gae_lambda)
    torch.testing.assert_close(targets, torch.from_numpy(expected))
    if gae_lambda == 1.0:
        torch.testing.assert_close(action_returns(*inputs, targets, gamma), torch.from_numpy(expected))


CASES = {
    "whole episodes": {},
    "cut and continued": {"fragment": 7},
    "random ends": {"stop": 0.15},
    "truncated": {"stop": 0.15, "env": {"truncate": True}},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("baseline", ["factored", "state"])
def test_before_the_first_step_signals_and_gradients_are_those_of_ppo(case, baseline, impala_parts):
    learner = LearnerConfig(minibatches=1, gae_lambda=1.0, critic_baseline=baseline)
    impala = impala_parts(config_of(settings=learner, **case))
    ppo = Parts(config_of(EsperPPOConfig, learner, **case))
    impala.perturb()
    ppo.perturb()
    episodes = impala.runner.sample()
    batch = impala.train_batch(copy.deepcopy(episodes))[MODULE]
    ppo_batch = ppo.train_batch(episodes)[MODULE]
    output, ppo_output = output_of(impala, batch), output_of(ppo, ppo_batch)
    signals = impala.learner.minibatch(impala.network, batch, output)
    ppo_signals = ppo.learner.minibatch(ppo.network, ppo_batch, ppo_output)
    for name in ("actions", "real", "old_log_probs", "advantages", "scaled_returns"):
        torch.testing.assert_close(getattr(signals, name), getattr(ppo_signals, name), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(signals.scaled_q_returns, signals.scaled_returns, atol=1e-4, rtol=1e-4)
    weights = torch.full((len(HEADS),), 0.01)
    impala_loss(output, signals, learner, weights, alone).total.backward()
    ppo_loss(ppo_output, ppo_signals, learner, weights, alone).total.backward()
    for ours, theirs in zip(impala.network.parameters(), ppo.network.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)


def test_an_aged_rollout_is_weighted_by_the_joint_ratio_of_the_heads_that_had_a_choice(impala_parts):
    parts = impala_parts(config_of(settings=LearnerConfig(minibatches=1)))
    parts.perturb()
    batch = parts.train_batch(parts.runner.sample())[MODULE]
    # Every head was twice as likely, also those without a choice, which must not count.
    batch[HEAD_LOG_PROBS] = batch[HEAD_LOG_PROBS] + np.log(2.0)
    with torch.no_grad():
        output = output_of(parts, batch)
    real, scale = batch["loss_mask"], parts.network.return_scale
    decided = output.distribution.decided(batch["actions"][..., 0].long())
    ratios = 0.5 ** decided.sum(-1)
    assert ratios[real].unique().numel() > 1
    values = output.scaled_value * scale.value
    rewards, terminated = batch["rewards"].float()[:, :-1], batch["terminateds"].bool()[:, :-1]
    settings = parts.config.settings
    expected = vtrace_returns(
        rewards, values, terminated, real[:, :-1], ratios[:, :-1], settings.gamma, settings.gae_lambda
    )
    worth = action_returns(rewards, values, terminated, real[:, :-1], expected, settings.gamma)
    signals = parts.learner.minibatch(parts.network, batch, output)
    torch.testing.assert_close(signals.scaled_returns[:, :-1] * scale.value, expected)
    torch.testing.assert_close(signals.scaled_q_returns[:, :-1] * scale.value, worth)
    op_advantages = (ratios[:, :-1] * (worth - values[:, :-1]))[real[:, :-1]]
    factors = op_advantages / signals.advantages[:, :-1, 0][real[:, :-1]]
    torch.testing.assert_close(factors, factors[:1].expand_as(factors), atol=0.0, rtol=1e-3)


def test_the_gradient_of_an_aged_minibatch_is_advantage_times_score(impala_parts):
    parts = impala_parts(config_of())
    batch = parts.train_batch(parts.runner.sample())[MODULE]
    output = output_of(parts, batch)
    actions, real = batch["actions"].long(), batch["loss_mask"]
    advantages = torch.randn(*real.shape, 2)
    minibatch = Minibatch(actions, batch[HEAD_LOG_PROBS] + 1.0, advantages, output.scaled_value.detach(), real)
    nothing_else = LearnerConfig(value_loss_coeff=0.0)
    impala_loss(output, minibatch, nothing_else, torch.zeros(len(HEADS)), alone).total.backward()
    ours = {name: value.grad.clone() for name, value in parts.network.named_parameters() if value.grad is not None}
    parts.network.zero_grad()
    output = output_of(parts, batch)
    decided = output.distribution.decided(actions[..., 0]) & real.unsqueeze(-1)
    scores = output.distribution.log_prob(actions)
    loss = 0.0
    for column in range(len(HEADS)):
        stream = advantages[..., min(column, 1)]
        loss = loss - (scores[..., column] * stream)[decided[..., column]].sum() / decided[..., 0].sum()
    loss.backward()
    for name, value in parts.network.named_parameters():
        if name in ours and value.grad is not None:
            torch.testing.assert_close(ours[name], value.grad, atol=1e-5, rtol=1e-4)


def test_a_failure_in_the_learner_thread_reaches_the_caller(impala_parts, ray_session):
    parts = impala_parts(config_of())
    data = TrainingData(episodes=parts.runner.sample())
    with torch.no_grad():
        for parameter in parts.network.parameters():
            parameter.fill_(torch.nan)
    scales = normalisers(parts)
    with pytest.raises(FloatingPointError, match="not finite"):
        parts.learner.update(
            training_data=data,
            timesteps={"num_env_steps_sampled_lifetime": 0},
            num_epochs=1,
            minibatch_size=parts.config.minibatch_size,
            shuffle_batch_per_epoch=True,
        )
    assert all(map(torch.equal, normalisers(parts), scales))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"hosts": 3}, "multiple"),
        ({"num_learners": 2}, "num_learners = 2"),
        ({"sequence_length": 5}, "shorten rollout_length"),
        ({"settings": LearnerConfig(critic_baseline="op")}, "critic_baseline op has no meaning with IMPALA"),
    ],
)
def test_what_is_not_supported_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        config_of(**arguments)


def test_tune_can_rebuild_the_config():
    assert type(EsperImpala.get_default_config()) is EsperImpalaConfig


def test_one_learner_may_have_a_process_of_its_own(ray_session):
    algorithm = config_of(num_env_runners=1, num_learners=1).build_algo()
    for _ in range(200):  # nobody waits for it: its numbers come some iterations later
        numbers = algorithm.train().get("learners", {}).get(MODULE, {})
        if numbers.get("applied_share") == 1.0:
            break
    assert np.isfinite(numbers["loss"])
    algorithm.stop()


@pytest.mark.parametrize("runners", [0, 1])
def test_trains_saves_and_goes_on_with_equal_weights_everywhere(runners, ray_session, tmp_path):
    algorithm = config_of(num_env_runners=runners).build_algo()
    results = [algorithm.train() for _ in range(2)]
    numbers = results[-1]["learners"][MODULE]
    assert numbers["applied_share"] == 1.0
    assert np.isfinite(numbers["loss"])
    assert "replay_error" not in numbers
    observed = algorithm.learner_group.get_weights()[MODULE]["network.encoder.scale.moments"][0]
    assert observed.min() >= 4 * EPISODE
    assert results[-1]["num_env_steps_sampled_lifetime"] >= 2 * 4 * EPISODE
    algorithm.save_to_path(str(tmp_path / "state"))
    saved = algorithm.learner_group.get_weights()[MODULE]
    algorithm.stop()
    algorithm = config_of(num_env_runners=runners).build_algo()
    algorithm.restore_from_path(str(tmp_path / "state"))
    assert algorithm.iteration == 2
    held = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: runner.get_state()["rl_module"], local_env_runner=runners == 0
    )
    assert len(held) == 1
    for state in [algorithm.learner_group.get_weights()[MODULE], *held]:
        assert state.keys() == saved.keys()
        for name, value in saved.items():
            np.testing.assert_array_equal(np.asarray(state[name]), value)
    assert algorithm.train()["training_iteration"] == 3
    algorithm.stop()
