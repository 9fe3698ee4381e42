"""The sample of a large model is bounded, always the same for a packet, and consists of parts of the model."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from envs.vocabulary import BLENDING_METHODS
from policies.strategic.builder import GraphBuilder
from policies.strategic.graph import GraphBatch
from policies.strategic.graph_columns import MOST_EDGES, MOST_NODES, Graph
from policies.strategic.measured import EDGE_TABLES, NODE_TABLES, NUMBERS, TABLES, TEXTS, Measured, Names
from policies.strategic.messages import SystemState
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.registries import Capacities, RegistryViews
from policies.strategic.sampling import SAMPLING, Sampling, sample
from policies.strategic.schema import FORWARD_RELATIONS
from policies.strategic.sending import graph_of, monitors_of
from tests.policies.strategic.packets import packets
from tests.policies.strategic.states import state

ENDS = {relation.name: (TABLES[relation.source], TABLES[relation.target]) for relation in FORWARD_RELATIONS}


def large(layers, edges, seed=0, connects=None, activations=None, parameters=3):
    """A host of many layers with random edges, no two alike; each number of a row is told apart by its row."""
    generator = torch.Generator().manual_seed(seed)
    activations = layers // 2 if activations is None else activations
    rows = {"layers": layers, "activations": activations, "parameters": parameters, "seeds": 2}

    def pairs(name, count):
        columns = [torch.randint(rows[table], (count,), generator=generator) for table in ENDS[name]]
        return torch.stack(columns, dim=-1).unique(dim=0).unsqueeze(0)

    ends = {name: pairs(name, edges) for name in EDGE_TABLES} | {
        name: pairs(name, 4) for name in ("monitors", "allowed")
    }
    if connects is not None:
        ends["connects"] = torch.tensor(connects).reshape(1, -1, 2).long()
    counts = {**rows, **{name: ends[name].shape[1] for name in ends}, "metrics": 1, "run": 1}
    kind = {key: counts[key.partition(".")[0]] for key in (*NUMBERS, *TEXTS)}
    numbers = {key: torch.arange(kind[key]).double().unsqueeze(0) for key in NUMBERS}
    numbers["layers.loss_share"] = torch.rand(1, layers, generator=generator, dtype=torch.float64)
    return replace(
        Measured.of(state()),
        nodes={name: tuple(f"{name}{row}" for row in range(rows[name])) for name in NODE_TABLES},
        ends=ends,
        methods=torch.arange(counts["allowed"]).unsqueeze(0) % len(BLENDING_METHODS),
        numbers=numbers,
        texts={key: Names.of([f"name {row}" for row in range(kind[key])]) for key in TEXTS},
        layer_count=layers,
    )


def row_of(name):
    return int(name.lstrip("layersctivonpm"))


def rows_kept(part, table):
    """The rows of the whole model that a sample has."""
    return list(range(2)) if table == "seeds" else [row_of(name) for name in part.nodes[table]]


def edges_of(host, name):
    """Ends by names of rows → number of the row, as its numbers say."""
    key = next((key for key in NUMBERS if key.startswith(f"{name}.")), None)
    pairs = [
        tuple(rows_kept(host, table)[row] for row, table in zip(pair, ENDS[name], strict=True))
        for pair in host.ends[name][0].tolist()
    ]
    said = host.methods if key is None else host.numbers[key]
    return dict(zip(pairs, said[0].tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(
    *(st.integers(0, 600), st.integers(0, 3000), st.integers(0, 400), st.integers(1, 200)),
    *(st.integers(0, 5), st.data()),
)
def test_a_sample_is_bounded_and_has_all_edges_between_its_nodes(layers, edges, activations, parameters, seed, data):
    layers, activations = max(layers, 1), max(activations, 1)
    whole = large(layers, edges, seed, activations=activations, parameters=parameters)
    size = data.draw(st.integers(1, MOST_NODES))
    part = sample(whole, "packet", Sampling(size, data.draw(st.integers(1, size))))
    tables = {"layers": layers, "activations": activations, "parameters": parameters}
    assert part.sampled == (max(tables.values()) > size or max(of.shape[1] for of in whole.ends.values()) > MOST_EDGES)
    assert part.layer_count == layers
    assert part.rows("layers") == min(layers, size)
    for table, count in tables.items():
        kept = rows_kept(part, table)
        assert kept == sorted(kept), "in their order, for layers that in which data passes"
        assert len(kept) <= size
        assert layers > size or len(kept) == min(count, size), "nothing is left out without need"
        for key in (key for key in NUMBERS if key.startswith(f"{table}.")):
            assert torch.equal(part.number(key)[0], whole.number(key)[0, kept])
        for key in (key for key in TEXTS if key.startswith(f"{table}.")):
            names = part.texts[key]
            assert [names.vocabulary[row] for row in names.index[0]] == [f"name {row}" for row in kept]
    for name, tables in ENDS.items():
        kept = [set(rows_kept(part, table)) for table in tables]
        between = {pair: said for pair, said in edges_of(whole, name).items() if all(map(set.__contains__, kept, pair))}
        found = edges_of(part, name)
        assert len(found) == part.ends[name].shape[1] == min(len(between), MOST_EDGES)
        assert found.items() <= between.items(), "each with its own numbers"


def test_the_same_packet_has_the_same_sample_and_another_one_another():
    whole = large(1000, 3000)
    assert sample(whole, "a").nodes == sample(whole, "a").nodes
    assert sample(whole, "a").nodes != sample(whole, "b").nodes


def test_what_slots_monitor_and_where_the_loss_is_is_always_there():
    whole = large(1000, 3000)
    part = set(sample(whole, "packet").nodes["layers"])
    watched = whole.ends["monitors"][0, :, 1].tolist()
    room = SAMPLING.roots - len(set(watched))
    largest = whole.numbers["layers.loss_share"][0].argsort(descending=True)[:room].tolist()
    assert {f"layers{row}" for row in (*watched, *largest)} <= part


def test_neighbours_come_before_strangers():
    """Around 32 roots in a row there are neighbours on one side only; strangers come when those are all taken."""
    chain = [(row, row + 1) for row in range(60)]
    whole = large(1000, 0, connects=chain)
    whole.numbers["layers.loss_share"][0] = torch.linspace(1.0, 0.0, 1000)
    whole = replace(whole, ends={**whole.ends, "monitors": torch.zeros(1, 4, 2, dtype=torch.int64)})
    assert {f"layers{row}" for row in range(61)} <= set(sample(whole, "packet").nodes["layers"])


@pytest.mark.parametrize("sizes", [(MOST_NODES + 1, 1), (0, 0), (8, 9)])
def test_a_packet_has_no_more_room(sizes):
    with pytest.raises(ValueError, match=r"nodes|layers"):
        Sampling(*sizes)


def test_a_small_model_is_left_as_it_is():
    measured = Measured.of(state())
    assert sample(measured, "packet") is measured


@pytest.mark.parametrize("many", ["layers", "activations", "parameters", "edges"])
def test_a_sample_is_sent_and_read_and_one_row_more_is_refused(many):
    counts = {"layers": 100, "activations": 100, "parameters": 100, "edges": 800} | {many: 4000}
    whole = large(counts["layers"], counts["edges"], 0, None, counts["activations"], counts["parameters"])
    whole = replace(whole, numbers={key: values.clamp(0.0, 1.0) for key, values in whole.numbers.items()})
    with pytest.raises(ValidationError, match=f"at most {MOST_EDGES if many == 'edges' else MOST_NODES}"):
        graph_of(whole)
    part = sample(whole, "packet")
    sent = SystemState.model_validate_json(state(graph_of(part)).model_dump_json())
    assert (sent.graph.sampled, sent.graph.layer_count) == (True, counts["layers"])
    again = Measured.of(sent)
    for table in NODE_TABLES:
        assert again.nodes[table] == part.nodes[table]
    for name in (*EDGE_TABLES, "allowed"):
        assert torch.equal(again.ends[name], part.ends[name])
    for key in NUMBERS:
        if key.partition(".")[0] in (*NODE_TABLES, *EDGE_TABLES):
            torch.testing.assert_close(again.number(key), part.number(key), check_dtype=False)
    batch = GraphBatch.from_arrays(GraphBuilder(RegistryViews.fresh(Capacities()), MetricNormaliser()).build(again))
    assert len(batch.nodes["layer"].codes) == min(counts["layers"], MOST_NODES)


# ------------------------------------------------------------------ arrays and packets
@settings(max_examples=40, deadline=None)
@given(packets())
def test_a_packet_becomes_arrays_and_these_the_same_packet(packet):
    """But for columns that are sent and hold nothing, and for the sixth digit of numbers."""
    measured = Measured.of(packet)
    sent = graph_of(measured)
    values = {key: measured.number(key).item() for key in NUMBERS if key.startswith("metrics.")}
    metrics = {key.partition(".")[2]: value for key, value in values.items() if math.isfinite(value)}
    again = Measured.of(packet.model_copy(update={"graph": sent, "metrics": metrics}))
    for key in NUMBERS:
        torch.testing.assert_close(again.number(key), measured.number(key), equal_nan=True)
    assert again.nodes == measured.nodes
    for name in (*EDGE_TABLES, "allowed"):
        assert torch.equal(again.ends[name], measured.ends[name])
    for key in TEXTS:
        assert again.texts[key].vocabulary == measured.texts[key].vocabulary
        assert torch.equal(again.texts[key].index, measured.texts[key].index)
    assert (sent.layer_count, sent.sampled) == (packet.graph.layer_count, packet.graph.sampled)


def test_monitors_come_back():
    packet = state()
    first, second = monitors_of(Measured.of(packet))
    assert first.layer == packet.seeds[0].monitored_layers.layer
    assert first.adaptation_trigger_threshold == pytest.approx((0.1, 0.3))
    assert second is None


def test_nothing_becomes_an_empty_graph():
    assert graph_of(Measured.of(state(Graph(), seeds=()))) == Graph()
