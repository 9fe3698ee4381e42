"""What was measured reaches the network under its name, and what was not is unknown there."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from envs.vocabulary import BLENDING_METHODS, LifecycleOp, SeedStage
from policies.distribution import ActionTables
from policies.strategic.builder import GraphBuilder, numbered, vocabulary
from policies.strategic.features import (
    CODES,
    CONTEXT_FEATURES,
    EDGE_FEATURES,
    LEVEL_AND_METHODS,
    NODE_FEATURES,
    OBSERVED,
    names_of,
)
from policies.strategic.graph import GraphBatch
from policies.strategic.graph_columns import Graph, Layers
from policies.strategic.input_page import GREENHOUSE, GROWER, PAGE_FILE, PROBE, page, read_keys
from policies.strategic.measured import NUMBERS, TEXTS, Measured, Names
from policies.strategic.messages import KEYS, Budgets, Hardware, SystemState
from policies.strategic.network import GraphPolicyNetwork
from policies.strategic.network_config import SMALL
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.packet_page import UNREAD
from policies.strategic.registries import Capacities, Registries, RegistryViews
from policies.strategic.schema import CONTEXT, NODE_TYPES, SLOT_NUMBERS
from tests.places import ROOT
from tests.policies.strategic.graphs import tensors_of
from tests.policies.strategic.packets import packets
from tests.policies.strategic.states import chain, changed, seed, state

TABLES = {"layer": "layers", "activation": "activations", "parameter": "parameters"}


def views(*packets):
    """Registries that know the names of packets."""
    return numbered(Measured.of(packet) for packet in packets)


def built(packet, registries=None):
    return GraphBuilder(registries or views(packet), MetricNormaliser()).build(Measured.of(packet))


def column(arrays, kind, name):
    """One number of the nodes of a type, of the first graph."""
    return arrays.nodes[kind].values[0, :, NODE_TYPES[kind].columns.names.index(name)]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = GraphPolicyNetwork(SMALL)
    for module in network.modules():
        if isinstance(module, nn.Embedding):  # names say something once they are trained
            nn.init.normal_(module.weight, std=0.1)
    return network


def answers(network, packet, registries):
    with torch.inference_mode():
        graphs = GraphBatch.from_arrays(built(packet, registries))
        return tensors_of(network(graphs, ActionTables(Measured.of(packet).slots.heads)))


# ------------------------------------------------------------------ known and unknown
@settings(max_examples=40, deadline=None)
@given(packets())
def test_a_number_is_known_exactly_where_the_packet_has_it(packet):
    arrays = built(packet)
    for kind, table in TABLES.items():
        for of in NODE_FEATURES[kind]:
            for name, key in zip(of.columns, of.keys, strict=True):
                given = packet.measurements(key)
                rows = getattr(packet.graph, table).size
                expected = (
                    [given[0] is not None] * rows if key.startswith("metrics.") else [x is not None for x in given]
                )
                assert column(arrays, kind, name).isfinite().tolist() == expected, key
    for relation, features in EDGE_FEATURES.items():
        if relation == "monitors":
            continue
        known = arrays.edges[relation].values[0].isfinite().T.tolist()
        assert known == [[x is not None for x in packet.measurements(key)] for of in features for key in of.keys]


@settings(max_examples=40, deadline=None)
@given(packets())
def test_every_packet_gives_finite_answers(network, packet):
    for name, tensor in answers(network, packet, None).items():
        assert tensor.isfinite().all(), name


def test_what_was_measured_of_a_seed_arrives():
    arrays = built(state())
    assert column(arrays, "seed", "risk")[0].item() == pytest.approx(0.2)
    assert column(arrays, "seed", "quarantine_only")[0] == 0.0
    allows = [column(arrays, "seed", f"allows_{method}").tolist() for method in BLENDING_METHODS]
    assert [of[0] for of in allows] == [1.0, 0.0, 0.0, 1.0]
    assert all(math.isnan(of[1]) for of in allows), "of an empty slot nobody says"


@pytest.mark.parametrize(("beyond", "read"), [(-3.0, 0.0), (7.0, 1.0)])
def test_statistics_of_seeds_are_read_between_0_and_1(beyond, read):
    fields = ("risk", "activity_level", "success_rate", "risk_tolerance")
    arrays = built(state(seeds=(seed(**dict.fromkeys(fields, beyond)), seed("r0c1"))))
    assert [column(arrays, "seed", name)[0] for name in fields] == [read] * 4


# ------------------------------------------------------------------ Obs V3
@pytest.mark.parametrize("internal", [False, True])
def test_obs_v3_arrives_number_by_number_under_its_name(internal):
    slots = SlotConfig.for_row(3, internal)
    layout = ObservationLayout(slots)
    numbers = torch.linspace(-1.0, 2.0, layout.size)
    by_name = {field.name: number for field, number in zip(layout.fields, numbers, strict=True)}
    packet = state(seeds=tuple(seed(slot) for slot in slots.slot_ids), slots=slots, observation=tuple(numbers.tolist()))
    arrays = built(packet)
    for name in OBSERVED:
        missing = name.removeprefix("last_op_") in LifecycleOp.__members__ and name not in by_name
        assert arrays.context[0, CONTEXT.names.index(name)] == (0.0 if missing else by_name[name])
    for name in (*SLOT_NUMBERS, *(["internal_level"] if internal else [])):
        assert column(arrays, "seed", name).tolist() == [by_name[f"{slot}.{name}"] for slot in slots.slot_ids]
    assert column(arrays, "seed", "internal_level").isfinite().all() == internal


def test_without_obs_v3_its_numbers_are_unknown():
    arrays = built(changed(state(), observation=None))
    assert not arrays.context[0, : len(OBSERVED)].isfinite().any()
    assert not arrays.nodes["seed"].values[0, :, : len(SLOT_NUMBERS)].isfinite().any()


# ------------------------------------------------------------------ edges
def test_adjacency_and_monitors_reach_the_batch():
    packet = state()
    batch = GraphBatch.from_arrays(built(packet))
    relations = {}
    for relation, source, target in zip(
        batch.edges.relation.tolist(), batch.edges.source.tolist(), batch.edges.target.tolist(), strict=True
    ):
        relations.setdefault(relation, []).append((source, target))
    graph = packet.graph
    tables = (graph.connects, None, graph.feeds, graph.influences, graph.tunes, graph.allowed)
    for at, table in enumerate(tables):
        if table is not None:
            assert relations[at] == list(zip(table.source, table.target, strict=True))
    shares = graph.layers.loss_share
    largest = sorted(range(4), key=lambda row: -shares[row])[:3]
    assert relations[1] == [(0, 0), (0, 2), *((1, row) for row in largest)], "the empty slot's are guessed"


def test_a_slot_that_monitors_nothing_gets_nothing():
    nothing = changed(seed().monitored_layers, layer=(), monitoring_frequency=(), adaptation_trigger_threshold=())
    arrays = built(state(seeds=(seed(monitored_layers=nothing), seed("r0c1", monitored_layers=nothing))))
    assert (arrays.edges["monitors"].ends == -1).any(dim=-1).all()


def test_nothing_is_guessed_where_no_loss_share_was_measured():
    graph = changed(chain(seeds=1), layers=changed(chain().layers, loss_share=(None, 0.1, None, None)))
    ends = built(state(graph, seeds=(seed("r0c0", monitored_layers=None),), slots=SlotConfig.for_row(1)))
    exists = ends.edges["monitors"].ends[0]
    assert exists[(exists >= 0).all(dim=-1)].tolist() == [[0, 1]]


def test_the_method_of_an_allowed_combination_is_its_attribute():
    assert built(state()).edges["allowed"].values[0].tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]


# ------------------------------------------------------------------ names
def test_names_are_numbered_by_the_registries(tmp_path):
    registries = Registries(tmp_path / "registries.json")
    registries.register(vocabulary(Measured.of(state())))
    content = (tmp_path / "registries.json").read_bytes()
    arrays = built(state(), registries.views)
    view = registries.views["layer_type"]
    assert arrays.nodes["layer"].codes[0, :, 0].tolist() == [view.index(n) for n in ("conv2d", "linear") * 2]
    assert arrays.nodes["seed"].codes[0].tolist() == [[1, 1, 1, SeedStage.TRAINING], [0, 0, 0, SeedStage.DORMANT]]
    strange = state(changed(chain(), layers=changed(chain().layers, layer_type=("never seen",) * 4)))
    assert built(strange, registries.views).nodes["layer"].codes[0, :, 0].tolist() == [0] * 4
    assert (tmp_path / "registries.json").read_bytes() == content, "reading inserts nothing"


def test_what_an_individual_is_called_says_nothing(network):
    """Neither a packet's id nor a seed's is a kind of anything, whatever else is called so."""

    def says(seed_id=None, blueprint="norm", **fields):
        return state(seeds=(seed(seed_id=seed_id, blueprint=blueprint), *state().seeds[1:]), **fields)

    known = views(*(says(blueprint=name) for name in ("norm", "attention", "lora")))
    first = answers(network, says(), known)
    for other in (says(seed_id="attention"), changed(says(), packet_id="attention"), changed(says(), run_id="lora")):
        assert all(torch.equal(first[name], tensor) for name, tensor in answers(network, other, known).items())
    assert not torch.equal(first["scaled_value"], answers(network, says(blueprint="attention"), known)["scaled_value"])


def test_an_activation_falls_back_on_the_layer_that_feeds_it():
    registries = views(state())
    codes = built(state(), registries).nodes["activation"].codes[0, :, 1]
    both = [registries["layer_type"].index(name) for name in ("conv2d", "linear")]
    assert codes.tolist() == [both[0], *[max(both)] * 3], "of several the largest"


def test_registries_with_more_room_than_the_network_are_refused():
    with pytest.raises(ValueError, match="the registry of layer_type has room for 65 names, the network for 64"):
        GraphBuilder(RegistryViews.fresh(Capacities(layer_type=65)), MetricNormaliser())


# ------------------------------------------------------------------ what the policy reads
def _with_number(packet, key, row, value):
    """The packet with another number in one place."""
    kind, name = key.split(".")
    if kind == "run":
        return changed(packet, **{name: value})
    if kind == "metrics":
        return changed(packet, metrics={**packet.metrics, name: value})
    if kind == "seeds":
        return changed(packet, seeds=(changed(packet.seeds[0], **{name: value}), *packet.seeds[1:]))
    table = getattr(packet.graph, kind)
    values = [*getattr(table, name)]
    values[row] = value
    return changed(packet, graph=changed(packet.graph, **{kind: changed(table, **{name: tuple(values)})}))


READ = [
    *(key for of in CONTEXT_FEATURES for key in of.keys),
    *(key for features in NODE_FEATURES.values() for of in features for key in of.keys),
    *(key for relation in ("connects", "feeds", "influences", "tunes") for key in EDGE_FEATURES[relation][0].keys),
]
WHOLE = {"layers.input_channels", "layers.output_channels", "layers.in_degree", "layers.out_degree", "parameters.count"}
WHOLE |= {"run.max_epochs"}


@pytest.mark.parametrize("key", READ)
def test_every_input_reaches_the_answer(network, key):
    value = 7 if key in WHOLE else True if key == "seeds.quarantine_only" else 0.9
    registries = views(state())
    before = answers(network, state(), registries)
    after = answers(
        network, _with_number(state(), key, 1 if len(state().measurements(key)) > 1 else 0, value), registries
    )
    assert any(not torch.equal(before[name], after[name]) for name in before), key


def _with_name(packet, key, name):
    kind, field = key.split(".")
    if kind == "seeds":
        return changed(packet, seeds=(changed(packet.seeds[0], **{field: name}), *packet.seeds[1:]))
    table = getattr(packet.graph, kind)
    names = (name, *getattr(table, field)[1:])
    return changed(packet, graph=changed(packet.graph, **{kind: changed(table, **{field: names})}))


@pytest.mark.parametrize("key", sorted(CODES.values()))
def test_every_name_reaches_the_answer(network, key):
    other = _with_name(state(), key, "another")
    registries = views(state(), other)
    before, after = answers(network, state(), registries), answers(network, other, registries)
    assert any(not torch.equal(before[name], after[name]) for name in before), key


@pytest.mark.parametrize(
    "other",
    [
        state(seeds=(seed(stage=SeedStage.HOLDING), state().seeds[1])),
        state(seeds=(seed(monitored_layers=None), state().seeds[1])),
        state(seeds=(seed(allowed_blending_methods=("cosine",)), state().seeds[1])),
        changed(state(), observation=(0.25, *state().observation[1:])),
        changed(state(), observation=(*state().observation[:-1], 0.25)),
        changed(state(), graph=changed(chain(), allowed=changed(chain().allowed, method=("cosine", "sigmoid")))),
    ],
    ids=["stage", "monitors", "methods", "obs v3 of the host", "obs v3 of a slot", "allowed combinations"],
)
def test_so_does_what_is_no_number_of_its_own(network, other):
    registries = views(state())
    before, after = answers(network, state(), registries), answers(network, other, registries)
    assert any(not torch.equal(before[name], after[name]) for name in before)


OTHERS = {
    "validation_accuracy": 40.0,
    "budgets": Budgets(living_seeds=1),
    "hardware": Hardware(device="cuda"),
    "blueprint_indices": (3, -1),
    "grad_conflict_rate": 0.5,
    **dict.fromkeys(("global_step", "age_epochs", "internal_max_level", "isolation_violations"), 7),
    "internal_level": 2,
    **dict.fromkeys(("seed_id", "alpha_schedule", "policy_version"), "norm"),
}
NEVER_READ = {"run_id": "norm", "packet_id": "norm", "timestamp_ns": 5, "epoch": 6}


@pytest.mark.parametrize("key", [*sorted(UNREAD & set(KEYS)), *(f"run.{name}" for name in NEVER_READ)])
def test_what_the_page_says_is_not_read_changes_no_bit(network, key):
    """Nor do ids: not even one that is called as a blueprint is, or one that another seed of the kind has."""
    name = key.partition(".")[2]
    value = NEVER_READ.get(name, OTHERS.get(name, 0.5))
    packet = state(seeds=(seed(internal_level=1, internal_max_level=3), state().seeds[1]))
    registries, other = views(packet), _with_number(packet, key, 0, value)
    assert other != packet
    assert not registries.unknown(vocabulary(Measured.of(other))), "no id is a name that a registry numbers"
    before, after = (answers(network, of, registries) for of in (packet, other))
    for answer in before:
        assert torch.equal(before[answer], after[answer]), answer


def _relabelled(packet, order):
    """The packet with its layers in another order."""
    row = {old: new for new, old in enumerate(order)}

    def moved(table, *ends):
        return changed(table, **{end: tuple(row[at] for at in getattr(table, end)) for end in ends})

    graph = packet.graph
    columns = {name: tuple(values[old] for old in order) for name, values in dict(graph.layers).items()}
    graph = changed(
        graph,
        layers=changed(graph.layers, **columns),
        connects=moved(graph.connects, "source", "target"),
        feeds=moved(graph.feeds, "source"),
        influences=moved(graph.influences, "target"),
        tunes=moved(graph.tunes, "target"),
    )
    first = changed(packet.seeds[0], monitored_layers=moved(packet.seeds[0].monitored_layers, "layer"))
    return changed(packet, graph=graph, seeds=(first, *packet.seeds[1:]))


@given(st.permutations(range(4)))
def test_the_order_of_layers_does_not_matter(network, order):
    registries = views(state())
    before, after = (answers(network, packet, registries) for packet in (state(), _relabelled(state(), order)))
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ shapes of all kinds
@pytest.mark.parametrize(
    "packet",
    [
        state(Graph(), seeds=()),
        state(seeds=()),
        state(Graph(layers=Layers(name=("one",)), layer_count=1), seeds=()),
        state(Graph(), seeds=(seed(monitored_layers=None),), slots=SlotConfig.for_row(1)),
        state(
            Graph(layers=Layers(name=("a", "b")), layer_count=2),
            seeds=(seed(monitored_layers=None), seed("r0c1", monitored_layers=None)),
        ),
    ],
    ids=["nothing", "no seeds", "one node", "no layers", "no edges"],
)
def test_graphs_that_lack_something_are_read(network, packet):
    for name, tensor in answers(network, packet, None).items():
        assert tensor.isfinite().all(), name


def test_a_host_without_slots_can_only_wait(network):
    arrays = built(state(seeds=()))
    assert arrays.seeds.tolist() == [[-1]]
    with torch.inference_mode():
        distribution = network(GraphBatch.from_arrays(arrays), ActionTables(SlotConfig.for_row(1).heads)).distribution
    assert distribution.op_log_probs.exp()[0, LifecycleOp.WAIT] == 1.0


def test_many_hosts_at_once_are_each_alone():
    """Three hosts of one structure, the second of which is a padded row."""
    alone = [Measured.of(packet) for packet in (state(), _with_number(state(), "layers.weight_norm", 0, 0.9))]
    alone.insert(1, replace(alone[0], present=torch.zeros(1, dtype=torch.bool)))
    registries = views(state())

    def together(values):
        first = values[0]
        if isinstance(first, torch.Tensor):
            return torch.cat(values)
        if isinstance(first, Names):
            return Names(first.vocabulary, torch.cat([names.index for names in values]))
        if isinstance(first, dict) and not isinstance(next(iter(first.values())), tuple):
            return {key: together([value[key] for value in values]) for key in first}
        return first

    stacked = Measured(**{of.name: together([getattr(host, of.name) for host in alone]) for of in fields(Measured)})
    builder = GraphBuilder(registries, MetricNormaliser())
    batch = GraphBatch.from_arrays(builder.build(stacked))
    assert len(batch) == 3
    assert batch.nodes["layer"].graph.tolist() == [0] * 4 + [2] * 4, "a padded row is a graph without nodes"
    for at in (0, 2):
        one = GraphBatch.from_arrays(builder.build(alone[at]))
        for name, nodes in one.nodes.items():
            torch.testing.assert_close(batch.nodes[name].numbers[batch.nodes[name].graph == at], nodes.numbers)
        torch.testing.assert_close(batch.attributes[batch.edges.graph == at], one.attributes)


def test_every_key_is_of_one_kind_and_is_one_of_the_packets():
    keys = [key for of in (*CONTEXT_FEATURES, *(x for xs in NODE_FEATURES.values() for x in xs)) for key in of.keys]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= set(NUMBERS) <= set(KEYS)
    assert set(CODES.values()) == set(TEXTS) <= set(KEYS)
    assert names_of(NODE_FEATURES["seed"]) + LEVEL_AND_METHODS == NODE_TYPES["seed"].columns.names[len(SLOT_NUMBERS) :]


def test_a_packet_survives_its_way_through_json():
    packet = SystemState.model_validate_json(state().model_dump_json())
    for name, nodes in built(packet).nodes.items():
        torch.testing.assert_close(nodes.values, built(state()).nodes[name].values, equal_nan=True)


def test_the_page_of_inputs_is_what_the_code_says():
    written = (ROOT / "docs" / PAGE_FILE).read_text()
    assert written == page(), "run: python -m policies.strategic.input_page docs"


def test_the_page_has_every_input():
    """By its name and its key, each once in the table of its kind."""
    sections = dict(section.split("\n", 1) for section in page().split("\n## ")[1:])
    for title, kind in [(f"{name.capitalize()} nodes", kind) for name, kind in NODE_TYPES.items()]:
        rows = [
            line.split(" | ")[0].removeprefix("| ") for line in sections[title].splitlines() if line.startswith("| ")
        ]
        named = [name for row in rows[1:] for name in row.split(", ")]
        assert named == [*kind.columns.names, *(code.name for code in kind.codes)]
    assert all(f"`{key}`" in page() for key in KEYS)
    assert read_keys() >= GREENHOUSE | PROBE | GROWER
