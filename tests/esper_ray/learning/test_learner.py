import copy
import functools
import itertools
import math

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.evaluation.postprocessing import Postprocessing

from envs.slots import SlotConfig
from esper_ray.config import LearnerConfig
from esper_ray.learning.diagnostics import read, spoken_alarms
from esper_ray.learning.ppo import EsperPPO, EsperPPOConfig
from policies.distribution import take_entry
from policies.encoders import BlueprintEncoder
from policies.network_config import NetworkConfig
from policies.return_scale import ReturnScale
from policies.rl_module import HEAD_LOG_PROBS, Q_VALUE
from tests.dispatched import Dispatched
from tests.esper_ray.learning.masked_toy_env import ENV_ID, HEADS, register
from tests.esper_ray.learning.test_advantages import literal_returns

torch.set_num_threads(1)
MODULE = "default_policy"
EPISODE = 12


def config_of(
    settings=None,
    fragment=EPISODE,
    max_seq_len=None,
    stop=0.0,
    hosts=4,
    seed=0,
    learners=0,
    total_steps=None,
    core=(16, True),
    **env,
):
    hidden_dim, memory = core
    register()
    return EsperPPOConfig.of(
        env_id=ENV_ID,
        env_config={"episode_length": EPISODE, "stop_probability": stop, **env},
        heads=HEADS,
        encoder=functools.partial(BlueprintEncoder.from_space, embedding_dim=4),
        rollout_length=fragment,
        sequence_length=max_seq_len,
        envs_per_runner=hosts,
        num_learners=learners,
        network=NetworkConfig(feature_dim=16, hidden_dim=hidden_dim, head_dim=8, memory=memory, play_temperature=0.5),
        learner=settings or LearnerConfig(minibatches=2),
        total_steps=total_steps,
        seed=seed,
    )


class Parts:
    """An env runner and a learner with equal weights, without an algorithm around them."""

    def __init__(self, config):
        self.config = config
        self.runner = SingleAgentEnvRunner(config=config, worker_index=0)
        env = self.runner.env
        spaces = {MODULE: (env.single_observation_space, env.single_action_space)}
        self.learner = config.build_learner(spaces=spaces)
        self.sync()

    @property
    def network(self):
        return self.learner.module[MODULE].network

    def sync(self):
        self.runner.set_state({"rl_module": self.learner.get_state()["rl_module"]})

    def perturb(self):
        """Weights far from the start, with a return scale that is not 1."""
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter += 0.3 * torch.randn(parameter.shape)
        self.network.return_scale.update(torch.tensor([10.0, 5.0, 50.0]), decay=0.9)
        self.sync()

    def train_batch(self, episodes):
        return self.learner._learner_connector(
            rl_module=self.learner.module, batch={}, episodes=episodes, shared_data={}, metrics=self.learner.metrics
        )

    def update(self, episodes=None, steps=0):
        results = self.learner.update(
            episodes=episodes or self.runner.sample(),
            timesteps={"num_env_steps_sampled_lifetime": steps},
            num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size,
            shuffle_batch_per_epoch=True,
        )[MODULE]
        return {name: float(stats.peek()) for name, stats in results.items() if name != "num_trainable_parameters"}


def weights(parts):
    return {name: value.clone() for name, value in parts.network.named_parameters()}


CASES = {
    "whole episodes": {},
    "cut and continued": {"fragment": 7},
    "several rows per episode": {"max_seq_len": 5},
    "random ends": {"stop": 0.15},
    "truncated": {"stop": 0.15, "truncate": True},
    "all of it": {"fragment": 7, "max_seq_len": 3, "stop": 0.15},
    "all of it, 128 wide": {"fragment": 7, "max_seq_len": 3, "stop": 0.15, "core": (128, True)},
    "all of it, 512 wide": {"fragment": 7, "max_seq_len": 3, "stop": 0.15, "core": (512, True)},
    "all of it, no LSTM": {"fragment": 7, "max_seq_len": 3, "stop": 0.15, "core": (128, False)},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_training_reproduces_the_rollout_and_returns_are_those_of_the_episodes(case):
    parts = Parts(config_of(**case))
    parts.perturb()
    scale = parts.network.return_scale.value.clone()
    for _ in range(3):
        episodes = parts.runner.sample()
        stored_rewards = [(np.asarray(episode.get_rewards()), episode.is_terminated) for episode in episodes]
        batch = parts.train_batch(episodes)[MODULE]
        with torch.no_grad():
            output = parts.learner.module.forward_train({MODULE: batch})[MODULE]["forward_result"]
        actions, real = batch[Columns.ACTIONS].long(), batch[Columns.LOSS_MASK]
        replayed = {
            HEAD_LOG_PROBS: output.distribution.log_prob(actions),
            Columns.ACTION_LOGP: output.distribution.log_prob(actions).sum(-1),
            Columns.VF_PREDS: output.scaled_value * scale,
            Q_VALUE: take_entry(output.scaled_q_values, actions[..., 0]) * scale,
        }
        assert real.sum() == sum(len(rewards) for rewards, _ in stored_rewards)
        for column, values in replayed.items():
            torch.testing.assert_close(values[real], batch[column][real], atol=1e-5, rtol=1e-5)
        returns = batch[Postprocessing.VALUE_TARGETS][real]
        occupied = torch.arange(real.shape[1]) < batch[Columns.SEQ_LENS].unsqueeze(-1)
        values = (output.scaled_value * scale)[occupied].split([len(rewards) + 1 for rewards, _ in stored_rewards])
        expected = [
            literal_returns(rewards, value.tolist(), terminated, 1.0, 0.95)
            for (rewards, terminated), value in zip(stored_rewards, values, strict=True)
        ]
        torch.testing.assert_close(
            returns, torch.tensor([g for episode in expected for g in episode]), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_with_the_op_baseline_returns_are_built_from_the_ops_that_the_rollout_took(case):
    parts = Parts(config_of(LearnerConfig(minibatches=2, critic_baseline="op"), **case))
    parts.perturb()
    episodes = parts.runner.sample()
    # Q of every step's op as the rollout stored it; where an episode was cut nobody has acted yet, and V stands.
    rewards = [(np.asarray(e.get_rewards()), e.get_extra_model_outputs(Q_VALUE), e.is_terminated) for e in episodes]
    batch = parts.train_batch(episodes)[MODULE]
    real, rows = batch[Columns.LOSS_MASK], batch[Columns.SEQ_LENS].unsqueeze(-1)
    artificial = (torch.arange(real.shape[1]) < rows) & ~real
    last = parts.learner.module[MODULE].forward_result(batch).value[artificial].tolist()
    expected = [
        literal_returns(reward, [*q_values, after], terminated, 1.0, 0.95)
        for (reward, q_values, terminated), after in zip(rewards, last, strict=True)
    ]
    returns = batch[Postprocessing.VALUE_TARGETS][real]
    torch.testing.assert_close(returns, torch.tensor([g for e in expected for g in e]), atol=1e-4, rtol=1e-4)
    op, argument = batch[Postprocessing.ADVANTAGES][real].unbind(-1)
    assert torch.equal(op, argument)
    ratio = (returns - batch[Q_VALUE][real]) / op
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), atol=0.0, rtol=1e-2)


def test_streams_are_returns_less_v_and_less_q_over_one_scale():
    parts = Parts(config_of(stop=0.1))
    parts.perturb()
    batch = parts.train_batch(parts.runner.sample())[MODULE]
    real = batch[Columns.LOSS_MASK]
    returns = batch[Postprocessing.VALUE_TARGETS][real]
    op, argument = batch[Postprocessing.ADVANTAGES][real].unbind(-1)
    # V and Q as the rollout stored them; the scale is that of the op's stream, over steps with a choice of op.
    differences = returns - batch[Columns.VF_PREDS][real]
    choice = batch[Columns.OBS]["action_mask"][real][..., :6].sum(-1) > 1
    scale = differences[choice].std(correction=0)
    torch.testing.assert_close(op, differences / scale, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(argument, (returns - batch[Q_VALUE][real]) / scale, atol=1e-4, rtol=1e-4)


def test_cuts_of_25_and_50_steps_give_the_values_and_returns_of_whole_episodes():
    def recorded(fragment, max_seq_len=None):
        """Columns of the real steps of 150-step episodes, in order of env and time."""
        parts = Parts(config_of(fragment=fragment, max_seq_len=max_seq_len, episode_length=150, hosts=2))
        parts.perturb()
        torch.manual_seed(7)
        rows = []
        for _ in range(150 // fragment):
            batch = parts.train_batch(parts.runner.sample())[MODULE]
            real = batch[Columns.LOSS_MASK]
            columns = [batch[name] for name in (Columns.REWARDS, Columns.VF_PREDS, Postprocessing.VALUE_TARGETS)]
            rows.append(torch.stack([column[real] for column in columns], dim=-1).reshape(2, fragment, 3))
        return torch.cat(rows, dim=1)

    whole = recorded(150)
    for length in (25, 50):
        torch.testing.assert_close(recorded(150, max_seq_len=length), whole, atol=1e-4, rtol=1e-4)
        fragments = recorded(length)
        torch.testing.assert_close(fragments[..., :2], whole[..., :2], atol=1e-4, rtol=1e-4)
        for env, start in itertools.product(range(2), range(0, 150, length)):
            rewards, values, returns = fragments[env, start : start + length].unbind(-1)
            last = start + length == 150
            values = [*values.tolist(), 0.0 if last else whole[env, start + length, 1].item()]
            expected = literal_returns(rewards.tolist(), values, last, 1.0, 0.95)
            torch.testing.assert_close(returns, torch.tensor(expected), atol=1e-3, rtol=1e-4)


def test_op_advantages_have_unit_deviation_over_steps_with_a_choice():
    parts = Parts(config_of())
    batch = parts.train_batch(parts.runner.sample())[MODULE]
    views = batch[Columns.OBS]["action_mask"][..., :6]
    counted = batch[Columns.LOSS_MASK] & (views.sum(-1) > 1)
    assert batch[Postprocessing.ADVANTAGES][..., 0][counted].std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert (batch[Postprocessing.ADVANTAGES][~batch[Columns.LOSS_MASK]] == 0).all()


def test_centred_advantages_have_mean_0_over_steps_with_a_choice_and_the_usual_scale():
    usual, centred = (
        Parts(config_of(LearnerConfig(minibatches=2, centre_advantages=centre), stop=0.15)) for centre in (False, True)
    )
    episodes = usual.runner.sample()
    batch = usual.train_batch(copy.deepcopy(episodes))[MODULE]
    after = centred.train_batch(episodes)[MODULE][Postprocessing.ADVANTAGES]
    before, real = batch[Postprocessing.ADVANTAGES], batch[Columns.LOSS_MASK]
    counted = real & ~usual.learner.module[MODULE].forward_result(batch).distribution.forced
    torch.testing.assert_close(after[counted].mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(after[real], (before - before[counted].mean(dim=0))[real], atol=1e-5, rtol=1e-5)
    assert before[counted].mean(dim=0).abs().min() > 0.01
    assert (after[~real] == 0).all()


def test_the_first_minibatch_is_on_policy_and_the_numbers_are_there():
    parts = Parts(config_of())
    numbers = parts.update()
    assert numbers["replay_error"] < 1e-5
    assert numbers["applied_share"] == 1
    assert numbers["return_scale"] > 0
    for head in ("op", "slot", "blueprint", "alpha_curve"):
        for measure in ("entropy", "ratio_max", "clip_share", "gradient_norm", "decided_share"):
            assert math.isfinite(numbers[f"{measure}/{head}"])
    assert numbers["ratio_min/op"] <= 1 <= numbers["ratio_max/op"]
    assert numbers["lstm_hidden_norm"] > 0


def real_observations(episodes):
    """What was seen before each action, in order, ``[steps, num_features]``."""
    return np.concatenate([episode.get_observations()["obs"][:-1] for episode in episodes])


@pytest.mark.parametrize("fragment", [EPISODE, 7])
def test_an_update_ends_by_taking_in_what_the_rollout_observed_once(fragment):
    parts = Parts(config_of(LearnerConfig(num_epochs=3, minibatches=2), fragment=fragment))
    seen = []
    for _ in range(3):
        episodes = parts.runner.sample()
        seen.append(real_observations(episodes))
        # Stored log-probabilities belong to the scale that was in force in the rollout.
        assert parts.update(episodes)["replay_error"] < 1e-5
        parts.sync()
        observed = np.concatenate(seen).astype(np.float64)
        for scale in (parts.network.encoder.scale, parts.runner.module.network.encoder.scale):
            count, mean, _ = scale.moments
            assert set(count.tolist()) == {len(observed)}
            np.testing.assert_allclose(mean, observed.mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(scale.deviation(0.0), observed.std(axis=0), atol=1e-4)


def normalisers(parts):
    """Moments of both scales, copied."""
    both = parts.network.normalisers
    return both.observations.moments.clone(), both.returns.moments.clone()


def test_the_pipeline_collects_and_moves_neither_scale():
    parts = Parts(config_of())
    parts.perturb()
    before = normalisers(parts)
    parts.train_batch(parts.runner.sample())
    assert all(map(torch.equal, normalisers(parts), before))


def test_targets_are_in_units_of_a_scale_that_has_taken_in_their_returns(monkeypatch):
    parts = Parts(config_of(LearnerConfig(num_epochs=2, minibatches=2, return_scale_decay=0.9)))
    parts.perturb()
    seen, make = [], parts.learner.minibatch

    def recorded(network, rows, output):
        minibatch = make(network, rows, output)
        seen.append((rows[Postprocessing.VALUE_TARGETS], minibatch.scaled_returns))
        return minibatch

    monkeypatch.setattr(parts.learner, "minibatch", recorded)
    past = parts.network.return_scale.moments.double()
    episodes = parts.runner.sample()
    batch = parts.train_batch(copy.deepcopy(episodes))[MODULE]
    returns = batch[Postprocessing.VALUE_TARGETS][batch[Columns.LOSS_MASK]].double()
    parts.update(episodes)
    # Chan, Golub and LeVeque by hand, with 0.9 of what was there before; in force from the first minibatch, moved once.
    count, mean, squared = 0.9 * past[0], past[1], 0.9 * past[2]
    delta, total = returns.mean() - mean, count + len(returns)
    squared = squared + (returns - returns.mean()).square().sum() + delta**2 * count * len(returns) / total
    scale = (squared / total).sqrt()
    assert len(seen) == 4
    for targets, scaled in seen:
        torch.testing.assert_close(scaled, (targets.double() / scale).float(), atol=1e-5, rtol=1e-5)
    assert parts.network.return_scale.value.item() == pytest.approx(scale.item(), rel=1e-5)


def test_learning_raises_the_return():
    parts = Parts(config_of(LearnerConfig(lr=3e-3, minibatches=2), hosts=16))
    returns = []
    for _ in range(8):
        episodes = parts.runner.sample()
        returns.append(np.mean([episode.get_return() for episode in episodes]))
        parts.update(episodes)
        parts.sync()
    assert np.mean(returns[-2:]) > 1.5 * np.mean(returns[:2])


def test_an_update_is_epochs_times_minibatches_whatever_the_episodes_lengths():
    settings = LearnerConfig(num_epochs=3, minibatches=4, kl_stop=None)
    parts = Parts(config_of(settings, stop=0.4, hosts=8, fragment=30, max_seq_len=10))
    for _ in range(3):
        parts.update()
    steps = [state["step"].item() for state in parts.learner.get_optimizer().state.values()]
    assert set(steps) == {3 * 3 * 4}


def test_two_learners_make_the_update_of_one():
    settings = LearnerConfig(num_epochs=2, minibatches=2, kl_stop=None, lr=3e-3)
    parts = Parts(config_of(settings))
    start = parts.learner.get_state()
    episodes = parts.runner.sample()
    config = config_of(settings, learners=2)
    env = parts.runner.env
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        group = config.build_learner_group(spaces={MODULE: (env.single_observation_space, env.single_action_space)})
        group.set_state({"learner": start})
        batches = {"timesteps": {"num_env_steps_sampled_lifetime": 0}, "shuffle_batch_per_epoch": False}
        results = group.update(
            episodes=copy.deepcopy(episodes), num_epochs=2, minibatch_size=config.minibatch_size, **batches
        )
        together = group.get_weights()[MODULE]
        group.shutdown()
    finally:
        ray.shutdown()
    parts.learner.update(episodes=episodes, num_epochs=2, minibatch_size=parts.config.minibatch_size, **batches)
    assert [float(result[MODULE]["applied_share"].peek()) for result in results] == [1, 1]
    for name, value in parts.network.named_parameters():
        other, before = (torch.tensor(state[f"network.{name}"]) for state in (together, start["rl_module"][MODULE]))
        # Adam divides by gradients as small as 1e-5, so rounding counts for more where there is hardly any gradient.
        torch.testing.assert_close(other, value.detach(), atol=1e-4, rtol=1e-3, msg=name)
        assert (other - before).abs().max() > 1e-3, name
    scale = ReturnScale()
    scale.moments.copy_(torch.tensor(together["network.return_scale.moments"]))
    assert scale.value.item() == pytest.approx(parts.network.return_scale.value.item(), rel=1e-5)
    # Each learner counts its half.
    shared = torch.tensor(together["network.encoder.scale.moments"])
    (count, mean, squared), whole = shared, parts.network.encoder.scale.moments
    torch.testing.assert_close(torch.stack([2 * count, mean, 2 * squared]), whole, atol=1e-5, rtol=1e-4)


def test_runs_with_neighbouring_seeds_share_no_hosts():
    seeds = [
        SingleAgentEnvRunner(config=config_of(seed=seed), worker_index=worker)._seed
        for seed in (0, 1, 2)
        for worker in (0, 1, 2)
    ]
    assert len(set(seeds)) == 9


def test_step_size_and_entropy_bonus_fall_over_the_run_and_no_further():
    settings = LearnerConfig(minibatches=2, lr=1e-3, lr_final=0.1, entropy_coeff=0.02, entropy_final=0.5)
    parts = Parts(config_of(settings, total_steps=400))
    found = [parts.update(steps=steps) for steps in (0, 200, 400, 800)]
    assert [numbers["lr"] for numbers in found] == pytest.approx([1e-3, 5.5e-4, 1e-4, 1e-4])
    assert [numbers["entropy_coeff"] for numbers in found] == pytest.approx([0.02, 0.015, 0.01, 0.01])
    with pytest.raises(ValueError, match=r"falls to 0\.1 of itself needs total_steps"):
        config_of(settings)


def test_divergence_stops_the_update_before_the_step():
    parts = Parts(config_of(LearnerConfig(kl_stop=1e-9, lr=1e-2, minibatches=2)))
    numbers = parts.update()
    # The first minibatch is on policy, its step strays, the second sees that.
    steps = [state["step"].item() for state in parts.learner.get_optimizer().state.values()]
    assert set(steps) == {1.0}
    assert numbers["applied_share"] == pytest.approx(1 / 8)


def spoken(parts, numbers):
    return spoken_alarms(numbers, parts.config.settings)


def test_an_update_that_does_not_belong_to_its_rollout_rings_makes_no_step_and_is_said():
    parts = Parts(config_of())
    before = weights(parts)
    episodes = parts.runner.sample()
    for episode in episodes:
        for step in range(len(episode)):
            episode.extra_model_outputs[HEAD_LOG_PROBS][step] = np.full(8, -9.0, np.float32)
    numbers = parts.update(episodes)
    assert numbers["applied_share"] == 0
    assert numbers["kl"] > 1
    assert all(torch.equal(before[name], value) for name, value in weights(parts).items())
    assert (numbers["alarm/replay"], numbers["alarm/no_step"]) == (1, 1)
    replay, no_step = spoken(parts, numbers)
    assert f"replay_error {numbers['replay_error']:.2g}" in replay
    assert "made no step" in no_step
    assert "the cause is above" in no_step


def test_weights_one_update_older_than_the_rollouts_ring():
    parts = Parts(config_of(LearnerConfig(minibatches=2, kl_stop=None)))
    parts.update()
    numbers = parts.update(parts.runner.sample())  # the runner has the weights from before
    assert numbers["applied_share"] == 1
    assert (numbers["alarm/replay"], numbers["alarm/no_step"]) == (1, 0)
    assert len(spoken(parts, numbers)) == 1


def test_a_limit_below_rounding_stops_before_the_first_step_and_that_is_said():
    parts = Parts(config_of(LearnerConfig(kl_stop=1e-30, minibatches=2), hosts=8, stop=0.1))
    parts.perturb()
    numbers = parts.update()
    assert (numbers["alarm/replay"], numbers["alarm/no_step"], numbers["applied_share"]) == (0, 1, 0)
    (line,) = spoken(parts, numbers)
    assert "above kl_stop 1e-30 before the first step" in line
    assert "raise kl_stop" in line


def test_a_healthy_update_says_nothing():
    parts = Parts(config_of())
    numbers = parts.update()
    assert (numbers["alarm/replay"], numbers["alarm/no_step"], numbers["alarm/non_finite"]) == (0, 0, 0)
    assert spoken(parts, numbers) == []


def test_gradients_that_are_not_finite_are_counted_and_said():
    parts = Parts(config_of(LearnerConfig(minibatches=4, num_epochs=1, kl_stop=None)))
    episodes = parts.runner.sample()
    for step in range(len(episodes[0])):
        episodes[0].extra_model_outputs[HEAD_LOG_PROBS][step] = np.full(8, math.nan, np.float32)
    numbers = parts.update(episodes)
    assert (numbers["alarm/non_finite"], numbers["applied_share"]) == (1, 0.75)
    assert "whose steps were left out: 1" in spoken(parts, numbers)[-1]


def test_without_a_limit_no_step_is_left_out():
    parts = Parts(config_of(LearnerConfig(kl_stop=None, lr=1e-2, minibatches=2)))
    assert parts.update()["applied_share"] == 1


def test_a_reward_that_is_not_finite_ends_the_run_before_anything_is_touched():
    parts = Parts(config_of(reward_of_op=(math.nan, 0, 0, 0, 0, 0)))
    before, scales = weights(parts), normalisers(parts)
    with pytest.raises(FloatingPointError, match="returns are not finite"):
        parts.update()
    assert all(torch.equal(before[name], value) for name, value in weights(parts).items())
    assert all(map(torch.equal, normalisers(parts), scales))


def test_an_update_without_a_finite_gradient_is_an_error_and_changes_nothing():
    parts = Parts(config_of())
    before, scales = weights(parts), normalisers(parts)
    episodes = parts.runner.sample()
    for episode in episodes:
        for step in range(len(episode)):
            episode.extra_model_outputs[HEAD_LOG_PROBS][step] = np.full(8, math.nan, np.float32)
    with pytest.raises(FloatingPointError, match="none of the 8 gradients"):
        parts.update(episodes)
    assert all(torch.equal(before[name], value) for name, value in weights(parts).items())
    assert all(map(torch.equal, normalisers(parts), scales))


def test_gradients_are_clipped_by_their_global_norm():
    parts = Parts(config_of(LearnerConfig(grad_clip=1e-3, minibatches=2)))
    numbers = parts.update()
    assert numbers["gradient_clipped_share"] == 1
    assert numbers["alarm/clip_saturated"] == 1
    norm = torch.stack([p.grad.norm() for p in parts.network.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_a_second_build_adds_nothing():
    learner = Parts(config_of()).learner
    pieces = [type(piece).__name__ for piece in learner._learner_connector.connectors]
    learner.build()
    assert [type(piece).__name__ for piece in learner._learner_connector.connectors] == pieces
    assert pieces.count("FactoredAdvantages") == 1
    assert "GeneralAdvantageEstimation" not in pieces


def test_same_seed_same_weights():
    results = []
    for _ in range(2):
        parts = Parts(config_of(stop=0.1, seed=3))
        for _ in range(2):
            parts.update()
            parts.sync()
        results.append(weights(parts))
    assert all(torch.equal(results[1][name], value) for name, value in results[0].items())


def test_a_checkpoint_brings_back_actions_values_and_optimiser(tmp_path):
    parts = Parts(config_of())
    parts.update()
    parts.learner.save_to_path(tmp_path / "learner")
    other = Parts(config_of(seed=9))
    other.learner.restore_from_path(tmp_path / "learner")
    served = RLModule.from_checkpoint(tmp_path / "learner" / "rl_module" / MODULE)
    batch = parts.train_batch(parts.runner.sample())[MODULE]
    obs = {name: leaf[:, 0] for name, leaf in batch[Columns.OBS].items()}
    parts.update()
    other.learner.restore_from_path(tmp_path / "learner")
    reference = Parts(config_of(seed=9))
    reference.learner.restore_from_path(tmp_path / "learner")
    expected = reference.network.act(obs, reference.network.initial_hidden(4), torch.Generator().manual_seed(0))
    for network in (other.network, served.network):
        result = network.act(obs, network.initial_hidden(4), torch.Generator().manual_seed(0))
        assert torch.equal(result.actions, expected.actions)
        assert torch.equal(result.value, expected.value)
    assert other.network.return_scale.value != 1
    steps = [state["step"].item() for state in other.learner.get_optimizer().state.values()]
    assert set(steps) == {8.0}


def test_a_restored_learner_has_the_moments_of_the_checkpoint_and_the_settings_of_its_own_config():
    parts = Parts(config_of(LearnerConfig(lr=1e-2, minibatches=2)))
    parts.update()
    other = Parts(config_of(LearnerConfig(lr=1e-4, adam_epsilon=1e-3, minibatches=2)))
    other.learner.set_state(parts.learner.get_state())
    saved, restored = (learner.get_optimizer() for learner in (parts.learner, other.learner))
    assert [(group["lr"], group["eps"]) for group in restored.param_groups] == [(1e-4, 1e-3)]
    for left, right in zip(saved.state.values(), restored.state.values(), strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_restored_step_size_is_where_its_schedule_was():
    learners = []
    for _ in range(2):
        config = config_of()
        config.training(lr=[[0, 1e-2], [100, 0.0]])
        learners.append(Parts(config))
    first, second = learners
    first.update()
    first.learner.after_gradient_based_update(timesteps={"num_env_steps_sampled_lifetime": 25})
    second.learner.set_state(first.learner.get_state())
    assert second.learner.get_optimizer().param_groups[0]["lr"] == pytest.approx(7.5e-3)


def test_weights_of_another_network_are_refused():
    module = Parts(config_of()).learner.module[MODULE]
    state = module.get_state()
    state.pop("network.lstm_norm.weight")
    with pytest.raises(RuntimeError, match=r"lstm_norm\.weight"):
        module.set_state(state)


def test_slots_that_do_not_fit_the_env_are_refused():
    config = config_of()
    config.rl_module_spec.model_config["heads"] = SlotConfig(("a", "b")).heads
    with pytest.raises(ValueError, match="give the env's own heads"):
        Parts(config)


def test_inference_draws_at_its_temperature_unless_told_otherwise():
    config = config_of(hosts=64)
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    runner.sample(num_timesteps=64)
    module = runner.module
    batch = {
        Columns.OBS: {
            "obs": torch.zeros(64, 1, 121),
            "blueprint_indices": torch.full((64, 1, 3), -1),
            "action_mask": torch.ones(64, 1, 56, dtype=torch.int8),
        },
        Columns.STATE_IN: {name: leaf.expand(64, -1) for name, leaf in module.get_initial_state().items()},
    }
    distribution = module.forward_result(batch).distribution
    for draw, temperature in ((module.forward_inference, 0.5), (module.forward_exploration, 1.0)):
        drawn = draw(batch)
        log_probs = distribution.at_temperature(temperature).log_prob(drawn[Columns.ACTIONS])
        torch.testing.assert_close(drawn[HEAD_LOG_PROBS], log_probs)
        assert len(drawn[Columns.ACTIONS].unique(dim=0)) > 10
    module.model_config["deterministic_inference"] = True
    assert len(module.forward_inference(batch)[Columns.ACTIONS].unique(dim=0)) == 1


def test_hosts_must_divide_into_minibatches():
    with pytest.raises(ValueError, match="4 envs cannot be dealt evenly to 1 learner"):
        config_of(LearnerConfig(minibatches=3))


def test_the_algorithm_trains_and_restores(tmp_path):
    assert type(EsperPPO.get_default_config()) is EsperPPOConfig
    try:
        algorithm = config_of().build_algo()
        result = algorithm.train()
        assert result["learners"][MODULE]["replay_error"] < 1e-5
        assert result["num_env_steps_sampled_lifetime"] == 4 * EPISODE
        algorithm.save_to_path(tmp_path / "checkpoint")
        other = config_of(seed=9).build_algo()
        other.restore_from_path(tmp_path / "checkpoint")
        state = algorithm.get_module().get_state()
        for module in (other.get_module(), other.learner_group._learner.module[MODULE]):
            assert all(np.array_equal(state[name], value) for name, value in module.get_state().items())
        assert other.iteration == 1
    finally:
        ray.shutdown()


def waits_of_every_minibatch(parts):
    """What each minibatch of an update would have a GPU's host wait for."""
    minibatches = []
    step = parts.learner.update_minibatch

    def recorded(*given, **named):
        with Dispatched() as dispatched:
            result = step(*given, **named)
        minibatches.append(dispatched.waits)
        return result

    parts.learner.update_minibatch = recorded
    parts.update()
    return minibatches


@pytest.mark.parametrize("settings", [{}, {"critic_baseline": "op"}, {"kl_stop": None}, {"bf16": True}])
def test_a_minibatch_asks_nothing_of_a_gpu_but_its_numbers(settings):
    parts = Parts(config_of(LearnerConfig(minibatches=2, **settings), stop=0.15))
    parts.update()  # Adam makes its state
    # Adam counts its steps in one tensor per parameter, on the CPU wherever the parameter is.
    counters = {"aten._local_scalar_dense.default": len(weights(parts))}
    assert waits_of_every_minibatch(parts) == [counters] * 8


def test_numbers_are_read_together():
    numbers = {"a": torch.tensor(1.5), "b": torch.tensor(2, dtype=torch.int64), "c": torch.tensor(torch.nan)}
    values = read(numbers)
    assert (values["a"], values["b"]) == (1.5, 2.0)
    assert math.isnan(values["c"])
    assert read({}) == {}


def test_a_rollouts_step_leaves_the_device_as_one_tensor():
    parts = Parts(config_of())
    parts.perturb()
    module = parts.runner.module
    obs, _ = parts.runner.env.reset(seed=0)
    state = {name: leaf.expand(4, -1) for name, leaf in module.get_initial_state().items()}
    batch = {Columns.OBS: {name: torch.as_tensor(leaf)[:, None] for name, leaf in obs.items()}, Columns.STATE_IN: state}
    torch.manual_seed(3)
    columns = module.forward_exploration(batch)
    torch.manual_seed(3)
    direct = module.network.act({name: leaf[:, 0] for name, leaf in batch[Columns.OBS].items()}, tuple(state.values()))
    assert columns[Columns.ACTIONS].dtype == torch.int64
    assert torch.equal(columns[Columns.ACTIONS][:, 0], direct.actions)
    assert torch.equal(columns[HEAD_LOG_PROBS][:, 0], direct.head_log_probs)
    assert torch.equal(columns[Q_VALUE][:, 0], direct.q_value)
    assert all(torch.equal(a, b) for a, b in zip(columns.pop(Columns.STATE_OUT).values(), direct.hidden, strict=True))
    floats = [leaf for leaf in columns.values() if leaf.is_floating_point()]
    assert len({leaf.untyped_storage().data_ptr() for leaf in floats}) == 1


def one_gradient(parts, episodes):
    """Gradient of the first loss over a rollout, flat, and the log-probabilities that it found."""
    learner = parts.learner
    batch = parts.train_batch(copy.deepcopy(episodes))
    learner.before_gradient_based_update(timesteps={"num_env_steps_sampled_lifetime": 0})
    with learner.transaction():
        passed = learner.module.forward_train(batch)
        gradients = learner.compute_gradients(learner.compute_losses(fwd_out=passed, batch=batch))
    distribution = passed[MODULE]["forward_result"].distribution
    log_probs = distribution.log_prob(batch[MODULE][Columns.ACTIONS].long())[batch[MODULE][Columns.LOSS_MASK]]
    return torch.cat([gradient.flatten() for gradient in gradients.values()]), log_probs.detach()


def test_in_bfloat16_gradients_are_nearly_the_same_and_the_rest_is_float32():
    usual, rounded = (Parts(config_of(LearnerConfig(minibatches=2, bf16=bf16))) for bf16 in (False, True))
    usual.perturb()
    rounded.learner.set_state(usual.learner.get_state())
    episodes = usual.runner.sample()
    (exact, found), (near, found_rounded) = (one_gradient(parts, episodes) for parts in (usual, rounded))
    assert near.dtype == found_rounded.dtype == torch.float32
    assert 1e-5 < (near - exact).norm() / exact.norm() < 0.05
    assert 1e-5 < (found - found_rounded).abs().max() < 0.1
    numbers = rounded.update(episodes)
    # The check against the rollout is made in float32: rounding does not ring.
    assert numbers["replay_error"] < 1e-5
    assert spoken(rounded, numbers) == []
    assert numbers["applied_share"] == 1
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in weights(rounded).values())
