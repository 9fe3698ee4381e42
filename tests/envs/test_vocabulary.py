"""Blueprint names and indices: one enumeration, read the same way everywhere."""

import numpy as np
import pytest

from envs.blueprints.registry import blueprints_for
from envs.slots import SlotConfig
from envs.vocabulary import HEAD_NAMES, NO_BLUEPRINT, Blueprint
from policies.learned import build_network
from policies.network_config import NetworkConfig
from tests.envs.helpers import CNN_BLUEPRINTS, germinate, tiny_env

NAMES = (
    *("NOOP", "CONV_LIGHT", "ATTENTION", "NORM", "DEPTHWISE", "BOTTLENECK", "CONV_SMALL", "CONV_HEAVY", "LORA"),
    *("LORA_LARGE", "MLP_SMALL", "MLP", "FLEX_ATTENTION", "CONV_LADDER"),
)
"""Outputs and embedding rows of stored weights are in this order: a blueprint may be added, none moved."""


def test_stored_weights_keep_their_meaning():
    assert tuple(blueprint.name for blueprint in Blueprint)[: len(NAMES)] == NAMES
    assert [int(blueprint) for blueprint in Blueprint] == list(range(len(Blueprint)))
    assert NO_BLUEPRINT not in list(Blueprint)


@pytest.mark.parametrize("internal_levels", [False, True])
def test_the_heads_choices_are_the_blueprints_in_order(internal_levels):
    slots = SlotConfig.for_row(3, internal_levels)
    head = slots.heads[HEAD_NAMES.index("blueprint")]
    assert [Blueprint[name] for name in head.choices] == list(range(head.size)) == list(slots.blueprints)
    encoder = build_network(slots, NetworkConfig(8, 6, 4)).encoder
    assert encoder.num_blueprints == head.size
    assert {int(kind) for topology in ("cnn", "transformer", "mlp") for kind in blueprints_for(topology)} <= set(
        range(len(Blueprint))
    )


def test_an_index_means_the_same_in_action_observation_and_report():
    env = tiny_env(len(CNN_BLUEPRINTS), max_epochs=4)
    space = env.single_observation_space["blueprint_indices"]
    assert (space.low == NO_BLUEPRINT).all()
    assert (space.high == len(env.task.slots.blueprints) - 1).all()
    env.reset(seed=0)
    observations, *_ = env.step(np.stack([germinate(0, blueprint) for blueprint in CNN_BLUEPRINTS]))
    assert observations["blueprint_indices"][:, 0].tolist() == [int(blueprint) for blueprint in CNN_BLUEPRINTS]
    assert (observations["blueprint_indices"][:, 1:] == NO_BLUEPRINT).all()
    for host, blueprint in enumerate(CNN_BLUEPRINTS):
        assert env.lifecycle.report(host, 0).blueprint is blueprint
        assert blueprint.name == NAMES[observations["blueprint_indices"][host, 0]]
