"""The graph of a task's hosts: which layers there are, who reads whom, and where numbers are in a vector."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks.reference import HostLoop
from envs.graph.layout import MEASURED, UNKNOWN, GraphLayout
from envs.hosts.cnn import CnnVariant
from envs.hosts.transformer import TransformerVariant
from envs.slots import SlotConfig
from envs.tasks import make_task, task_names
from policies.strategic.messages import KEYS
from tests.envs.graph.plain_host import PlainHost
from tests.envs.helpers import task_of, tiny_env
from tests.envs.topologies import env_of

ATTENDING = TransformerVariant(8, 2, layers=(1, 1), hidden=(8, 4), attends=(True, True))
LAYOUTS = {name: GraphLayout.of(make_task(name)) for name in ("digits_mixed", "digits_scale", "tabular", "text")}


def test_a_layout_needs_no_data(tmp_path):
    arguments = {"data_dir": str(tmp_path / "nowhere")}
    for name in ("cifar10", "cifar_impaired", "cifar_scale"):
        assert GraphLayout.of(make_task(name, arguments)).size > 1
    for name in ("mnist5k_impaired", "mnist5k_mixed"):
        assert GraphLayout.of(make_task(name)).size == LAYOUTS["digits_mixed"].size
    assert {"cifar10", *LAYOUTS} <= set(task_names())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_travels_to_other_processes(name):
    assert pickle.loads(pickle.dumps(LAYOUTS[name])) == LAYOUTS[name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_keys_are_those_of_a_packet_and_fill_the_vector_once(name):
    layout = LAYOUTS[name]
    given = {*layout.places, *layout.constants, *layout.structure.names}
    assert given - {"layers.name", "activations.name", "parameters.name"} <= set(KEYS)
    places = sorted(layout.places.values(), key=lambda place: place.start)
    assert [place.start for place in places] == [1, *(place.stop for place in places[:-1])]
    assert places[-1].stop == layout.size


@pytest.mark.parametrize("name", ["digits_mixed", "digits_scale", "tabular", "text", "cifar_scale"])
def test_every_parameter_belongs_to_a_layer_and_every_layer_reads_layers_before_it(name, tmp_path):
    task = make_task(name, {"data_dir": str(tmp_path)} if name.startswith("cifar") else {})
    for variant in task.variants:
        layers, specs = task.host.layers(variant), task.host.parameters(variant)
        names = [layer.name for layer in layers]
        assert len(set(names)) == len(names)
        assert {parameter for layer in layers for parameter in layer.parameters} == set(specs)
        for at, layer in enumerate(layers):
            assert set(layer.reads) <= set(names[:at])
        assert [layer.segment for layer in layers] == sorted(layer.segment for layer in layers)
        assert len(task.host.layer_places((8, 8, 1)[: 3 if name[0] != "t" else 1])) == len(layers)
        assert (names, [layer.reads for layer in layers]) == (
            [layer.name for layer in GraphLayout.of(task).structure.layers],
            [layer.reads for layer in GraphLayout.of(task).structure.layers],
        )


@pytest.mark.parametrize("topology", ["cnn", "mlp", "transformer"])
def test_layers_have_the_types_and_channels_of_plain_modules(topology):
    variants = {"transformer": (ATTENDING,)}.get(topology)
    env = tiny_env(1) if topology == "cnn" else env_of(topology, 1, variants)
    env.reset(seed=0)
    task = env.task
    net = HostLoop(env.population, env.lifecycle).hosts[0] if topology == "cnn" else PlainHost(env, 0).net
    modules = {id(parameter): module for module in net.modules() for parameter in module.parameters(recurse=False)}
    parameters = net.own if topology == "cnn" else [*net.in_our_order()]
    named = dict(zip(task.host.parameters(task.variants[0]), parameters, strict=True))
    for layer in task.host.layers(task.variants[0]):
        module = modules[id(named[layer.parameters[0]])]
        sizes = layer.channels(task.host.parameters(task.variants[0]))
        if layer.name.endswith(("_qkv", "_attention_out")) or (layer.name == "head" and topology == "transformer"):
            continue  # attention is one module of its own in torch, and a tied head none
        assert layer.layer_type == type(module).__name__.lower()
        if isinstance(module, nn.Linear):
            assert sizes == (module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d):
            assert sizes == (module.in_channels, module.out_channels)
        elif isinstance(module, nn.Embedding):
            assert sizes == (module.num_embeddings, module.embedding_dim)


def test_a_convolutional_host_is_a_chain_and_slots_stand_between_its_layers():
    layout = GraphLayout.of(task_of(CnnVariant((4, 8), (3, 3), depth=2)))
    structure = layout.structure
    names = [layer.name for layer in structure.layers]
    assert names == ["conv0", "norm0", "conv1", "norm1", "conv2", "norm2", "conv3", "norm3", "head"]
    assert structure.edges["connects"].tolist() == [[at, at + 1] for at in range(8)]
    assert structure.edges["feeds"].tolist() == [[1, 0], [3, 1], [5, 2], [7, 3]]
    assert structure.edges["influences"].tolist() == [[0, 2], [1, 4], [2, 6], [3, 8]]
    assert structure.edges["monitors"].tolist() == [[0, 3], [0, 4], [1, 7], [1, 8]]
    assert structure.names["layers.activation_type"] == (None, "relu") * 4 + (None,)
    np.testing.assert_allclose(layout.constants["seeds.layer_depth"], [4 / 9, 8 / 9])
    np.testing.assert_allclose(layout.constants["layers.depth"], np.linspace(0, 1, 9))


def test_what_reads_a_residual_stream_reads_all_that_was_added_to_it():
    structure = LAYOUTS["tabular"].structure
    reads = {layer.name: layer.reads for layer in structure.layers}
    assert reads["segment2_norm"] == ("embed", "segment0_out", "segment1_out")
    assert reads["final_norm"] == ("embed", "segment0_out", "segment1_out", "segment2_out")
    in_degree, out_degree = structure.degrees
    assert in_degree.sum() == out_degree.sum() == len(structure.edges["connects"])


def test_data_flow_counts_what_passes_per_sample():
    env = tiny_env(2, (CnnVariant((4, 8, 6), (3, 3, 3)), CnnVariant((2, 8, 3), (3, 3, 3))), graph=True)
    observation, _ = env.reset(seed=[1, 2])
    volumes = env.graph.layout.views(torch.from_numpy(observation["graph"]))["connects.data_flow_volume"]
    expected = {
        0: [4 * 64, 4 * 16, 8 * 16, 8 * 4, 6 * 4, 6],  # the last map's mean is what the head reads
        1: [2 * 64, 2 * 16, 8 * 16, 8 * 4, 3 * 4, 3],
    }
    assert volumes.tolist() == [expected[variant] for variant in env.population.variant]


finite = st.floats(-(2.0**99), 2.0**99, width=32)


@given(st.sampled_from(sorted(LAYOUTS)), st.data())
def test_views_find_what_was_written_and_give_nan_for_what_is_unknown(name, data):
    layout = LAYOUTS[name]
    key = data.draw(st.sampled_from(MEASURED))
    place = layout.places[key]
    rows = place.stop - place.start
    values = data.draw(st.lists(st.none() | finite, min_size=rows, max_size=rows))
    vectors = torch.zeros(2, layout.size)
    vectors[0, 0] = 1.0
    vectors[0, place] = torch.tensor([UNKNOWN if value is None else value for value in values])
    views = layout.views(vectors)
    seen = views[key][0]
    assert [None if value.isnan() else float(value) for value in seen] == values
    assert layout.present(vectors).tolist() == [True, False], "a row of zeros is padding"
    assert not any(views[other].any() for other in layout.places if other != key)
    for other, numbers in views.items():
        assert numbers.shape == (2, layout.rows.get(other.partition(".")[0], numbers.shape[1]))


@given(st.integers(1, 6), st.booleans())
def test_a_vector_begins_with_what_the_flat_policy_reads(slots, internal):
    config = SlotConfig.for_row(slots, internal)
    task = task_of(CnnVariant((2,) * slots, (1,) * slots), internal_levels=internal)
    assert task.slots == config
    layout = GraphLayout.of(task)
    first, second, *_ = layout.places.items()
    assert (first[0], second[0]) == ("run.observation", "run.blueprint_indices")
    assert second[1].stop - second[1].start == slots
