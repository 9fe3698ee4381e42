"""PyTorch Geometric's HeteroConv is the reference of the layers that run all relations stacked."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from envs.slots import SlotConfig
from policies.distribution import ActionTables
from policies.strategic.graph import GraphBatch
from policies.strategic.hetero_data import from_hetero_data, to_hetero_data
from policies.strategic.layers import NEGATIVE_SLOPE, GatLayer, Links
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import GraphNetworkConfig
from policies.strategic.schema import FORWARD_RELATIONS, NODE_TYPES, RELATIONS
from tests.policies.strategic.graphs import random_arrays

pyg = pytest.importorskip("torch_geometric.nn", reason="needs the extra `graph`")
torch.set_num_threads(1)
# In the last layer nothing enters the others, whose vectors nobody reads any more.
pytestmark = pytest.mark.filterwarnings("ignore:There exist node types:UserWarning")
TABLES = ActionTables(SlotConfig.for_row(3).heads)


class Normed(nn.Module):
    """A convolution along one relation, its LayerNorm, and 0 at nodes without incoming edges."""

    def __init__(self, conv, norm):
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x, edge_index, **attributes):
        out = self.norm(self.conv(x, edge_index, **attributes))
        reached = torch.zeros(len(out), 1, dtype=out.dtype).index_fill(0, edge_index[1], 1.0)
        return out * reached


def sage(layer, relation, inputs):
    """PyG's layer, and pairs of a weight of its own and ours in the same shape."""
    conv = pyg.SAGEConv((inputs[relation.source], inputs[relation.target]), layer.width, aggr="mean")
    _, sent, received = places(layer, relation)
    pairs = [
        (lambda c: c.conv.lin_l.weight, lambda of: of(layer.send[relation.source])[:, sent].T),
        (lambda c: c.conv.lin_r.weight, lambda of: of(layer.own[relation.target])[:, received].T),
        (lambda c: c.conv.lin_l.bias, lambda of: of(layer.bias[relation.target])[received]),
    ]
    return conv, pairs


def gat(layer, relation, inputs):
    """The same of GAT: where it has a matrix and a vector that only ever meet, the vector is set to pick a row."""
    width, heads, attributes = layer.width, layer.heads, relation.attributes.encoded
    conv = pyg.GATConv(
        (inputs[relation.source], inputs[relation.target]),
        width,
        heads,
        concat=False,
        negative_slope=NEGATIVE_SLOPE,
        add_self_loops=False,
        edge_dim=attributes,
    )
    with torch.no_grad():
        for vector in (conv.att_dst, conv.att_edge):
            vector.zero_()[..., 0] = 1.0
        for matrix in (conv.lin_dst.weight, conv.lin_edge.weight):
            matrix.zero_()
    index, sent, received = places(layer, relation)
    pairs = [
        (lambda c: c.conv.lin_src.weight, lambda of: of(layer.send[relation.source])[:, sent].T),
        (lambda c: c.conv.att_src[0], lambda of: of(layer.attend_source[relation.source])[:, sent].T),
        (lambda c: c.conv.lin_dst.weight[::width], lambda of: of(layer.attend_target[relation.target])[:, received].T),
        (lambda c: c.conv.lin_edge.weight[::width], lambda of: of(layer.attend_edge)[:attributes, index].T),
        (lambda c: c.conv.bias, lambda of: of(layer.bias[relation.target])[received]),
    ]
    return conv, pairs


def places(layer, relation):
    """Where a relation stands among all of the layer's, among its source's and among its target's."""
    index = RELATIONS.index(relation)
    wiring = layer.wiring
    return (
        wiring.relations.index(index),
        wiring.sends[relation.source].index(index),
        wiring.receives[relation.target].index(index),
    )


class ReferenceLayer(nn.Module):
    """A layer of ours as a HeteroConv with copied weights."""

    def __init__(self, layer, inputs, dtype):
        super().__init__()
        self.ours, self.pairs, convs = layer, [], {}
        for relation in (RELATIONS[index] for index in layer.wiring.relations):
            conv, pairs = (gat if isinstance(layer, GatLayer) else sage)(layer, relation, inputs)
            received = places(layer, relation)[2]
            norm = nn.LayerNorm(layer.width)
            pairs += [
                (lambda c: c.norm.weight, lambda of, r=relation.target, i=received: of(layer.gain[r])[i]),
                (lambda c: c.norm.bias, lambda of, r=relation.target, i=received: of(layer.shift[r])[i]),
            ]
            convs[relation.triple] = Normed(conv, norm).to(dtype)
            self.pairs += [(convs[relation.triple], theirs, ours) for theirs, ours in pairs]
        with torch.no_grad():
            for conv, theirs, ours in self.pairs:
                theirs(conv).copy_(ours(lambda weight: weight))
        self.hetero = pyg.HeteroConv(convs, aggr="sum")

    def forward(self, nodes, edge_index, edge_attr):
        attributes = {"edge_attr_dict": edge_attr} if isinstance(self.ours, GatLayer) else {}
        out = self.hetero(nodes, edge_index, **attributes)
        return {name: F.gelu(out[name]) + self.ours.residual[name](nodes[name]) for name in self.ours.wiring.targets}

    def gradients(self):
        """Of each weight: ours and PyG's."""
        for conv, theirs, ours in self.pairs:
            yield ours(lambda weight: weight.grad), theirs(Gradients(conv))


class Gradients:
    """A module whose weights read as their gradients."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        value = getattr(self.module, name)
        return value.grad if isinstance(value, nn.Parameter) else Gradients(value)


def hetero_edges(graphs):
    data = to_hetero_data(graphs)
    index, attributes = {}, {}
    for relation in FORWARD_RELATIONS:
        back = next(r for r in RELATIONS if r.reverse and r.name == f"rev_{relation.name}")
        edges = data[relation.triple]
        index |= {relation.triple: edges.edge_index, back.triple: edges.edge_index.flip(0)}
        attributes |= {relation.triple: edges.edge_attr, back.triple: edges.edge_attr}
    return index, attributes


def build(config, dtype, seed=0):
    """A network far from its start, so that biases, gains and shifts matter."""
    torch.manual_seed(seed)
    network = GraphPolicyNetwork(config).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize(
    ("config", "dtype", "tolerance"),
    [
        (GraphNetworkConfig(), torch.float32, 1e-5),
        (GraphNetworkConfig(sage_width=16, gat_width=12, attention_heads=3), torch.float64, 1e-12),
    ],
)
def test_every_layer_equals_a_hetero_conv_with_its_weights(config, dtype, tolerance):
    network = build(config, dtype)
    graphs = GraphBatch.from_arrays(random_arrays(3, edges=30, seed=5))
    index, attributes = hetero_edges(graphs)
    attributes = {name: rows.to(dtype) for name, rows in attributes.items()}
    inputs = {name: encoder.linear.out_features for name, encoder in network.encoders.items()}
    for layer in network.layers:
        reference = ReferenceLayer(layer, inputs, dtype)
        links = Links.of(graphs, layer.wiring)
        links = replace(links, reached=links.reached.to(dtype), attributes=links.attributes.to(dtype))
        ours = {
            name: torch.randn(len(graphs.nodes[name].graph), width, dtype=dtype, requires_grad=True)
            for name, width in inputs.items()
        }
        theirs = {name: rows.detach().clone().requires_grad_() for name, rows in ours.items()}
        out, expected = layer(ours, links), reference(theirs, index, attributes)
        assert set(out) == set(expected) == set(layer.wiring.targets)
        weights = {name: torch.randn_like(rows) for name, rows in out.items()}
        for results in (out, expected):
            (10 * sum((results[name] * weights[name]).mean() for name in out)).backward()
        pairs = [*((out[name], expected[name]) for name in out), *reference.gradients()]
        pairs += [(ours[name].grad, theirs[name].grad) for name in inputs]
        for one, other in pairs:
            torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
            assert one.abs().max() > 0
        inputs = dict.fromkeys(NODE_TYPES, layer.width)


def test_hetero_data_and_back_changes_nothing():
    graphs = GraphBatch.from_arrays(random_arrays(5, seed=2))
    back = from_hetero_data(to_hetero_data(graphs))
    network = GraphPolicyNetwork(GraphNetworkConfig(sage_width=16, gat_width=8))
    for name, nodes in graphs.nodes.items():
        for field in ("numbers", "codes", "graph"):
            assert getattr(nodes, field).equal(getattr(back.nodes[name], field))
    assert back.attributes.equal(graphs.attributes)
    assert back.seeds.equal(graphs.seeds)
    assert back.context.equal(graphs.context)
    assert back.action_mask.equal(graphs.action_mask)
    for field in ("relation", "source", "target", "graph"):
        assert getattr(back.edges, field).equal(getattr(graphs.edges, field))
    assert network(back, TABLES).scaled_value.equal(network(graphs, TABLES).scaled_value)


def test_hetero_data_whose_nodes_are_not_graph_by_graph_is_refused():
    data = to_hetero_data(GraphBatch.from_arrays(random_arrays(2, absent=0.0)))
    data["layer"].batch = data["layer"].batch.flip(0)
    with pytest.raises(ValueError, match="the layer nodes of a batch must stand graph by graph"):
        from_hetero_data(data)
