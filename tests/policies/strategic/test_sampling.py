"""The sample of a large model is bounded, always the same for a packet, and consists of parts of the model."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.strategic.builder import GraphBuilder
from policies.strategic.graph import GraphBatch
from policies.strategic.graph_columns import MOST_LAYERS, Graph
from policies.strategic.measured import EDGE_TABLES, NODE_TABLES, NUMBERS, TABLES, TEXTS, Measured, Names
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.registries import Capacities, RegistryViews
from policies.strategic.sampling import SAMPLING, Sampling, sample
from policies.strategic.schema import FORWARD_RELATIONS
from policies.strategic.sending import graph_of, metrics_of, monitors_of
from tests.policies.strategic.packets import packets
from tests.policies.strategic.states import state

ENDS = {relation.name: (TABLES[relation.source], TABLES[relation.target]) for relation in FORWARD_RELATIONS}


def large(layers, edges, seed=0, connects=None):
    """A host of many layers with random edges; each number of a row is told apart by its row."""
    generator = torch.Generator().manual_seed(seed)
    rows = {"layers": layers, "activations": layers // 2, "parameters": 3, "seeds": 2}

    def pairs(name, count):
        columns = [torch.randint(rows[table], (count,), generator=generator) for table in ENDS[name]]
        return torch.stack(columns, dim=-1).unsqueeze(0)

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
        methods=torch.zeros(1, 4, dtype=torch.int64),
        numbers=numbers,
        texts={key: Names(("a",), torch.zeros(1, kind[key], dtype=torch.int64)) for key in TEXTS},
        layer_count=layers,
    )


def row_of(name):
    return int(name.lstrip("layersctivonpm"))


@settings(max_examples=25, deadline=None)
@given(st.integers(MOST_LAYERS + 1, 600), st.integers(0, 2000), st.integers(0, 5), st.data())
def test_a_sample_is_bounded_and_a_part_of_the_model(layers, edges, seed, data):
    whole = large(layers, edges, seed)
    size = data.draw(st.integers(1, MOST_LAYERS))
    part = sample(whole, "packet", Sampling(size, data.draw(st.integers(1, size))))
    assert part.rows("layers") == size
    assert all(part.rows(table) <= size for table in NODE_TABLES)
    assert part.layer_count == layers
    names = part.nodes["layers"]
    assert list(names) == sorted(names, key=row_of), "in the order in which data passes"
    for name, tables in ENDS.items():
        original = whole.ends[name][0].tolist()
        key = next((key for key in NUMBERS if key.startswith(f"{name}.")), None)
        for at, pair in enumerate(part.ends[name][0].tolist()):
            old = [
                row if table == "seeds" else row_of(part.nodes[table][row])
                for row, table in zip(pair, tables, strict=True)
            ]
            assert old in original
            if key is not None:
                assert original[int(part.numbers[key][0, at])] == old, "with its own numbers"


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


@pytest.mark.parametrize("sizes", [(MOST_LAYERS + 1, 1), (0, 0), (8, 9)])
def test_a_packet_has_no_more_room(sizes):
    with pytest.raises(ValueError, match="layers"):
        Sampling(*sizes)


def test_a_small_model_is_left_as_it_is():
    measured = Measured.of(state())
    assert sample(measured, "packet") is measured


def test_a_sample_is_read_and_sent():
    part = sample(large(5000, 20_000), "packet")
    part = replace(part, numbers={key: values.clamp(0.0, 1.0) for key, values in part.numbers.items()})
    batch = GraphBatch.from_arrays(GraphBuilder(RegistryViews.fresh(Capacities()), MetricNormaliser()).build(part))
    assert len(batch.nodes["layer"].codes) == MOST_LAYERS
    edges = {name: part.ends[name][0].unique(dim=0, return_inverse=True)[1] for name in EDGE_TABLES}
    assert all(len(rows) == part.ends[name].shape[1] for name, rows in edges.items())


# ------------------------------------------------------------------ arrays and packets
@settings(max_examples=40, deadline=None)
@given(packets())
def test_a_packet_becomes_arrays_and_these_the_same_packet(packet):
    """But for columns that are sent and hold nothing, and for the sixth digit of numbers."""
    measured = Measured.of(packet)
    sent = graph_of(measured)
    again = Measured.of(packet.model_copy(update={"graph": sent, "metrics": metrics_of(measured)}))
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
