"""The world's vectors arrive in graphs as what the world is, host by host."""

import dataclasses

import numpy as np
import pytest
import torch

from envs.graph.layout import GraphLayout
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import make_task
from policies.player import Player
from policies.scripted import RandomValid
from policies.strategic.builder import GraphBuilder, vocabulary
from policies.strategic.graph import GraphBatch
from policies.strategic.greenhouse import GreenhouseReader
from policies.strategic.input_page import GREENHOUSE, read_keys
from policies.strategic.measured import BLUEPRINT_NAMES, NUMBERS, TEXTS
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.registries import Registries
from policies.strategic.schema import NODE_TYPES

torch.set_num_threads(1)
HOSTS = 4


@pytest.fixture(scope="module", params=["digits_mixed", "tabular", "text"])
def played(request):
    """A world after some epochs of random growth, its reader, and its observations as tensors."""
    env = MorphogenesisVectorEnv(HOSTS, task=request.param, graph=True, max_epochs=20)
    observations, _ = env.reset(seed=3)
    reader = GreenhouseReader(GraphLayout.of(make_task(request.param)))
    player = Player(RandomValid(reader.slots), HOSTS, seed=0)
    for _ in range(5):
        observations, *_ = env.step(player.act(flat(reader, observations)))
    assert env.lifecycle.living.any()
    return env, reader, tensors(observations)


def tensors(observations):
    return {name: torch.from_numpy(leaf.copy()) for name, leaf in observations.items()}


def flat(reader, observations):
    return {name: leaf.numpy() for name, leaf in reader.flat(tensors(observations)).items()}


def built(reader, observations, path):
    measured = reader.measured(observations)
    registries = Registries(path / "registries.json").register(vocabulary(measured))
    return GraphBuilder(registries, MetricNormaliser()).build(measured)


def test_the_flat_policy_reads_what_it_reads_without_a_graph(played):
    env, reader, observations = played
    wanted = env.watch.observe(env.max_epochs)
    found = {name: leaf.numpy() for name, leaf in reader.flat(observations).items()}
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        assert found[name].dtype == leaf.dtype
        assert np.array_equal(found[name], leaf)


def test_slots_are_as_the_lifecycle_has_them(played):
    env, reader, observations = played
    measured = reader.measured(observations)
    assert np.array_equal(measured.stages.numpy(), env.lifecycle.stage)
    names = measured.texts["seeds.blueprint"]
    assert names.vocabulary == BLUEPRINT_NAMES
    assert np.array_equal(names.index.numpy(), env.lifecycle.blueprint)
    assert np.array_equal(measured.observation.numpy(), env.watch.observe(env.max_epochs)["obs"])


def test_what_is_measured_is_what_the_page_of_inputs_says(played):
    _, reader, observations = played
    measured = reader.measured(observations)
    given = measured.numbers.keys() | measured.texts.keys()
    assert given & read_keys() == GREENHOUSE & {*NUMBERS, *TEXTS}


def test_every_host_has_the_whole_graph_of_the_structure(played, tmp_path):
    _, reader, observations = played
    structure = reader.layout.structure
    graphs = GraphBatch.from_arrays(built(reader, observations, tmp_path))
    counts = {"layer": len(structure.layers), "seed": reader.slots.num_slots, "parameter": 1}
    counts["activation"] = len(structure.activations)
    assert {name: len(nodes.graph) for name, nodes in graphs.nodes.items()} == {
        name: HOSTS * count for name, count in counts.items()
    }
    edges = sum(len(ends) for ends in structure.edges.values())
    assert graphs.edges.graph.bincount().tolist() == [edges] * HOSTS
    layer_types = graphs.nodes["layer"].codes[:, 0]
    assert (layer_types > 0).all()


def test_a_padded_row_is_a_graph_without_nodes(played, tmp_path):
    _, reader, observations = played
    padded = {name: torch.cat([leaf[:1], torch.zeros_like(leaf[:1])]) for name, leaf in observations.items()}
    graphs = GraphBatch.from_arrays(built(reader, padded, tmp_path))
    assert all((nodes.graph == 0).all() for nodes in graphs.nodes.values())
    assert (graphs.edges.graph == 0).all()
    assert graphs.seeds[1].tolist() == [-1] * reader.slots.num_slots


def test_hosts_are_read_one_by_one_as_together(played, tmp_path):
    _, reader, observations = played
    together = built(reader, observations, tmp_path)
    for host in range(HOSTS):
        alone = built(reader, {name: leaf[host : host + 1] for name, leaf in observations.items()}, tmp_path)
        for name in NODE_TYPES:
            for field in dataclasses.fields(alone.nodes[name]):
                found, wanted = (getattr(of.nodes[name], field.name) for of in (alone, together))
                assert torch.equal(found.nan_to_num(nan=-7.0), wanted[host : host + 1].nan_to_num(nan=-7.0))
        assert torch.equal(alone.context.nan_to_num(), together.context[host : host + 1].nan_to_num())
