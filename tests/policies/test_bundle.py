"""Every bundle means the same by its methods; what a kind cannot offer is said, not made up."""

import math

import numpy as np
import pytest
import torch

from envs.action_masks import split_mask
from envs.graph.layout import GraphLayout
from envs.hosts.cnn import CnnVariant
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.slots import SlotConfig
from envs.vocabulary import HEAD_NAMES, AlphaTarget, LifecycleOp
from policies.bundle import PolicySettings, UnsupportedByPolicyError
from policies.factory import build_policy
from policies.heuristic import NEXT_BLUEPRINT
from policies.network_config import NetworkConfig
from policies.player import Player
from policies.registry import registered
from policies.strategic.greenhouse import GreenhouseReader
from tests.envs.helpers import task_of

HOSTS, STEPS = 3, 20
SMALL = NetworkConfig(feature_dim=16, hidden_dim=12, head_dim=8, play_temperature=0.5)
SLOTS = SlotConfig.for_row(2)
TASK = task_of(CnnVariant((4, 4), (1, 1)), batches=1)
GRAPH = GraphLayout.of(TASK)
SETTINGS = PolicySettings(SLOTS, STEPS, SMALL, GRAPH)
NAMES = ("learned", "never_grow", "random_valid", "heuristic", "fixed_schedule", "periodic", "gradient")
RULES = NAMES[1:]


def build(name, seed=0, settings=SETTINGS):
    """A policy by name; the learned one far from its start, where all actions look alike."""
    torch.manual_seed(seed)
    policy = build_policy(name, settings)
    if policy.network is not None:
        with torch.no_grad():
            for parameter in policy.network.parameters():
                parameter += 0.3 * torch.randn(parameter.shape)
            policy.network.return_scale.update(torch.tensor([10.0, 5.0, 500.0]), decay=0.9)
    return policy


def play(name, seed=0):
    """An episode of a few hosts: observations ``[B, T]``, flat and as graphs, and each step's ActionResult."""
    env = MorphogenesisVectorEnv(
        HOSTS, task=TASK, max_epochs=STEPS, min_training_epochs=1, embargo_epochs=1, graph=True
    )
    reader = GreenhouseReader(GRAPH)
    policy = build(name, seed)
    assert env.task.slots == SLOTS
    observations, _ = env.reset(seed=seed)
    generator, hidden = torch.Generator().manual_seed(seed), policy.initial_hidden(HOSTS)
    steps, results = [], []
    for _ in range(STEPS):
        obs = {leaf: torch.from_numpy(values.copy()) for leaf, values in observations.items()}
        obs |= reader.flat(obs)
        result = policy.get_action(obs, hidden, generator)
        observations, *_, info = env.step(result.actions.numpy())
        assert "refused" not in info
        hidden = result.hidden
        steps.append(obs)
        results.append(result)
    return policy, {leaf: torch.stack([obs[leaf] for obs in steps], dim=1) for leaf in steps[0]}, results


@pytest.fixture(scope="module")
def episodes():
    return {name: play(name) for name in NAMES}


def test_every_name_is_registered():
    assert set(NAMES) <= set(registered())


@pytest.mark.parametrize("name", NAMES)
def test_properties_say_what_the_methods_do(name, episodes):
    policy, obs, results = episodes[name]
    assert policy.slot_config == SLOTS
    assert policy.reads_graphs == (name in ("periodic", "gradient"))
    assert policy.feature_dim == obs["graph" if policy.reads_graphs else "obs"].shape[-1]
    assert policy.device == torch.device("cpu")
    assert not policy.is_compiled
    assert policy.is_recurrent == (name in ("learned", "heuristic"))
    hidden = policy.initial_hidden(HOSTS)
    assert len(hidden) == {"learned": 2, "heuristic": 1}.get(name, 0)
    for first, last in zip(hidden, results[-1].hidden, strict=True):
        assert first.shape == last.shape == (HOSTS, policy.hidden_dim)
    result = policy.forward(obs, hidden)
    assert result.distribution.op_log_probs.dtype == policy.dtype
    assert result.distribution.op_log_probs.shape == (HOSTS, STEPS, 6)
    assert results[0].actions.shape == results[0].head_log_probs.shape == (HOSTS, 8)
    torch.testing.assert_close(results[0].op_probs.sum(-1), torch.ones(HOSTS))


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_of_a_rollout_are_those_of_the_stored_actions(name, episodes):
    policy, obs, results = episodes[name]
    actions = torch.stack([result.actions for result in results], dim=1)
    stored = torch.stack([result.head_log_probs for result in results], dim=1)
    evaluated = policy.evaluate_actions(obs, actions, policy.initial_hidden(HOSTS))
    torch.testing.assert_close(evaluated.head_log_probs, stored, atol=1e-5, rtol=1e-5)
    read = policy.forward(obs, policy.initial_hidden(HOSTS))
    torch.testing.assert_close(read.distribution.log_prob(actions), stored, atol=1e-5, rtol=1e-5)
    op_probs = torch.stack([result.op_probs for result in results], dim=1)
    torch.testing.assert_close(read.distribution.op_log_probs.exp(), op_probs, atol=1e-5, rtol=1e-5)
    for whole, last in zip(evaluated.hidden, results[-1].hidden, strict=True):
        torch.testing.assert_close(whole, last, atol=1e-5, rtol=1e-5)
    assert len(torch.unique(actions[..., 0])) > 1 or name == "never_grow"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [1, 7, 13])
def test_a_sequence_cut_anywhere_goes_on_with_the_carried_state(name, cut, episodes):
    policy, obs, results = episodes[name]
    actions = torch.stack([result.actions for result in results], dim=1)
    whole = policy.evaluate_actions(obs, actions, policy.initial_hidden(HOSTS))
    hidden, parts = policy.initial_hidden(HOSTS), []
    for part in (slice(0, cut), slice(cut, STEPS)):
        evaluated = policy.evaluate_actions(
            {leaf: values[:, part] for leaf, values in obs.items()}, actions[:, part], hidden
        )
        hidden = evaluated.hidden
        parts.append(evaluated.head_log_probs)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.head_log_probs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["learned", "heuristic"])
def test_a_recurrent_policy_depends_on_its_state(name, episodes):
    policy, obs, results = episodes[name]
    actions = torch.stack([result.actions for result in results], dim=1)
    other = tuple(torch.full_like(state, 3.0) for state in policy.initial_hidden(HOSTS))
    first, second = (
        policy.evaluate_actions(obs, actions, hidden).head_log_probs for hidden in (policy.initial_hidden(HOSTS), other)
    )
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_off_policy_support_is_a_positive_probability_of_every_admitted_action(name, episodes):
    policy = episodes[name][0]
    _, obs, results = episodes["random_valid"]
    actions = torch.stack([result.actions for result in results], dim=1)
    evaluated = policy.evaluate_actions(obs, actions, policy.initial_hidden(HOSTS))
    joint = evaluated.head_log_probs.double().sum(-1).exp()
    assert not evaluated.head_log_probs.isnan().any()
    assert (joint > 0).all() == policy.supports_off_policy
    assert all(entropy.isfinite().all() for entropy in evaluated.entropies)


@pytest.mark.parametrize("name", ["never_grow", "heuristic", "fixed_schedule", "periodic", "gradient"])
def test_a_certain_rule_gives_its_action_everything_and_others_nothing(name, episodes):
    policy, obs, results = episodes[name]
    actions = torch.stack([result.actions for result in results], dim=1)
    for result in results:
        assert (result.head_log_probs == 0).all()
        assert torch.equal(result.op_probs, torch.eye(6)[result.actions[:, 0]])
    hidden = policy.initial_hidden(HOSTS)
    for column, head in enumerate(SLOTS.heads):
        other = actions.clone()
        other[..., column] = (other[..., column] + 1) % head.size
        needed = torch.isin(actions[..., 0], torch.tensor(head.needed_by))
        first = {leaf: values[:, :1] for leaf, values in obs.items()}
        joint = policy.evaluate_actions(first, other[:, :1], hidden).head_log_probs.double().sum(-1).exp()
        assert torch.equal(joint == 0, needed[:, :1])
    assert (policy.evaluate_actions(obs, actions, hidden).entropies[0] == 0).all()


def test_random_valid_is_uniform_over_ops_then_over_what_they_need(episodes):
    policy, obs, results = episodes["random_valid"]
    views = split_mask(obs["action_mask"], SLOTS.heads)
    for step, result in enumerate(results):
        for host, action in enumerate(result.actions.tolist()):
            for column, head in enumerate(SLOTS.heads):
                view = views[head.name][host, step]
                admitted = (view[action[0]] if head.masked_by_op else view).sum().item()
                expected = -math.log(admitted) if action[0] in head.needed_by else 0.0
                assert result.head_log_probs[host, column].item() == pytest.approx(expected, abs=1e-6)
    entropy = policy.evaluate_actions(obs, torch.stack([r.actions for r in results], 1), ()).entropies[0]
    several = views["op"].sum(-1) >= 2
    torch.testing.assert_close(entropy[several], torch.ones_like(entropy[several]))


def test_the_heuristic_remembers_what_was_done_not_what_it_would_have_done(episodes):
    policy, obs, _ = episodes["heuristic"]
    action = torch.zeros(HOSTS, 1, 8, dtype=torch.int64)
    action[..., HEAD_NAMES.index("op")] = LifecycleOp.GERMINATE
    action[..., HEAD_NAMES.index("blueprint")] = torch.tensor([[1], [4], [12]])
    action[..., HEAD_NAMES.index("alpha_target")] = AlphaTarget.FULL
    first = {leaf: values[:, :1] for leaf, values in obs.items()}
    start = policy.initial_hidden(HOSTS)
    evaluated = policy.evaluate_actions(first, action, start)
    assert evaluated.hidden[0][:, NEXT_BLUEPRINT].tolist() == [2, 5, 0]
    assert policy.forward(first, start).hidden[0][:, NEXT_BLUEPRINT].tolist() == [0, 0, 0]
    assert (start[0] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_initial_state_is_never_an_inference_tensor(name):
    policy = build(name)
    with torch.inference_mode():
        hidden = policy.initial_hidden(2)
    assert not any(state.is_inference() for state in hidden)


def test_gradients_pass_from_evaluated_actions_to_the_initial_state(episodes):
    policy, obs, results = episodes["learned"]
    with torch.inference_mode():
        hidden = policy.initial_hidden(HOSTS)
    for state in hidden:
        state.requires_grad_()
    actions = torch.stack([result.actions for result in results], dim=1)
    evaluated = policy.evaluate_actions(obs, actions, hidden)
    (evaluated.head_log_probs.sum() + evaluated.value.sum()).backward()
    assert all(state.grad.abs().max() > 0 for state in hidden)
    policy.network.zero_grad()


def test_values_are_in_reward_units_wherever_they_are_asked_for(episodes):
    policy, obs, results = episodes["learned"]
    stored = torch.stack([result.value for result in results], dim=1)
    hidden = policy.initial_hidden(HOSTS)
    actions = torch.stack([result.actions for result in results], dim=1)
    assert policy.network.return_scale.value > 2
    for value in (
        policy.get_value(obs, hidden),
        policy.forward(obs, hidden).value,
        policy.evaluate_actions(obs, actions, hidden).value,
    ):
        torch.testing.assert_close(value, stored, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_that_it_has_no_critic_no_weights_and_no_network(name, episodes):
    policy, obs, results = episodes[name]
    kind = type(policy).__name__
    assert results[0].value is None
    assert policy.forward(obs, policy.initial_hidden(HOSTS)).value is None
    with pytest.raises(UnsupportedByPolicyError, match=f"{kind} follows a rule and has no critic"):
        policy.get_value(obs, policy.initial_hidden(HOSTS))
    assert policy.network is None
    assert policy.state_dict() == {}
    policy.load_state_dict({})
    with pytest.raises(RuntimeError, match=f"{kind} follows a rule and has no weights, got heads"):
        policy.load_state_dict({"heads": torch.zeros(1)})
    with pytest.raises(UnsupportedByPolicyError, match=f"{kind} follows a rule and has no network"):
        build_policy(name, SETTINGS, compiled=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_state_dict_and_seed_give_the_same_actions(name, deterministic, episodes):
    policy, obs, _ = episodes[name]
    other = build(name, seed=9)
    other.load_state_dict(policy.state_dict())
    steps = [{leaf: values[:, step].numpy() for leaf, values in obs.items()} for step in range(STEPS)]
    played = []
    for chosen in (policy, policy, other):
        player = Player(chosen, HOSTS, seed=4, deterministic=deterministic)
        played.append(np.stack([player.act(step) for step in steps]))
    np.testing.assert_array_equal(played[0], played[1])
    np.testing.assert_array_equal(played[0], played[2])


def test_a_state_dict_of_other_sizes_is_refused():
    wider = build("learned", settings=PolicySettings(SLOTS, STEPS, NetworkConfig(16, 24, 8)))
    with pytest.raises(RuntimeError, match="size mismatch"):
        build("learned").load_state_dict(wider.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_the_factory_makes_tensors_on_the_device(name):
    policy = build_policy(name, SETTINGS, device="meta")
    assert policy.device.type == "meta"
    assert all(state.device.type == "meta" for state in policy.initial_hidden(2))
    assert all(weight.device.type == "meta" for weight in policy.state_dict().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_moves_and_returns_itself(name):
    policy = build_policy(name, SETTINGS)
    assert policy.to("meta") is policy
    assert policy.device.type == "meta"


def test_a_compiled_policy_decides_as_before(episodes):
    policy, obs, results = episodes["learned"]
    compiled = build_policy("learned", SETTINGS, compiled=True)
    assert compiled.is_compiled
    compiled.load_state_dict(policy.state_dict())
    assert compiled.state_dict().keys() == policy.state_dict().keys()
    actions = torch.stack([result.actions for result in results], dim=1)
    with torch.compiler.set_stance("force_eager"):  # a compiler is slow, and not every machine has one
        evaluated = compiled.evaluate_actions(obs, actions, compiled.initial_hidden(HOSTS))
    expected = policy.evaluate_actions(obs, actions, policy.initial_hidden(HOSTS))
    torch.testing.assert_close(evaluated.head_log_probs, expected.head_log_probs)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown policy 'magic': choose one of .*heuristic, learned"):
        build_policy("magic", SETTINGS)


def test_the_learned_policy_plays_at_its_temperature_and_explores_at_one(episodes):
    policy, obs, results = episodes["learned"]
    hidden = policy.initial_hidden(HOSTS)
    trained = policy.network(obs, hidden).distribution
    played = policy.forward(obs, hidden).distribution
    for ours, theirs in zip(played.log_probs, trained.at_temperature(0.5).log_probs, strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(results[0].op_probs, played.op_log_probs[:, 0].exp())
    explored = policy.network.act({leaf: values[:, 0] for leaf, values in obs.items()}, hidden).op_probs
    torch.testing.assert_close(explored, trained.op_log_probs[:, 0].exp())
    assert not torch.allclose(explored, results[0].op_probs)


def test_a_policy_without_memory_is_not_recurrent():
    policy = build("learned", settings=PolicySettings(SLOTS, STEPS, NetworkConfig(16, 12, 8, memory=False)))
    assert not policy.is_recurrent
    assert policy.hidden_dim == 0
    assert all(state.shape == (2, 0) for state in policy.initial_hidden(2))
