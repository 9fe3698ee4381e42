from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.action_masks import mask_size, split_mask
from envs.slots import SlotConfig
from envs.vocabulary import HeadSpec
from policies.distribution import take_entry
from policies.encoders import BlueprintEncoder, FlatEncoder
from policies.network import RecurrentPolicyNetwork
from policies.network_config import NetworkConfig
from policies.return_scale import WORLD
from policies.strategic.actor_critic import GraphActorCritic
from tests.devices import DEVICES
from tests.dispatched import Dispatched
from tests.policies.strategic.greenhouses import graph_network, graph_observations

torch.set_num_threads(1)
KINDS = ("flat", "graph")
NUM_BLUEPRINTS = len(SlotConfig.for_row(1).blueprints)
SMALL = NetworkConfig(feature_dim=16, hidden_dim=12, head_dim=8)


def build(slots=3, config=SMALL, seed=0):
    torch.manual_seed(seed)
    heads = SlotConfig.for_row(slots).heads
    encoder = BlueprintEncoder(31 + 30 * slots, slots, NUM_BLUEPRINTS, config.embedding_dim)
    return RecurrentPolicyNetwork(heads, encoder, config)


def perturbed(slots=3, seed=0, kind="flat"):
    """A network whose heads and op embeddings are far from their start; one of graphs has three worlds to read."""
    if kind == "graph":
        return graph_network("digits", "tabular", "text", seed=seed, away=0.1)
    network = build(slots, seed=seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return network


def observations(network, *shape, seed=0, full=False, density=0.6):
    if isinstance(network, GraphActorCritic):
        return graph_observations(network, *shape, seed=seed, full=full, density=density)
    rng = np.random.default_rng(seed)
    slots = network.head_specs[1].size
    mask = (rng.random((*shape, mask_size(network.head_specs))) < density).astype(np.int8)
    views = split_mask(mask, network.head_specs)
    views["op"][..., 0] = 1
    for head in network.head_specs[1:]:
        views[head.name][..., 0] = 1
    if full:
        mask[...] = 1
    return {
        "obs": torch.from_numpy(rng.uniform(-1, 2, (*shape, 31 + 30 * slots)).astype(np.float32)),
        "blueprint_indices": torch.from_numpy(rng.integers(-1, NUM_BLUEPRINTS, (*shape, slots))),
        "action_mask": torch.from_numpy(mask),
    }


def graph_heads(network):
    """Of a network of graphs: what decides, and what judges ops."""
    return network.graphs.heads.action, network.graphs.heads.op_advantages


def test_default_size_is_that_of_the_design():
    network = build(config=NetworkConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_705_192
    assert network.feature_net[0].in_features == 133


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_sizes_follow_the_slots(slots):
    network = build(slots)
    output = network(observations(network, 2, 4), network.initial_hidden(2))
    assert output.scaled_value.shape == (2, 4)
    assert output.scaled_q_values.shape == (2, 4, 6)
    for head, table in zip(network.head_specs, output.distribution.log_probs, strict=True):
        rows = 1 if head.name == "op" else len(head.needed_by)
        assert table.shape == (2, 4, rows, head.size)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_of_q_under_the_policy_is_the_state_value(kind):
    network = perturbed(kind=kind)
    output = network(observations(network, 4, 9), network.initial_hidden(4))
    mean = (output.distribution.op_log_probs.exp() * output.scaled_q_values).sum(-1)
    torch.testing.assert_close(mean, output.scaled_value, atol=1e-6, rtol=1e-6)
    assert (output.scaled_q_values.amax(-1) - output.scaled_q_values.amin(-1)).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_one_pass_reproduces_the_steps_of_a_rollout(device, kind):
    network = perturbed(kind=kind)
    returns = torch.tensor([10.0, 5.0, 50.0])
    network.return_scale.update(returns if kind == "flat" else returns.unsqueeze(1).expand(3, 3), decay=0.9)
    obs = observations(network, 5, 20)
    generator = torch.Generator().manual_seed(3)
    hidden = network.initial_hidden(5)
    results = []
    for step in range(20):
        result = network.act({name: leaf[:, step] for name, leaf in obs.items()}, hidden, generator)
        hidden = result.hidden
        results.append(result)
    network.to(device)
    output = network({name: leaf.to(device) for name, leaf in obs.items()}, network.initial_hidden(5))
    actions = torch.stack([result.actions for result in results], dim=1).to(device)
    stored = {
        name: torch.stack([getattr(result, name) for result in results], dim=1).to(device)
        for name in ("head_log_probs", "log_prob", "value", "q_value", "op_probs")
    }
    scale = output.return_scale
    replayed = {
        "head_log_probs": output.distribution.log_prob(actions),
        "log_prob": output.distribution.log_prob(actions).sum(-1),
        "value": output.scaled_value * scale,
        "q_value": take_entry(output.scaled_q_values, actions[..., 0]) * scale,
        "op_probs": output.distribution.op_log_probs.exp(),
    }
    assert (scale > 1.5).all()
    tolerance = 1e-5 if device == "cpu" else 1e-3  # between two devices
    for name, values in stored.items():
        torch.testing.assert_close(replayed[name], values, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(output.hidden[1].cpu(), hidden[1], atol=tolerance, rtol=tolerance)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    cut=st.integers(1, 12),
    density=st.sampled_from([0.0, 0.3, 0.9]),
    mask_type=st.sampled_from([torch.int8, torch.bool, torch.int64, torch.float32]),
    obs_type=st.sampled_from([torch.float32, torch.float64]),
    index_type=st.sampled_from([torch.int64, torch.int32, torch.int8]),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(KINDS),
)
def test_padded_rows_of_any_cut_replay_a_rollout(lengths, cut, density, mask_type, obs_type, index_type, seed, kind):
    network, count, longest = perturbed(kind=kind), len(lengths), max(lengths)
    obs = observations(network, count, longest, seed=seed, density=density)
    generator, hidden = torch.Generator().manual_seed(seed), network.initial_hidden(count)
    stored, states = [], []
    for step in range(longest):
        states.append(hidden)
        stored.append(network.act({name: leaf[:, step] for name, leaf in obs.items()}, hidden, generator))
        hidden = stored[-1].hidden
    # As a learner gets it: rows of so many steps with the state at their start, zeros behind an episode's end, and
    # every column in whatever type it was stored in.
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    types = {"obs": obs_type, "graph": obs_type, "blueprint_indices": index_type, "action_mask": mask_type}
    types[WORLD] = torch.int64  # it is an index into the scales
    padded = {name: leaf.masked_fill(~real[..., None], 0).to(types[name]) for name, leaf in obs.items()}
    for start in range(0, longest, cut):
        rows, chunk = slice(start, start + cut), real[:, start : start + cut]
        output = network({name: leaf[:, rows] for name, leaf in padded.items()}, states[start])
        actions = torch.stack([result.actions for result in stored[rows]], dim=1)
        replayed = (output.distribution.log_prob(actions), output.scaled_value, output.scaled_q_value(actions[..., 0]))
        for values, name in zip(replayed, ("head_log_probs", "value", "q_value"), strict=True):
            expected = torch.stack([getattr(result, name) for result in stored[rows]], dim=1)
            torch.testing.assert_close(values[chunk], expected[chunk], atol=1e-5, rtol=1e-5)
            assert values.isfinite().all()


@pytest.mark.parametrize("op", range(6))
def test_log_probability_reaches_the_needed_heads_and_no_others(op):
    network = perturbed()
    obs = observations(network, 3, 4, full=True)
    actions = torch.zeros(3, 4, len(network.head_specs), dtype=torch.int64)
    actions[..., 0] = op
    output = network(obs, network.initial_hidden(3))
    output.distribution.log_prob(actions).sum().backward()
    for head in network.head_specs:
        gradients = [parameter.grad for parameter in network.heads[head.name].parameters()]
        norm = sum(gradient.norm() for gradient in gradients)
        assert (norm > 0) == (op in head.needed_by), head.name
        embedding = network.heads[head.name].op_embedding
        if embedding is not None:
            touched = embedding.grad.abs().sum(-1) > 0
            assert touched.tolist() == [row == op and op in head.needed_by for row in range(6)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_critic_pushes_no_head(kind):
    network = perturbed(kind=kind)
    output = network(observations(network, 3, 4), network.initial_hidden(3))
    output.scaled_q_values.square().sum().backward()
    heads, stream = (network.heads, network.op_stream) if kind == "flat" else graph_heads(network)
    assert all(parameter.grad is None for parameter in heads.parameters())
    assert stream[0].weight.grad.norm() > 0


def test_arguments_depend_on_the_op_once_its_embedding_has_moved():
    network = build()
    output = network(observations(network, 2, 3, full=True), network.initial_hidden(2))
    slot = output.distribution.log_probs[1]
    torch.testing.assert_close(slot, slot[..., :1, :].expand_as(slot))
    with torch.no_grad():
        network.heads["slot"].op_embedding.normal_()
    moved = network(observations(network, 2, 3, full=True), network.initial_hidden(2)).distribution
    assert (moved.log_probs[1].std(dim=-2) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_policy_is_nearly_uniform(kind):
    config = NetworkConfig(feature_dim=128, hidden_dim=128, head_dim=64, kind=kind, sage_width=64, gat_width=32)
    network = build(config=config) if kind == "flat" else graph_network("digits", config=config)
    output = network(observations(network, 4, 8), network.initial_hidden(4))
    for entropy, available in zip(
        output.distribution.normalised_entropies(), output.distribution.available(), strict=True
    ):
        assert entropy[available].min() > 0.995


@pytest.mark.parametrize("kind", KINDS)
def test_acting_is_a_function_of_weights_observation_and_generator(tmp_path, kind):
    network, other = (perturbed(seed=seed, kind=kind) for seed in (1, 2))
    obs = observations(network, 16)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for deterministic in (False, True):
        results = [
            chosen.act(obs, chosen.initial_hidden(16), torch.Generator().manual_seed(5), deterministic)
            for chosen in (network, network, other)
        ]
        for result in results[1:]:
            assert torch.equal(result.actions, results[0].actions)
            assert torch.equal(result.log_prob, results[0].log_prob)


def test_an_empty_slot_has_its_own_embedding():
    network = perturbed()
    obs = observations(network, 1, 1)
    values = []
    for index in (-1, 0, NUM_BLUEPRINTS - 1):
        obs["blueprint_indices"] = torch.full((1, 1, 3), index)
        values.append(network(obs, network.initial_hidden(1)).scaled_value.item())
    assert len(set(values)) == 3
    obs["blueprint_indices"] = torch.full((1, 1, 3), NUM_BLUEPRINTS + 1)
    with pytest.raises(IndexError):
        network(obs, network.initial_hidden(1))


def test_a_single_head_makes_a_plain_recurrent_policy():
    head = HeadSpec("action", 2, ("left", "right"), (0, 1))
    network = RecurrentPolicyNetwork([head], FlatEncoder(4), SMALL)
    obs = {"obs": torch.randn(3, 5, 4)}
    output = network(obs, network.initial_hidden(3))
    assert output.distribution.sample().shape == (3, 5, 1)
    # Its critic is V alone, and a mask of ones is what no mask means.
    assert output.scaled_q_values is None
    assert torch.equal(output.scaled_q_value(torch.zeros(3, 5, dtype=torch.int64)), output.scaled_value)
    assert network.op_stream is None
    masked = network(obs | {"action_mask": torch.ones(3, 5, 2, dtype=torch.int8)}, network.initial_hidden(3))
    assert torch.equal(masked.distribution.op_log_probs, output.distribution.op_log_probs)


def test_without_memory_the_past_does_not_matter():
    head = HeadSpec("action", 2, ("left", "right"), (0, 1))
    for memory in (False, True):
        network = RecurrentPolicyNetwork([head], FlatEncoder(4), replace(SMALL, memory=memory))
        past = torch.randn(3, 5, 4)
        other = torch.cat([torch.randn(3, 4, 4), past[:, 4:]], dim=1)
        values = [network({"obs": obs}, network.initial_hidden(3)).scaled_value[:, -1] for obs in (past, other)]
        assert torch.equal(*values) != memory
        assert network.initial_hidden(3)[0].shape == (3, 12 if memory else 0)


@pytest.mark.parametrize("field", ["feature_dim", "hidden_dim", "head_dim", "embedding_dim"])
@pytest.mark.parametrize("width", [0, 2.5, 10**40, True])
def test_widths_must_be_whole_and_of_a_size_that_can_be(field, width):
    with pytest.raises(ValueError, match=f"{field} must be a whole number from [12] to 65,536, got {width}"):
        NetworkConfig(**{field: width})


@pytest.mark.parametrize("temperature", [0.0, 0.001, -1.0, float("inf"), float("nan")])
def test_a_temperature_must_be_positive_and_not_tiny(temperature):
    with pytest.raises(ValueError, match=rf"play_temperature must be a number from 0.01 to .*, got {temperature}"):
        NetworkConfig(play_temperature=temperature)


def test_ops_start_with_the_logits_they_are_given():
    network = build(config=replace(SMALL, op_bias={"PRUNE": -2.0}))
    logits = network.heads["op"].output.bias.tolist()
    assert logits == [-2.0 if name == "PRUNE" else 0.0 for name in network.head_specs[0].choices]
    with pytest.raises(ValueError, match="HOPE"):
        build(config=replace(SMALL, op_bias={"HOPE": 1.0}))


@pytest.mark.parametrize("device", ["cpu", "meta"])  # tensors of "meta" have no values that anybody could read
@pytest.mark.parametrize("deterministic", [False, True])
def test_no_pass_waits_for_a_number_or_makes_a_table(device, deterministic):
    network = perturbed().to(device)
    obs = {name: leaf.to(device) for name, leaf in observations(network, 4, 3).items()}
    first = {name: leaf[:, 0] for name, leaf in obs.items()}
    hidden = network.initial_hidden(4)
    with Dispatched() as dispatched:
        acted = network.act(first, hidden, deterministic=deterministic, temperature=0.5)
        output = network(obs, hidden)
        actions = acted.actions.unsqueeze(1).expand(-1, 3, -1)
        seen = output.evaluated(actions)
        distribution = output.distribution
        counted = [*distribution.available(), distribution.decided(actions[..., 0]), distribution.forced]
        (seen.head_log_probs.sum() + sum(entropy.sum() for entropy in seen.entropies) + seen.value.sum()).backward()
    assert not dispatched.waits
    assert len(counted) == len(network.head_specs) + 2
