"""A key means one thing: of a task's host a probe finds and measures what the greenhouse does."""

import numpy as np
import pytest
import torch

from envs.graph.structure import GraphStructure
from envs.hosts.cnn import CnnVariant
from envs.hosts.mlp import MlpVariant
from envs.hosts.structure import EMBEDDING
from envs.hosts.transformer import TransformerVariant
from envs.live.task_host import TaskHost, TaskLoop
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.tasks import make_task
from esper_ray.live.probe import Probe
from policies.strategic.measured import Measured
from tests.envs.graph.test_formulas import DIFFERENCES, TOLERANCE
from tests.envs.helpers import WAIT, everyone, task_of
from tests.envs.packages import with_their_data
from tests.envs.topologies import task_of as topology_task

torch.set_num_threads(1)

EPOCHS = 5
"""After which the greenhouse watches activation functions again."""
TASKS = {
    "digits": lambda: make_task("digits"),
    "two convolutions a block": lambda: task_of(CnnVariant((4, 6, 4), (3, 3, 3), depth=2)),
    "several sizes": lambda: task_of(CnnVariant((10, 6, 9), (5, 1, 3)), CnnVariant((5, 4, 7), (3, 3, 1)), batches=4),
    "vectors": lambda: topology_task("mlp", (MlpVariant(4, (3, 2)), MlpVariant(4, (1, 3)))),
    "sequences": lambda: topology_task(
        "transformer", (TransformerVariant(8, 2, layers=(1, 2), hidden=(8, 4), attends=(True, False)),)
    ),
}
SEEDS = {"several sizes": (31, 34), "vectors": (31, 34)}
"""Of hosts of each size."""
CASES = [(name, seed) for name in TASKS for seed in SEEDS.get(name, (31,))]
BUILT_IN = (
    *("digits", "digits_impaired", "digits_mixed", "digits_scale", "tabular", "tabular_wide", "text", "text_attending"),
    *("mnist5k_impaired", "mnist5k_mixed", "cifar10", "cifar_impaired", "cifar_scale"),
)
ACTIVITY = (
    *("activations.saturation_rate", "feeds.activation_frequency", "feeds.saturation_events"),
    "influences.nonlinearity_strength",
)
RELATIONS = ("connects", "feeds", "influences", "tunes")


def arranged(measured, structure):
    """What was measured of a model, by key, its rows in a structure's order; nodes are told by their order."""
    rows = {}
    for name in RELATIONS:
        ends = [tuple(pair) for pair in measured.ends[name][0].tolist()]
        theirs = [tuple(pair) for pair in structure.edges[name].tolist()]
        assert set(ends) == set(theirs), name
        rows[name] = [ends.index(pair) for pair in theirs]
    numbers = {key: measured.number(key)[0].numpy() for key in measured.numbers}
    return {key: values[rows.get(key.partition(".")[0], slice(None))] for key, values in numbers.items()}


def unlike(structure):
    """Rows in which the two say different things, by key.

    No gradient leads through tokens, so that nobody can tell whether a layer gave them. What attention gives its
    projection is a third of what it reads; the greenhouse counts what it reads.
    """
    embeddings = [at for at, layer in enumerate(structure.layers) if layer.layer_type == EMBEDDING]
    sources = structure.edges["connects"][:, 0]
    attention = [at for at, source in enumerate(sources) if structure.layers[source].name.endswith("_qkv")]
    return {"layers.in_degree": embeddings, "connects.data_flow_volume": attention}


def check_graph(graph, structure):
    """The nodes of a packet are those of the greenhouse, by names and types."""
    assert [name.rpartition(".")[2] for name in graph.layers.name] == [layer.name for layer in structure.layers]
    for key in ("layer_type", "activation_type"):
        assert getattr(graph.layers, key) == structure.names[f"layers.{key}"]
    assert graph.activations.activation_type == structure.names["activations.activation_type"]
    assert graph.parameters.optimizer_family == structure.names["parameters.optimizer_family"]


@pytest.mark.parametrize("name", with_their_data(BUILT_IN))
def test_a_probe_finds_the_layers_of_every_tasks_host(name, tmp_path):
    cifar = name.startswith("cifar")
    task = make_task(name, {"data_dir": str(tmp_path)} if cifar else {})
    model = TaskHost(task, len(task.variants) - 1)
    samples = torch.randn(16, 32, 32, 3) if cifar else task.splits["validation"].x[:16]
    packet = Probe(model, torch.optim.SGD(model.weights.values(), lr=0.1), samples).end_epoch()
    structure = GraphStructure.of(task)
    check_graph(packet.graph, structure)
    arranged(Measured.of(packet), structure)
    sizes = task.host.parameters(task.variants[-1])
    channels = list(zip(packet.graph.layers.input_channels, packet.graph.layers.output_channels, strict=True))
    assert channels == [layer.channels(sizes) for layer in structure.layers]


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_a_probe_measures_of_a_tasks_host_what_the_greenhouse_does(name, seed):
    env = MorphogenesisVectorEnv(1, task=TASKS[name](), max_epochs=EPOCHS + 2, graph=True)
    env.reset(seed=[seed])
    loop, structure = TaskLoop(env.task, EPOCHS + 2, seed), env.graph.layout.structure
    probe = Probe(loop.model, loop.optimizer, loop.example, max_epochs=EPOCHS + 2)
    different = unlike(structure)
    for epoch in range(1, EPOCHS + 1):
        observation, *_ = env.step(everyone(env, WAIT))
        training_loss = loop.epoch()
        packet = probe.end_epoch(training_loss=training_loss)
        check_graph(packet.graph, structure)
        views = env.graph.layout.views(torch.from_numpy(observation["graph"]))
        greenhouse = {key: values[0].numpy() for key, values in views.items()}
        probed = arranged(Measured.of(packet), structure)
        both = {key for key in probed.keys() & greenhouse.keys() if not key.startswith(("seeds.", "monitors."))}
        assert len(both) > 25
        for key in both - ({*ACTIVITY} if epoch < EPOCHS else set()):
            tolerance = TOLERANCE | ({"atol": DIFFERENCES[key]} if key in DIFFERENCES else {})
            rows = np.delete(np.arange(len(probed[key])), different.get(key, []))
            where = f"{key} in epoch {epoch}"
            np.testing.assert_allclose(probed[key][rows], greenhouse[key][rows], **tolerance, err_msg=where)


def test_hosts_of_every_size_are_those_that_were_drawn():
    """Both seeds' of ``SEEDS``, which are of different sizes."""
    for name, seeds in SEEDS.items():
        sizes = {
            tuple(weight.shape for weight in TaskLoop(TASKS[name](), 12, of).model.weights.values()) for of in seeds
        }
        assert len(sizes) == len(seeds), name
