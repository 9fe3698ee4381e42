import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.action_masks import mask_size, split_mask
from envs.slots import SlotConfig
from envs.vocabulary import LifecycleOp
from policies.distribution import ActionTables
from policies.strategic import network as network_module
from policies.strategic.graph import EdgeArrays, GraphBatch
from policies.strategic.heads import blending_window
from policies.strategic.layers import Links
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import GraphNetworkConfig
from policies.strategic.schema import BLENDING_METHODS, FORWARD_RELATIONS, NODE_TYPES
from tests.devices import DEVICES
from tests.policies.strategic.graphs import SIZES, random_arrays, rows, tensors_of, with_nodes

torch.set_num_threads(1)
TINY = GraphNetworkConfig(sage_width=16, gat_width=12, attention_heads=2)
COUNTS = st.integers(0, 4)


def build(config=TINY, seed=0):
    torch.manual_seed(seed)
    return GraphPolicyNetwork(config)


def perturbed(config=TINY, seed=0):
    """A network far from its start, whose choices differ."""
    network = build(config, seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network


def tables(slots=3, internal_levels=False):
    return ActionTables(SlotConfig.for_row(slots, internal_levels).heads)


def assert_close(one, other, but=(), tolerance=1e-5):
    one, other = tensors_of(one), tensors_of(other)
    for name in one:
        if name not in but:
            torch.testing.assert_close(
                one[name], other[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: n + m
            )


def admitting(arrays, slots, ops, most=100):
    """The arrays with masks that admit these ops, those of slots in the first of those that have a seed node."""
    heads = SlotConfig.for_row(slots).heads
    mask = torch.ones(len(arrays.seeds), mask_size(heads), dtype=torch.int8)
    views = split_mask(mask, heads)
    views["op"][:] = torch.tensor([LifecycleOp(op) in ops for op in range(heads[0].size)])
    views["slot"][:] = (arrays.seeds >= 0).unsqueeze(1)
    views["slot"][..., most:] = 0
    return replace(arrays, action_mask=mask)


@pytest.mark.parametrize("slots", [1, 3, 6])
@pytest.mark.parametrize("internal_levels", [False, True])
def test_one_network_serves_any_world(slots, internal_levels):
    config = SlotConfig.for_row(slots, internal_levels)
    arrays = random_arrays(4, {**SIZES, "seed": slots}, slots=config)
    result = perturbed()(GraphBatch.from_arrays(arrays), ActionTables(config.heads))
    for head, log_probs in zip(config.heads, result.distribution.log_probs, strict=True):
        assert log_probs.shape == (4, 1 if head.name == "op" else len(head.needed_by), head.size)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:-1]))
    assert result.scaled_value.shape == (4,)
    assert result.policy_logits.shape == (4, 32)
    assert result.blending_method_logits.shape == (4, slots, len(BLENDING_METHODS))
    assert result.schedule.shape == (4, slots, 2)
    assert result.risk_logits.shape == (4, 5)
    assert result.telemetry_embedding.shape == (4, 64)
    mean = (result.distribution.op_log_probs.exp() * result.scaled_q_values).sum(-1)
    torch.testing.assert_close(mean, result.scaled_value, atol=1e-6, rtol=1e-6)
    assert (result.scaled_q_values.amax(-1) - result.scaled_q_values.amin(-1)).min() > 1e-3
    known = len(config.blueprints)
    assert (result.policy_logits[:, known:] == torch.finfo(torch.float32).min).all()
    assert (result.policy_logits[:, :known].abs() < 100).all()


@pytest.mark.parametrize("deterministic", [False, True])
def test_actions_drawn_are_admitted_in_every_head(deterministic):
    """By masks in which each slot and choice is open to some ops and hosts and closed to others."""
    heads, arrays = SlotConfig.for_row(3).heads, random_arrays(400)
    views = split_mask(arrays.action_mask, heads)
    for head in heads[1:]:
        views[head.name][..., 0] |= views[head.name].sum(-1) == 0  # each row leaves a choice
    distribution = perturbed()(GraphBatch.from_arrays(arrays), tables()).distribution
    actions = distribution.sample(torch.Generator().manual_seed(1), deterministic)
    refused = set()
    for host, action in enumerate(actions.tolist()):
        op = action[0]
        assert views["op"][host, op]
        for head, choice in zip(heads[1:], action[1:], strict=True):
            if op in head.needed_by:
                row = views[head.name][host]
                row = row[op] if head.masked_by_op else row
                assert row[choice], head.name
                refused |= {head.name} if not row.all() else set()
    assert refused == {head.name for head in heads[1:]}


def test_actions_drawn_are_admitted_and_replayed():
    network, arrays = perturbed(), random_arrays(50)
    arrays = admitting(arrays, 3, {LifecycleOp.WAIT, LifecycleOp.GERMINATE, LifecycleOp.PRUNE})
    distribution = network(GraphBatch.from_arrays(arrays), tables()).distribution
    actions = distribution.sample(torch.Generator().manual_seed(0))
    stored = distribution.log_prob(actions)
    assert set(actions[:, 0].tolist()) == {LifecycleOp.WAIT, LifecycleOp.GERMINATE, LifecycleOp.PRUNE}
    for index in range(0, 50, 7):
        alone = network(GraphBatch.from_arrays(rows(arrays, slice(index, index + 1))), tables()).distribution
        replayed = alone.log_prob(actions[index : index + 1])
        torch.testing.assert_close(replayed, stored[index : index + 1], atol=1e-5, rtol=1e-5)
    colder = distribution.at_temperature(0.5)
    assert (colder.op_log_probs.amax(-1) >= distribution.op_log_probs.amax(-1)).all()


@given(a=st.floats(-1e4, 1e4), b=st.floats(-1e4, 1e4))
def test_a_blending_window_is_in_order_and_long_enough(a, b):
    start, end = blending_window(torch.tensor([a, b])).tolist()
    assert 0 <= start <= 0.95 + 1e-6
    assert start + 0.05 - 1e-6 <= end <= 1 + 1e-6


@pytest.mark.parametrize("far", [1.0, 30.0])
def test_the_network_says_such_windows_of_its_own_numbers(far):
    network, raw = perturbed(), []
    with torch.no_grad():
        network.heads.window.weight *= far
    network.heads.window.register_forward_hook(lambda module, args, output: raw.append(output))
    schedule = network(GraphBatch.from_arrays(random_arrays(20)), tables()).schedule
    start, end = schedule.unbind(-1)
    assert (start >= 0).all()
    assert (start <= 0.95).all()
    assert (start + 0.05 - 1e-6 <= end).all()
    assert (end <= 1 + 1e-6).all()
    first, second = raw[0].sigmoid().unbind(-1)
    torch.testing.assert_close(start, 0.95 * first)
    torch.testing.assert_close(end, start + 0.05 + (0.95 - start) * second)
    assert start.std() > 0.01 * far**0.5
    assert (end - start).std() > 0.01 * far**0.5


def test_a_method_that_the_seed_does_not_allow_is_refused_and_linear_stays_where_it_names_none():
    arrays = random_arrays(1, unknown=0.0)
    place = NODE_TYPES["seed"].columns.place("allows_linear")
    values = arrays.nodes["seed"].values.clone()
    values[0, :, place] = torch.tensor([[0.0, 1, 0, 1], [0, 0, 0, 0], [torch.nan] * 4])
    result = perturbed()(GraphBatch.from_arrays(with_nodes(arrays, "seed", values=values)), tables())
    admitted = result.blending_method_logits[0] > torch.finfo(torch.float32).min
    assert admitted.tolist() == [[False, True, False, True], [True, False, False, False], [True, False, False, False]]


def test_every_weight_and_every_input_is_reached():
    network = perturbed()
    graphs = GraphBatch.from_arrays(random_arrays(30, edges=20, unknown=0.1))
    leaves = {name: nodes.numbers.requires_grad_() for name, nodes in graphs.nodes.items()}
    attributes, context = graphs.attributes.requires_grad_(), graphs.context.requires_grad_()
    result = network(graphs, tables(3))
    finite = [tensor.clamp(min=-50) for tensor in tensors_of(result).values()]
    sum((tensor * torch.randn_like(tensor)).sum() for tensor in finite).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    for name, numbers in leaves.items():
        assert (numbers.grad.abs().amax(0) > 0).all(), name
    assert (context.grad.abs().amax(0) > 0).all()
    for index, relation in enumerate(FORWARD_RELATIONS):
        touched = attributes.grad[graphs.edges.relation == index].abs().amax(0) > 0
        assert touched[: relation.attributes.encoded].all(), relation


def test_what_a_policy_in_use_has_kept_of_a_structure_serves_training():
    network, arrays = perturbed(), random_arrays(2, edges=20, seed=11)
    with torch.inference_mode():
        played = network(GraphBatch.from_arrays(arrays), tables()).scaled_value
    trained = network(GraphBatch.from_arrays(arrays), tables()).scaled_value
    torch.testing.assert_close(trained, played)
    trained.sum().backward()
    assert all(layer.attend_edge.grad.abs().max() > 0 for layer in network.layers[2:])


def test_layer_nodes_read_the_context():
    graphs = GraphBatch.from_arrays(random_arrays(4))
    encoded = perturbed().encoders["layer"](graphs.nodes["layer"], graphs.context.requires_grad_())
    encoded.square().sum(dim=0)[0].backward()
    assert (graphs.context.grad.abs().amax(0) > 0).all()


@pytest.mark.parametrize("name", NODE_TYPES)
def test_a_changed_feature_of_any_node_type_changes_the_choice(name):
    network, arrays = perturbed(), random_arrays(1, edges=20, absent=0.0, unknown=0.0)
    before = network(GraphBatch.from_arrays(arrays), tables()).distribution.op_log_probs
    changed = with_nodes(arrays, name, values=arrays.nodes[name].values + 1.0)
    after = network(GraphBatch.from_arrays(changed), tables()).distribution.op_log_probs
    assert (before - after).abs().max() > 1e-4


def test_what_is_unknown_of_an_activation_falls_back_on_its_layer_type():
    network = perturbed()
    unknown = random_arrays(1, edges=20, absent=0.0, unknown=1.0)
    nodes = unknown.nodes["activation"]
    known = with_nodes(unknown, "activation", values=torch.zeros_like(nodes.values))

    def value(arrays, activation, layer):
        codes = torch.tensor([activation, layer]).expand_as(nodes.codes)
        return network(GraphBatch.from_arrays(with_nodes(arrays, "activation", codes=codes)), tables()).scaled_value

    assert value(unknown, 3, 1) != value(unknown, 3, 2)
    assert value(known, 0, 1) != value(known, 0, 2)
    assert value(known, 3, 1) == value(known, 3, 2)


def test_a_relation_says_nothing_to_a_node_that_it_does_not_reach():
    network, graphs = perturbed(), GraphBatch.from_arrays(random_arrays(2, edges=0))
    for layer in network.layers:
        nodes = {
            name: torch.randn(len(graphs.nodes[name].graph), weight.shape[0]) for name, weight in layer.send.items()
        }
        out = layer(nodes, Links.of(graphs, layer.wiring))
        for name, rows_of in out.items():
            assert rows_of.equal(layer.residual[name](nodes[name]))


def relabelled(arrays, seed=0):
    """The same graphs with their nodes in another order."""
    generator = torch.Generator().manual_seed(seed)
    orders = {name: torch.randperm(of.present.shape[1], generator=generator) for name, of in arrays.nodes.items()}
    new = {name: torch.cat([order.argsort(), torch.tensor([-1])]) for name, order in orders.items()}  # -1 stays
    nodes = {
        name: replace(of, **{field: getattr(of, field)[:, orders[name]] for field in ("present", "values", "codes")})
        for name, of in arrays.nodes.items()
    }
    edges = {
        r.name: EdgeArrays(
            torch.stack(
                [new[r.source][arrays.edges[r.name].ends[..., 0]], new[r.target][arrays.edges[r.name].ends[..., 1]]], -1
            ),
            arrays.edges[r.name].values,
        )
        for r in FORWARD_RELATIONS
    }
    return replace(arrays, nodes=nodes, edges=edges, seeds=new["seed"][arrays.seeds])


def test_relabelling_nodes_changes_nothing():
    network, arrays = perturbed(), random_arrays(6)
    other = relabelled(arrays)
    assert not other.nodes["layer"].codes.equal(arrays.nodes["layer"].codes)
    assert_close(network(GraphBatch.from_arrays(arrays), tables()), network(GraphBatch.from_arrays(other), tables()))


def test_the_order_of_slots_permutes_the_slot_logits_and_changes_nothing_else():
    network, arrays = perturbed(), random_arrays(6)
    order = torch.tensor([2, 0, 1])
    heads = SlotConfig.for_row(3).heads
    mask = arrays.action_mask.clone()
    split_mask(mask, heads)["slot"][:] = split_mask(arrays.action_mask, heads)["slot"][..., order]
    other = replace(arrays, seeds=arrays.seeds[:, order], action_mask=mask)
    one, two = (network(GraphBatch.from_arrays(a), tables()) for a in (arrays, other))
    by_slot = ("log_probs.slot", "blending_method_logits", "schedule")
    assert_close(one, two, but=by_slot)
    torch.testing.assert_close(one.distribution.log_probs[1][..., order], two.distribution.log_probs[1])
    torch.testing.assert_close(one.schedule[:, order], two.schedule)
    assert not one.distribution.log_probs[1].equal(two.distribution.log_probs[1])


def test_slots_that_a_graph_does_not_have_change_nothing():
    network, arrays = perturbed(), random_arrays(4)
    alone = network(GraphBatch.from_arrays(admitting(arrays, 3, set(LifecycleOp))), tables())
    padded = replace(arrays, seeds=torch.nn.functional.pad(arrays.seeds, (0, 2), value=-1))
    result = network(GraphBatch.from_arrays(admitting(padded, 5, set(LifecycleOp))), tables(5))
    assert_close(alone, result, but=("log_probs.slot", "blending_method_logits", "schedule"))
    torch.testing.assert_close(alone.distribution.log_probs[1], result.distribution.log_probs[1][..., :3])
    assert (result.distribution.log_probs[1][..., 3:].exp() == 0).all()


@pytest.mark.parametrize(("slots", "admitted"), [(1, 1), (2, 1), (2, 2), (5, 2), (5, 5), (10, 3), (10, 10)])
def test_the_chance_of_wait_at_equal_scores_does_not_depend_on_the_number_of_slots(slots, admitted):
    network = build()
    with torch.no_grad():
        for output in (network.heads.action.slot_scores, network.heads.action.free_scores[-1]):
            output.weight.zero_()
    ops = {LifecycleOp.WAIT, LifecycleOp.GERMINATE}
    arrays = admitting(random_arrays(2, {**SIZES, "seed": slots}), slots, ops, admitted)
    probs = network(GraphBatch.from_arrays(arrays), tables(slots)).distribution.op_log_probs.exp()
    torch.testing.assert_close(probs[:, :2], torch.full((2, 2), 0.5))


@settings(deadline=None)
@given(
    layers=COUNTS, seeds=COUNTS, activations=COUNTS, parameters=COUNTS, edges=st.integers(0, 6), seed=st.integers(0, 99)
)
def test_graphs_of_any_shape_are_read(layers, seeds, activations, parameters, edges, seed):
    network = perturbed()
    sizes = {"layer": layers, "seed": seeds, "activation": activations, "parameter": parameters}
    arrays = random_arrays(2, sizes, edges, seed=seed)
    slots = arrays.seeds.shape[1]
    result = network(GraphBatch.from_arrays(arrays), tables(slots))
    sum(tensor.clamp(min=-50).sum() for tensor in tensors_of(result).values()).backward()
    assert all(tensor.isfinite().all() for tensor in tensors_of(result).values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_padded_rows_are_finite_and_change_no_other():
    network, arrays = perturbed(), random_arrays(3)
    present = torch.tensor([[True], [False], [True]])
    padded = arrays
    for name, of in arrays.nodes.items():
        padded = with_nodes(padded, name, present=of.present & present)
    padded = replace(padded, action_mask=arrays.action_mask * present, context=arrays.context.nan_to_num() * present)
    result = network(GraphBatch.from_arrays(padded), tables())
    sum(tensor.clamp(min=-50).sum() for tensor in tensors_of(result).values()).backward()
    assert all(tensor.isfinite().all() for tensor in tensors_of(result).values())
    assert all(p.grad.isfinite().all() for p in network.parameters())
    kept = replace(arrays, context=arrays.context.nan_to_num())
    for index, arrays in ((1, padded), (2, kept)):
        alone = network(GraphBatch.from_arrays(rows(arrays, slice(index, index + 1))), tables())
        for name, tensor in tensors_of(alone).items():
            torch.testing.assert_close(tensor, tensors_of(result)[name][index : index + 1], atol=1e-5, rtol=1e-5)


def test_chunks_change_nothing(monkeypatch):
    network, graphs = perturbed(), GraphBatch.from_arrays(random_arrays(7))
    whole = network(graphs, tables())
    monkeypatch.setattr(network_module, "CHUNK", 2)
    assert_close(whole, network(graphs, tables()))


def test_two_evaluations_give_the_same_bits_in_whatever_mode():
    network, arrays = perturbed(), random_arrays(9)
    results = [
        tensors_of(policy(GraphBatch.from_arrays(arrays), tables()))
        for policy in (network.train(), copy.deepcopy(network).eval())
    ]
    for name, tensor in results[0].items():
        assert tensor.equal(results[1][name]), name


def test_imitation_alone_drops_numbers():
    network, graphs = perturbed().eval(), GraphBatch.from_arrays(random_arrays(4))
    torch.manual_seed(0)
    dropped = network(graphs, tables(), imitating=True).scaled_value
    assert not dropped.equal(network(graphs, tables(), imitating=True).scaled_value)
    sure = perturbed(replace(TINY, dropout=0.0))
    assert sure(graphs, tables(), imitating=True).scaled_value.equal(sure(graphs, tables()).scaled_value)


def test_the_same_seed_gives_the_same_weights():
    one, two, other = (build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(one[name].equal(two[name]) for name in one)
    assert not all(one[name].equal(other[name]) for name in one)


def test_ops_start_with_the_bias_of_the_config():
    network = build(replace(TINY, op_bias={"PRUNE": -2.0}))
    arrays = admitting(random_arrays(2), 3, set(LifecycleOp))
    logits = network(GraphBatch.from_arrays(arrays), tables()).distribution.op_log_probs
    difference = logits[:, LifecycleOp.PRUNE] - logits[:, LifecycleOp.FOSSILIZE]
    torch.testing.assert_close(difference, torch.full((2,), -2.0), atol=0.2, rtol=0)
    with pytest.raises(ValueError, match=r"op_bias names \['HOPE'\]"):
        build(replace(TINY, op_bias={"HOPE": 1.0}))


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_computes_what_a_cpu_does(device):
    network, arrays = perturbed(), random_arrays(5)
    expected = tensors_of(network(GraphBatch.from_arrays(arrays), tables()))
    graphs = GraphBatch.from_arrays(on(device, arrays))
    found = tensors_of(network.to(device)(graphs, tables().to(device)))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].cpu(), tensor, atol=1e-3, rtol=1e-3)


def on(device, value):
    """Arrays on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: on(device, of) for name, of in value.items()}
    return replace(value, **{name: on(device, of) for name, of in vars(value).items()})
