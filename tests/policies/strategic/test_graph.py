from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.observation import slot_fields
from envs.slots import SlotConfig
from policies.strategic.encoding import encode
from policies.strategic.graph import EdgeArrays, GraphArrays, GraphBatch
from policies.strategic.schema import (
    CONTEXT,
    FORWARD_RELATIONS,
    NODE_TYPES,
    RELATIONS,
    SLOT_NUMBERS,
    Block,
    Columns,
    NodeType,
    each,
)
from tests.policies.strategic.graphs import random_arrays, rows, with_nodes

torch.set_num_threads(1)
NAN = float("nan")
COUNTS = st.integers(0, 5)


def assert_same_graphs(one, other):
    for name in NODE_TYPES:
        for field in ("numbers", "codes", "graph"):
            assert getattr(one.nodes[name], field).equal(getattr(other.nodes[name], field)), (name, field)
    for field in ("relation", "source", "target", "graph"):
        assert getattr(one.edges, field).equal(getattr(other.edges, field)), field
    for field in ("attributes", "seeds", "context", "action_mask"):
        assert getattr(one, field).equal(getattr(other, field)), field


def test_widths_are_those_of_the_design():
    assert {name: (kind.raw, kind.encoded) for name, kind in NODE_TYPES.items()} == {
        "layer": (128, 256),
        "seed": (64, 256),
        "activation": (32, 128),
        "parameter": (16, 256),
    }
    stages_and_level = 10 + 1
    assert len(SLOT_NUMBERS) == len(slot_fields(SlotConfig.for_row(1, internal_levels=True))) - stages_and_level


def test_every_relation_runs_both_ways_and_every_type_receives():
    assert {(r.source, r.target) for r in RELATIONS} == {(r.target, r.source) for r in RELATIONS}
    assert {r.target for r in RELATIONS} == {r.source for r in RELATIONS} == set(NODE_TYPES)


def test_inputs_that_do_not_fit_into_the_raw_width_are_refused():
    with pytest.raises(ValueError, match="layer nodes have 6 inputs, more than their raw width of 5"):
        NodeType("layer", raw=5, encoded=8, columns=Columns(each("a", "b", "c")), embeddings=())


def test_what_is_not_known_reads_its_fill_in_under_a_mask_of_0():
    columns = Columns((Block(("a", "b")), *each("c", fill=0.5)))
    numbers = torch.tensor([[[1.0, 2.0, 3.0], [1.0, NAN, NAN], [0.0, 0.0, torch.inf]]])
    ((encoded,),) = encode([numbers], ((columns, columns.encoded),))
    assert encoded.tolist() == [[1, 2, 3, 1, 1], [1, 0, 0.5, 0, 0], [0, 0, 0.5, 1, 0]]
    assert columns.place("a") == slice(0, 2)


@given(count=st.integers(1, 5), layers=COUNTS, seeds=COUNTS, others=COUNTS, edges=COUNTS, seed=st.integers(0, 99))
def test_many_graphs_at_once_are_each_by_itself(count, layers, seeds, others, edges, seed):
    sizes = {"layer": layers, "seed": seeds, "activation": others, "parameter": others}
    arrays = random_arrays(count, sizes, edges, seed=seed)
    batch = GraphBatch.from_arrays(arrays)
    assert len(batch) == count
    for index, graph in enumerate(batch.chunks(1)):
        assert_same_graphs(graph, GraphBatch.from_arrays(rows(arrays, slice(index, index + 1))))


@given(size=st.integers(1, 7))
def test_chunks_are_the_graphs_in_order(size):
    arrays = random_arrays(6)
    chunks = GraphBatch.from_arrays(arrays).chunks(size)
    assert [len(chunk) for chunk in chunks] == [min(size, 6 - start) for start in range(0, 6, size)]
    for chunk, start in zip(chunks, range(0, 6, size), strict=True):
        assert_same_graphs(chunk, GraphBatch.from_arrays(rows(arrays, slice(start, start + size))))


def test_absent_nodes_take_their_edges_along():
    arrays = random_arrays(1, {"layer": 3, "seed": 1, "activation": 0, "parameter": 0}, edges=0, unknown=0.0)
    ends = torch.tensor([[[0, 1], [1, 2], [2, 0], [2, 2], [-1, 2]]])
    arrays = replace(arrays, edges={**arrays.edges, "connects": EdgeArrays(ends, torch.rand(1, 5, 3))})
    batch = GraphBatch.from_arrays(with_nodes(arrays, "layer", present=torch.tensor([[True, False, True]])))
    assert len(batch.nodes["layer"].graph) == 2
    assert torch.stack([batch.edges.source, batch.edges.target], dim=1).tolist() == [[1, 0], [1, 1]]
    gone = with_nodes(arrays, "seed", present=torch.tensor([[False]]))
    assert GraphBatch.from_arrays(gone).seeds.tolist() == [[-1]]


def test_attributes_are_divided_by_the_largest_of_their_graph():
    arrays = random_arrays(2, {"layer": 2, "seed": 0, "activation": 0, "parameter": 0}, edges=0, absent=0.0)
    values = torch.tensor([[[-4.0, 0, 1], [2, 0, NAN], [9, 9, 9]], [[1, NAN, 5], [3, NAN, 2], [9, 9, 9]]])
    ends = torch.tensor([[0, 1], [1, 0], [-1, 0]]).expand(2, -1, -1)  # the last edge goes out from nobody
    batch = GraphBatch.from_arrays(replace(arrays, edges={**arrays.edges, "connects": EdgeArrays(ends, values)}))
    expected = [[-1, 0, 1, 1, 1, 1], [0.5, 0, 0, 1, 1, 0], [1 / 3, 0, 1, 1, 0, 1], [1, 0, 0.4, 1, 0, 1]]
    torch.testing.assert_close(batch.attributes, torch.tensor(expected))


def test_a_row_of_zeros_is_a_graph_without_nodes():
    arrays = random_arrays(3)
    blank = {name: torch.zeros_like(of.present) for name, of in arrays.nodes.items()}
    for name, present in blank.items():
        arrays = with_nodes(arrays, name, present=present)
    edges = {
        name: EdgeArrays(torch.zeros_like(of.ends), torch.zeros_like(of.values)) for name, of in arrays.edges.items()
    }
    batch = GraphBatch.from_arrays(replace(arrays, edges=edges, seeds=torch.zeros_like(arrays.seeds)))
    assert all(len(nodes.graph) == 0 for nodes in batch.nodes.values())
    assert len(batch.edges.relation) == 0
    assert (batch.seeds == -1).all()


def test_everything_in_a_batch_is_finite():
    batch = GraphBatch.from_arrays(random_arrays(20, unknown=0.5))
    for tensor in (*(nodes.numbers for nodes in batch.nodes.values()), batch.attributes, batch.context):
        assert tensor.isfinite().all()
    assert batch.context.shape == (20, CONTEXT.encoded)
    assert batch.edges.relation.unique().tolist() == list(range(len(FORWARD_RELATIONS)))


@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS, st.integers(1, 3)), min_size=1, max_size=4))
def test_graphs_of_several_shapes_together_are_the_same_graphs(shapes):
    parts = []
    for at, (layers, activations, parameters, edges, count) in enumerate(shapes):
        sizes = {"layer": layers, "seed": 3, "activation": activations, "parameter": parameters}
        parts.append(random_arrays(count, sizes, edges, seed=at))
    together = GraphBatch.from_arrays(GraphArrays.together(parts))
    start = 0
    for of, part in zip(parts, map(GraphBatch.from_arrays, parts), strict=True):
        stop = start + len(of.seeds)
        assert_same_graphs(GraphBatch.from_arrays(rows(GraphArrays.together(parts), slice(start, stop))), part)
        start = stop
    assert len(together) == start
