"""What the greenhouse measures of a host, said in a packet, is the same graph."""

import math

import numpy as np
import pytest
import torch

from envs.graph.layout import BLUEPRINTS, OBSERVATION
from envs.morphogenesis import MorphogenesisVectorEnv
from envs.vocabulary import SeedStage
from policies.strategic.actor_critic import registry_names
from policies.strategic.builder import GraphBuilder, vocabulary
from policies.strategic.graph_columns import Graph, Monitors
from policies.strategic.greenhouse import GreenhouseReader
from policies.strategic.measured import BLUEPRINT_NAMES, Measured
from policies.strategic.messages import KEYS, SeedState, SystemState
from policies.strategic.normaliser import MetricNormaliser
from policies.strategic.registries import Capacities, RegistryViews
from tests.policies.strategic.greenhouses import LAYOUTS

torch.set_num_threads(1)


MAX_EPOCHS = 12


def known(values):
    return tuple(None if math.isnan(value) else value for value in values.tolist())


def packet_of(layout, views, mask, stages, host):
    """What is known of a host, as somebody else would send it."""
    structure = layout.structure
    columns = {key: known(values[host]) for key, values in views.items() if "." in key and not key.startswith("run.")}
    columns |= {key: tuple(names) for key, names in structure.names.items()}
    whole = ("input_channels", "output_channels", "in_degree", "out_degree", "count")
    tables = {}
    for name, table in Graph.model_fields.items():
        own = {key.partition(".")[2]: column for key, column in columns.items() if key.startswith(f"{name}.")}
        own |= {key: tuple(int(of) for of in own[key]) for key in whole if key in own}
        if name in structure.edges:
            own |= dict(zip(("source", "target"), map(tuple, structure.edges[name].T.tolist()), strict=True))
        if own:
            tables[name] = table.annotation(**own)
    observation = views[OBSERVATION][host]
    slots = structure.slots
    seeds = []
    for slot, name in enumerate(slots.slot_ids):
        index = int(views[BLUEPRINTS][host, slot])
        layers = tuple(layer for of, layer in structure.edges["monitors"].tolist() if of == slot)
        seeds.append(
            SeedState(
                slot=name,
                stage=SeedStage(int(stages[slot])),
                blueprint=None if index < 0 else BLUEPRINT_NAMES[index],
                monitored_layers=Monitors(layer=layers, monitoring_frequency=(1.0,) * len(layers)),
                **{key: columns[f"seeds.{key}"][slot] for key in ("learning_rate", "activity_level", "success_rate")},
                **{key: columns[f"seeds.{key}"][slot] for key in ("layer_depth", "scope")},
            )
        )
    metrics = {key.partition(".")[2]: of[0] for key, of in columns.items() if key.startswith("metrics.")}
    return SystemState(
        run_id="greenhouse",
        packet_id=str(host),
        timestamp_ns=0,
        declared=tuple(KEYS),
        epoch=0,
        max_epochs=MAX_EPOCHS,
        metrics={name: value for name, value in metrics.items() if value is not None},
        graph=Graph(**tables, layer_count=len(structure.layers)),
        seeds=tuple(seeds),
        internal_levels=slots.internal_levels,
        observation=tuple(observation.tolist()),
        action_mask=tuple(mask[host].tolist()),
    )


@pytest.mark.parametrize("task", sorted(LAYOUTS))
def test_both_ways_in_make_the_same_graph(task):
    layout = LAYOUTS[task]
    env = MorphogenesisVectorEnv(2, task=task, max_epochs=MAX_EPOCHS, graph=True)
    observation, _ = env.reset(seed=0)
    for _ in range(6):
        actions = np.zeros((2, 8), np.int64)
        actions[0, :3] = [1, 1, 4 if task != "text" else 3]
        observation, *_ = env.step(actions)
    vectors, mask = (torch.from_numpy(observation[name]) for name in ("graph", "action_mask"))
    builder = GraphBuilder(RegistryViews.of(registry_names([layout]), Capacities()), MetricNormaliser())
    together = builder.build(GreenhouseReader(layout).measured({"graph": vectors, "action_mask": mask}))
    for host in range(2):
        packet = Measured.of(packet_of(layout, layout.views(vectors), mask, env.lifecycle.stage[host], host))
        assert not builder.registries.unknown(vocabulary(packet))
        alone = builder.build(packet)
        for name, nodes in together.nodes.items():
            torch.testing.assert_close(nodes.values[host], alone.nodes[name].values[0], equal_nan=True)
            assert torch.equal(nodes.codes[host], alone.nodes[name].codes[0])
        for name, edges in together.edges.items():
            exists = (alone.edges[name].ends[0] >= 0).all(dim=-1)  # guesses of what is not known may be nobody's
            assert torch.equal(edges.ends[host][(edges.ends[host] >= 0).all(dim=-1)], alone.edges[name].ends[0][exists])
            there = (edges.ends[host] >= 0).all(dim=-1)
            torch.testing.assert_close(edges.values[host][there], alone.edges[name].values[0][exists], equal_nan=True)
        torch.testing.assert_close(together.context[host], alone.context[0], equal_nan=True)
        assert torch.equal(together.seeds[host], alone.seeds[0])
        assert torch.equal(together.action_mask[host], alone.action_mask[0])
